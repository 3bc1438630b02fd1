"""The timestamp echo service: protocols, connections, their limits, the log, stopping."""
