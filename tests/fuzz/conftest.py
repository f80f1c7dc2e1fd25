"""What a process loads once, whatever it reads, is loaded before the inputs are watched."""

from __future__ import annotations

import pytest
from guard import load_loops


@pytest.fixture(scope="session", autouse=True)
def _load_loops() -> None:
    load_loops()
