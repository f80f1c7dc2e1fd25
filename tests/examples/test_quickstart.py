"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[2]
SHORTER = {
    "ITERATIONS = 150": "ITERATIONS = 2",
    "NUM_TRAIN, NUM_VAL = 200, 20": "NUM_TRAIN, NUM_VAL = 8, 2",
    '"../configs/': f'"{REPOSITORY}/configs/',
}


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path):
    folder = tmp_path / "examples"
    folder.mkdir()
    shutil.copy(REPOSITORY / "examples" / "quickstart.ipynb", folder)
    notebook = nbformat.read(folder / "quickstart.ipynb", as_version=4)
    setup = notebook.cells[1]
    for text, shorter in SHORTER.items():
        assert text in setup.source
        setup.source = setup.source.replace(text, shorter)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert (tmp_path / "output" / "quickstart" / "second" / "report.html").is_file()
    assert "model.safetensors" in outputs[-1]["data"]["text/plain"]
