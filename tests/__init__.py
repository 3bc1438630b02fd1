"""Tests: a module for each module of tsecho, and `system` with real processes and sockets."""

from hypothesis import HealthCheck, settings

# On a busy machine any test may take long: hypothesis must not fail it for that.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
