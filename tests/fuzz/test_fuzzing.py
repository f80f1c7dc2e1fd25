"""Every input ends in success or in an `InputError`, in time, and runs nothing: see guard.py.

MASKFORMER_FUZZ_EXAMPLES inputs of each kind, 15 by default; `make fuzz` takes 2,200. What was found is kept in
test_fuzz_findings.py.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import inputs
import pytest
from guard import outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, WEIGHTS

from maskformer.config import load_config
from maskformer.engine.accelerator import resolve_device
from maskformer.runs.launch import build_argument_parser

EXAMPLES = int(os.environ.get("MASKFORMER_FUZZ_EXAMPLES", "15"))
COUNTS: Counter[tuple[str, str]] = Counter()

_PLAIN = settings(
    max_examples=EXAMPLES,
    deadline=None,  # the guard's alarm stops a hang, and a busy machine is none
    database=None,
    derandomize="MASKFORMER_FUZZ_SEED" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


def _strategy(kind: str) -> st.SearchStrategy[bytes]:
    seeds = READERS[kind].seeds
    makers: dict[str, Callable[..., st.SearchStrategy[bytes]]] = {
        "panoptic JSON": inputs.json_files,
        "instance JSON": inputs.json_files,
        "configuration": inputs.yaml_files,
        "checkpoint .pkl": inputs.pickles,
        "states in a .pkl": inputs.states,
    }
    if kind in makers:
        return makers[kind](seeds)
    if kind.startswith("checkpoint"):
        every = [seed for group in WEIGHTS.values() for seed in group]
        return st.one_of(inputs.damaged(seeds), inputs.damaged(seeds), inputs.pickles(every), st.binary(max_size=64))
    return st.one_of(inputs.damaged(seeds), inputs.damaged_png(seeds), st.binary(max_size=64))


@pytest.mark.parametrize("kind", READERS)
def test_a_file_is_used_or_refused_by_name(kind: str, tmp_path: Path):
    reader = READERS[kind]
    reader.prepare(tmp_path)

    @_PLAIN
    @given(_strategy(kind))
    def check(content: bytes) -> None:
        answer = outcome(lambda: reader.use(content, tmp_path), tmp_path)
        COUNTS[kind, "accepted" if answer == "accepted" else "refused"] += 1

    check()
    _print(kind)


@pytest.mark.parametrize("kind", READERS)
def test_valid_files_are_accepted(kind: str, tmp_path: Path):
    """Without this, a reader that refuses everything would pass."""
    reader = READERS[kind]
    reader.prepare(tmp_path)
    answers = [outcome(lambda seed=seed: reader.use(seed, tmp_path), tmp_path) for seed in reader.seeds]
    refused = [answer for answer in answers if answer != "accepted"]
    # An EPS file, and a file of weights that claims to be huge.
    assert len(refused) == (kind in ("image", "checkpoint .safetensors")), refused


def test_a_command_line_is_used_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("SOLVER: {MAX_ITER: 7}\n")

    def use(words: list[str]) -> None:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                args = build_argument_parser().parse_args(words)
            except SystemExit as stop:  # argparse's own answer, after a message
                assert stop.code in (0, 2)
                return
        resolve_device(load_config(args.config_file, args.opts).MODEL.DEVICE)

    @_PLAIN
    @given(inputs.command_lines)
    def check(words: list[str]) -> None:
        answer = outcome(lambda: use(words), tmp_path)
        COUNTS["command line", "accepted" if answer == "accepted" else "refused"] += 1

    check()
    _print("command line")


def _print(kind: str) -> None:
    accepted, refused = COUNTS[kind, "accepted"], COUNTS[kind, "refused"]
    print(f"FUZZED {kind}: {accepted + refused} inputs, {accepted} accepted, {refused} refused")
