"""From a dataset's entry for one image to what the model takes; table.py has them by name."""
