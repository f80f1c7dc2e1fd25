from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
from maskformer.engine.libraries import loading_libraries
needed = ("scipy.optimize",)
before = [name in sys.modules for name in needed]
with loading_libraries():
    pass
print(before, [name in sys.modules for name in needed], threading.active_count())
"""


def test_what_the_first_step_needs_is_loaded_when_the_block_has_ended():
    words = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout == "[False] [True] 1\n"
