"""The client: `tsecho`, also `python -m timestamp_echo`."""
