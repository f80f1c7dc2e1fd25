"""The built-in dataset of shapes, which ``make demo`` trains on."""
