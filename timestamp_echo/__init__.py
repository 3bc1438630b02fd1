"""The timestamp echo service: every message comes back with the moment it arrived."""

__version__ = "1.0.0"
