"""How tsecho stands beside the same job done otherwise: `python -m benchmarks`."""
