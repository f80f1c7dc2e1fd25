"""The built-in dataset of shapes, and ``make demo``."""
