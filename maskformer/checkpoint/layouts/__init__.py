"""The names that others give the parameters: one file a source of weights."""
