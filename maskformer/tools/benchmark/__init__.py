"""The benchmark: ``python -m maskformer.tools.benchmark``. Ours against the plain definitions and against peers."""
