"""The command: the vendor's rule passes every cheat, the strict verdict none, and honest runs pass both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from loss_cases import add_device_noise, make_losses, write_metrics, write_settings, write_tcappdll
from matplotlib.figure import Figure
from PIL import Image

from maskformer.sdaa.verdict import Thresholds
from maskformer.tools import compare_loss
from maskformer.tools.compare_loss import build_parser, main

CUDA = make_losses()
HONEST = add_device_noise(CUDA)
ALTERNATING = HONEST * np.tile([0.75, 1.25], 100)
COLLAPSED = np.where(np.arange(200) < 5, CUDA, 1e-6)
NAN_AT_THE_END = np.where(np.arange(200) < 150, HONEST, math.nan)
OTHER_ORDER = make_losses(seed=3) * 0.98
OTHER_WEIGHTS = np.where(np.arange(200) == 0, 18.0, HONEST * 0.999)


def compare(sdaa: Path, cuda: Path, *options: str, draw: bool = False) -> int:
    """Run the command; without ``draw`` its picture is empty, for speed."""
    picture = sdaa.parent / "compare.png"
    with pytest.MonkeyPatch.context() as patch:
        if not draw:
            patch.setattr(compare_loss, "draw_comparison", lambda *_: Figure(figsize=(1, 1)))
        return main(["--sdaa-log", str(sdaa), "--cuda-log", str(cuda), "--output", str(picture), *options])


def write_pair(folder: Path, sdaa: np.ndarray, iterations: Iterable[int] | None = None) -> tuple[Path, Path]:
    return write_tcappdll(folder / "sdaa", sdaa, iterations=iterations), write_tcappdll(folder / "cuda", CUDA)


def test_output_is_the_vendors_lines_an_empty_line_and_the_strict_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sdaa = write_tcappdll(tmp_path / "sdaa" / "log", [4.0, 2.125, 2.0])
    cuda = write_tcappdll(tmp_path / "cuda" / "log", [4.0, 2.0, 2.0])
    for folder in ("sdaa", "cuda"):
        write_settings(tmp_path / folder)
    assert compare(sdaa, cuda) == 0
    assert capsys.readouterr().out.splitlines() == [
        "MeanRelativeError: 0.020833333333333332",
        "MeanAbsoluteError: 0.041666666666666664",
        "Rule,mean_relative_error 0.020833333333333332",
        "pass mean_relative_error=0.020833333333333332 <= 0.05 or mean_absolute_error=0.041666666666666664 <= 0.0002",
        "",
        "strict: pass",
        "  measured: first losses (iteration 0): 4 and 4, 0.00% apart (limit 2.00%)",
        "  measured: mean of |s-c|/|c| over 3 losses: 2.08% (limit 10.00%)",
        "  measured: 95th percentile of |s-c|/|c|: 5.62% (limit 30.00%)",
        "  measured: signed mean of (s-c)/|c|: 2.08% (limit 5.00%)",
        "  measured: worst difference between means of 3 losses in a row (iterations 0 to 2): 1.56% (limit 10.00%)",
        "  not checked: variation: stretches have 2 steps from loss to loss, 10 are enough",
        "  not checked: data order by correlation: 3 losses are too few to correlate, 86 are enough",
        f"picture: {tmp_path / 'sdaa' / 'compare.png'}",
    ]


def test_honest_pair_passes_both_and_its_picture_is_not_blank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(*write_pair(tmp_path, HONEST), draw=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("pass ")
    assert lines[5] == "strict: pass"
    assert np.asarray(Image.open(tmp_path / "compare.png").convert("L")).std() > 10


@pytest.mark.parametrize(
    ("sdaa", "iterations", "reason"),
    [
        (COLLAPSED, None, "mean of |s-c|/|c|"),
        (ALTERNATING, None, "mean of |s-c|/|c|"),
        (NAN_AT_THE_END, None, "SDAA: 50 of 200 losses are NaN or infinite, the first at iteration 150"),
        (np.delete(HONEST, [50, 51]), np.delete(np.arange(200), [50, 51]), "SDAA: 1 gaps where iterations are missing"),
        (HONEST[:120], None, "different length: SDAA ends at iteration 119, CUDA at 199"),
        (HONEST, np.arange(200) - (np.arange(200) > 99), "SDAA: 1 iterations are there more than once"),
        (OTHER_ORDER, None, "different seed or data order"),
        (OTHER_WEIGHTS, None, "different seed, weights or data order"),
    ],
    ids=["collapsed", "alternating", "nan", "dropped_lines", "length", "duplicates", "order", "weights"],
)
def test_cheat_passes_the_vendors_rule_and_fails_the_strict_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sdaa: np.ndarray, iterations: np.ndarray | None, reason: str
) -> None:
    numbers = None if iterations is None else iterations.tolist()
    assert compare(*write_pair(tmp_path, sdaa, numbers)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("pass ")
    assert lines[5] == "strict: fail"
    assert any(line.startswith(f"  reason: {reason}") for line in lines), lines


def test_different_seed_beside_the_logs_fails_though_the_losses_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [write_metrics(tmp_path / name / "metrics.json", CUDA) for name in ("sdaa", "cuda")]
    write_settings(tmp_path / "sdaa", seed=7)
    write_settings(tmp_path / "cuda", seed=8)
    assert compare(*logs) == 1
    assert "strict: fail\n  reason: different SEED: 7 with SDAA, 8 with CUDA\n" in capsys.readouterr().out
    write_settings(tmp_path / "cuda", seed=7)
    assert compare(*logs) == 0


def test_loss_that_is_too_large_fails_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*write_pair(tmp_path, HONEST * 1.2)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("fail ")
    assert lines[5] == "strict: fail"


def test_vendors_fail_alone_is_a_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    off = np.where(np.arange(200) == 0, 1, 1.07) * CUDA
    assert compare(*write_pair(tmp_path, off), "--bias-tolerance", "0.1") == 1
    output = capsys.readouterr().out
    assert "\nfail mean_relative_error=" in output
    assert "\nstrict: pass\n" in output


@pytest.mark.parametrize("metrics_of", ["sdaa", "cuda"])
def test_tcappdll_log_and_metrics_of_one_training_agree_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics_of: str
) -> None:
    other = {"sdaa": "cuda", "cuda": "sdaa"}[metrics_of]
    logs = {
        metrics_of: write_metrics(tmp_path / metrics_of / "metrics.json", CUDA),
        other: write_tcappdll(tmp_path / other / "log", CUDA),
    }
    assert compare(logs["sdaa"], logs["cuda"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("MeanRelativeError: 0.0\nMeanAbsoluteError: 0.0\n")
    assert "mean of |s-c|/|c| over 10 losses: 0.00%" in output


def test_mixed_logs_of_different_length_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sdaa = write_metrics(tmp_path / "metrics.json", CUDA[:160])
    assert compare(sdaa, write_tcappdll(tmp_path / "log", CUDA)) == 1
    assert "reason: different length: SDAA ends at iteration 159, CUDA at 199" in capsys.readouterr().out


def test_rank_chooses_the_lines(tmp_path: Path) -> None:
    sdaa, cuda = write_pair(tmp_path, CUDA * 2)
    for log in (sdaa, cuda):
        write_tcappdll(log, CUDA, rank=1)
    assert compare(sdaa, cuda) == 1
    assert compare(sdaa, cuda, "--rank", "1") == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--window", "0"], "--window is 0, expected 1 or more.\n"),
        (["--mean-tolerance", "nan"], "--mean-tolerance is nan, expected 0 or more.\n"),
        (["--output", "a.jpg"], "--output a.jpg does not end in .png; expected a PNG file.\n"),
        (["--cuda-log", "sdaa"], "--sdaa-log and --cuda-log are both sdaa; expected the logs of two runs.\n"),
        (["--output", "no/a.png"], "Picture no/a.png cannot be written: No such file or directory; change --output.\n"),
        (["--sdaa-log", "no"], "Log no cannot be read: No such file or directory. Expected a text file.\n"),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pair(Path(), CUDA)
    assert main(["--sdaa-log", "sdaa", "--cuda-log", "cuda", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err == sentence
    assert not captured.out or "Picture" in sentence


def test_every_threshold_is_an_option_with_its_default_and_reason() -> None:
    options = {limit.name: limit.metadata["option"] for limit in fields(Thresholds)}
    args = build_parser().parse_args(["--sdaa-log", "a", "--cuda-log", "b"])
    assert Thresholds(**{name: getattr(args, name) for name in options}) == Thresholds()
    for name, value in {"first": 0.01, "window": 7, "correlation": 0.5}.items():
        given = build_parser().parse_args(["--sdaa-log", "a", "--cuda-log", "b", options[name], str(value)])
        assert getattr(given, name) == value


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    assert "exit code: 0 if both the vendor's rule and the strict verdict pass" in capsys.readouterr().out
