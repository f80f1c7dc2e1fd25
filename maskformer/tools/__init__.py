"""Command-line tools: ``python -m maskformer.tools.NAME --help``. Nothing in the package imports them."""
