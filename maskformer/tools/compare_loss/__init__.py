"""Are the losses of two devices the same: ``python -m maskformer.tools.compare_loss``."""
