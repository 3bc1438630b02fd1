"""Compare tsecho with other servers that do the same job: `python -m benchmarks`."""
