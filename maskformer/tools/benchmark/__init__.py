"""The benchmark: ours against peers and definitions, side by side."""
