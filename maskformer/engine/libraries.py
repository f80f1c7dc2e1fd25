"""Libraries that the first training step needs, loaded while the model is built."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Load SciPy in a thread that has ended when the ``with`` block has.

    Nothing may fork while a library is being loaded; drawing a model's weights leaves Python's lock to the thread.
    """
    thread = threading.Thread(target=_load, name="libraries", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _load() -> None:
    with suppress(ImportError):  # whoever needs it says so
        importlib.import_module("scipy.optimize")
