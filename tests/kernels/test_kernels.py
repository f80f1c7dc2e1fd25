"""Compiled loops: the functions under them, and what happens where they cannot be had, kept or read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskformer.kernels import dispatch, find_kernels, import_loops, loops
from maskformer.losses import pairwise_mask_costs


def test_exponential_of_negative_numbers_is_as_exact_as_float32():
    x = -np.linspace(0, 86, 20_001, dtype=np.float32)
    values = np.array([loops._exp_of_negative(each) for each in x])
    np.testing.assert_allclose(values, np.exp(x.astype(np.float64)), rtol=2e-7)
    assert 0 < loops._exp_of_negative(np.float32(-np.inf)) < 1e-37
    assert np.isnan(loops._exp_of_negative(np.float32(np.nan)))


def test_logarithm_of_one_plus_is_as_exact_as_float32_down_to_the_smallest():
    u = np.concatenate([np.linspace(0, 1, 10_001), np.logspace(-37, 0, 1_000)]).astype(np.float32)
    values = np.array([loops._log_of_one_plus(each) for each in u])
    np.testing.assert_allclose(values, np.log1p(u.astype(np.float64)), rtol=3e-7)


def test_kernels_are_for_float32_on_a_cpu_without_gradients():
    assert find_kernels(torch.zeros(2)) is loops
    assert find_kernels(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) is None
    assert find_kernels(torch.zeros(2, dtype=torch.bfloat16)) is None
    assert find_kernels(torch.zeros(2, device="meta")) is None
    leaf = torch.zeros(2, requires_grad=True)
    assert find_kernels(leaf) is None
    with torch.no_grad():
        assert find_kernels(leaf) is loops


def test_without_numba_all_is_computed_by_operators_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    logits, targets = torch.randn(5, 60) * 4, (torch.rand(3, 60) > 0.5).float()
    compiled = pairwise_mask_costs(logits, targets)
    monkeypatch.setitem(sys.modules, "numba", None)  # what Python has where a module cannot be imported
    dispatch._has_numba.cache_clear()
    try:
        assert import_loops() is None
        operators = pairwise_mask_costs(logits, targets)
        pairwise_mask_costs(logits, targets)
    finally:
        dispatch._has_numba.cache_clear()
    for one, other in zip(compiled, operators):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    said = [record.getMessage() for record in caplog.records if "pip install numba" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("Losses and inference on a CPU take longer without Numba (")


RUN = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
import numpy as np
from kernels import loops
logits, contrast, probs, sums = (np.zeros(size, "f4") for size in ((1, 4), (1, 4), (1, 4), (2, 1)))
loops.write_pairwise_terms(logits, contrast, probs, sums, np.float32(3))
print(probs.sum())
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with a copy of the loops, where nothing is kept yet."""
    source = Path(loops.__file__).parent
    (tmp_path / "kernels").mkdir()
    for name in ("interpolation.py", "loops.py"):
        shutil.copy(source / name, tmp_path / "kernels" / name)
    return tmp_path


def run_loop(folder: Path) -> list[str]:
    """Run a loop in a process of its own that has no other folder; gives the lines that it prints."""
    environment = {**os.environ, "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(folder)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_compiled_loops_are_kept_and_compiled_again_where_what_was_kept_is_damaged(copied: Path):
    assert run_loop(copied) == ["2.0"]
    kept = sorted((copied / "kernels" / "__pycache__").glob("loops.write_pairwise_terms*.nb[ci]"))
    assert len(kept) == 2
    for path in kept:
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2])
        said, *result = run_loop(copied)
        assert said.startswith("write_pairwise_terms is compiled in each run, some seconds: ")
        assert result == ["2.0"]
        path.write_bytes(good)


@pytest.mark.slow
def test_where_nothing_can_be_kept_the_loops_run_all_the_same(copied: Path):
    (copied / "kernels" / "__pycache__").write_text("a file stands where the folder would be")
    said = run_loop(copied)
    assert said[-1] == "2.0"
    assert any("write_pairwise_terms is compiled in each run, some seconds: cannot cache" in line for line in said)
