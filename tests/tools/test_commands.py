from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from maskformer import tools

COMMANDS = sorted({path.stem for path in Path(tools.__path__[0]).iterdir()} - {"__init__", "__pycache__", "predictor"})


def test_commands_of_the_documents_are_there():
    assert {"compare_loss", "convert", "demo", "device", "evaluate_pq_for_semantic", "predict"} < set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_a_file_with_a_main_function(name: str):
    """A folder of the same name would hide it from ``python -m``."""
    spec = find_spec(f"maskformer.tools.{name}")
    assert spec is not None and spec.origin is not None and spec.origin.endswith(f"{name}.py")
    assert callable(importlib.import_module(spec.name).main)
