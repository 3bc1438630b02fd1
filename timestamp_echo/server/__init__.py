"""What a timestamp echo service is: protocols, connections, their limits, the log, stopping."""
