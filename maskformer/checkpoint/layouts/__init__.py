"""Other people's parameter names: one file a source; ``detection`` knows a layout by its names."""
