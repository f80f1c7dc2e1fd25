"""The model as files for other programs."""
