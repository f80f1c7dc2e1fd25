"""The configuration: every key, loading, the values that are possible, and a user's own datasets."""

from .keys import add_maskformer_config, default_config
from .loading import as_options, load_config

__all__ = ["add_maskformer_config", "as_options", "default_config", "load_config"]
