"""The benchmark: ``python -m benchmarks``. Ours against the plain definitions and against peers."""
