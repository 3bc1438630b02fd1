"""What an operator sees of the service over HTTP: `--status`. Needs the extra `status`."""
