"""One module for each module of tsecho, then real processes and sockets."""

from hypothesis import HealthCheck, settings

# No test is timed: on a busy machine any of them may take long.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
