"""Making a dataset's labels ready: what ``datasets/prepare_*.py`` share. Pure functions on arrays, and a file loop."""
