"""What is not in the logs, and what the configurations beside them say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from loss_cases import make_curve, write_settings

from maskformer.sdaa.verdict import StrictVerdict, check_logs, check_presence, check_settings
from maskformer.structures import InputError

WHOLE = make_curve([1.0] * 6)


def test_two_whole_logs_have_nothing_wrong() -> None:
    assert not [*check_logs(WHOLE, WHOLE), *check_presence(WHOLE, WHOLE)]


def test_losses_that_are_not_finite_are_counted() -> None:
    broken = make_curve([1.0, 1.0, math.nan, math.inf, 1.0, 1.0])
    assert list(check_logs(broken, WHOLE)) == ["SDAA: 2 of 6 losses are NaN or infinite, the first at iteration 2"]


def test_gap_is_found_though_both_logs_have_it() -> None:
    gap = make_curve([1.0] * 5, [0, 1, 2, 4, 5])
    sentence = "1 gaps where iterations are missing, the first between 2 and 4 (there is a loss every 1)"
    assert list(check_logs(gap, gap)) == [f"SDAA: {sentence}", f"CUDA: {sentence}"]


def test_iteration_that_is_there_twice_is_found() -> None:
    twice = make_curve([1.0] * 7, [0, 1, 2, 2, 3, 4, 5])
    sentence = "CUDA: 1 iterations are there more than once, the first is 2 (a resumed run?)"
    assert list(check_logs(WHOLE, twice)) == [sentence]


def test_end_of_metrics_may_come_early_but_not_late() -> None:
    early = make_curve([1.0] * 4, [19, 39, 59, 69], span=20)
    assert not list(check_logs(early, early))
    late = make_curve([1.0] * 4, [19, 39, 59, 99], span=20)
    assert len(list(check_logs(late, late))) == 2


def test_different_length_is_found() -> None:
    short = make_curve([1.0] * 4)
    assert list(check_logs(WHOLE, short)) == ["different length: SDAA ends at iteration 5, CUDA at 3"]
    assert not list(check_presence(WHOLE, short))  # said once


def test_iterations_of_one_log_only_are_found_in_either_direction() -> None:
    sparse = make_curve([1.0] * 3, [1, 3, 5])
    sentence = "3 iterations of the other log are missing, the first is 0"
    assert list(check_presence(sparse, WHOLE)) == [f"SDAA: {sentence}"]
    assert list(check_presence(WHOLE, sparse)) == [f"CUDA: {sentence}"]


def check_folders(tmp_path: Path) -> StrictVerdict:
    return check_settings(tmp_path / "sdaa" / "log", tmp_path / "cuda" / "log")


def test_equal_settings_have_nothing_wrong(tmp_path: Path) -> None:
    write_settings(tmp_path / "sdaa")
    write_settings(tmp_path / "cuda")
    assert check_folders(tmp_path) == StrictVerdict()


def test_different_settings_are_named_with_both_values(tmp_path: Path) -> None:
    write_settings(tmp_path / "sdaa", seed=7, batch=2, iterations=100)
    write_settings(tmp_path / "cuda", seed=8, batch=4)
    text = (tmp_path / "cuda" / "config.yaml").read_text()
    (tmp_path / "cuda" / "config.yaml").write_text(text.replace("shapes", "coco"))
    assert check_folders(tmp_path).reasons == [
        "different SEED: 7 with SDAA, 8 with CUDA",
        "different SOLVER.IMS_PER_BATCH: 2 with SDAA, 4 with CUDA",
        "different SOLVER.MAX_ITER: 100 with SDAA, 200 with CUDA",
        "different DATASETS.TRAIN: ['shapes_panoptic_train'] with SDAA, ['coco_panoptic_train'] with CUDA",
    ]


def test_seed_that_is_not_set_fails_even_if_both_say_so(tmp_path: Path) -> None:
    write_settings(tmp_path / "sdaa", seed=-1)
    write_settings(tmp_path / "cuda", seed=-1)
    paths = (tmp_path / name / "config.yaml" for name in ("sdaa", "cuda"))
    reasons = [f"SEED is not set in {path}, so the two runs cannot be compared" for path in paths]
    assert check_folders(tmp_path).reasons == reasons


def test_absent_settings_are_told_and_fail_nothing(tmp_path: Path) -> None:
    write_settings(tmp_path / "sdaa")
    verdict = check_folders(tmp_path)
    assert verdict.passed
    assert verdict.unchecked == [f"seed and settings: there is no {tmp_path / 'cuda' / 'config.yaml'}"]


def test_one_configuration_beside_both_logs_shows_a_missing_seed_and_no_difference(tmp_path: Path) -> None:
    logs = tmp_path / "a.log", tmp_path / "b.log"
    config = tmp_path / "config.yaml"
    assert check_settings(*logs) == StrictVerdict(unchecked=[f"seed and settings: there is no {config}"])
    write_settings(tmp_path, seed=-1)
    verdict = check_settings(*logs)
    assert verdict.reasons == [f"SEED is not set in {config}, so the two runs cannot be compared"]
    assert verdict.unchecked == [f"seed and settings: both logs are beside one {config}, which is of one run"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("a: [", "is not the plain YAML that Detectron2 writes"), ("- 1", "holds no keys and values")],
)
def test_settings_that_are_no_yaml_are_a_mistake(tmp_path: Path, content: str, sentence: str) -> None:
    write_settings(tmp_path / "sdaa")
    (tmp_path / "sdaa" / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=f"sdaa/config.yaml {sentence}"):
        check_folders(tmp_path)


def test_settings_run_no_code(tmp_path: Path) -> None:
    write_settings(tmp_path / "sdaa")
    (tmp_path / "sdaa" / "config.yaml").write_text(f"SEED: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]")
    with pytest.raises(InputError, match="could not determine a constructor"):
        check_folders(tmp_path)
    assert not (tmp_path / "made").exists()
