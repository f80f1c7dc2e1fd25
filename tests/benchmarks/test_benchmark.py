"""Ratios, targets, the table of cases, the report and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import definitions
from benchmarks.__main__ import main, select_cases
from benchmarks.cases import build_cases
from benchmarks.plot import write_pictures
from benchmarks.report import (
    NODE_NEEDS,
    describe_results,
    format_bytes,
    format_loading,
    format_seconds,
    format_table,
    write_html,
)
from benchmarks.structures import MEMORY, SECONDS, Case, CaseResult, Contender, Outcome, Target, check_cases, compare
from benchmarks.workloads.breakdown import classify_operation
from benchmarks.workloads.inference import draw_class_logits, draw_mask_logits
from benchmarks.workloads.models import draw_segment_map


def outcome(seconds: list[float], memory: float, **numbers: float) -> Outcome:
    return Outcome([{SECONDS: value, MEMORY: memory, **numbers} for value in seconds], threads=1)


def make_result(targets: tuple[Target, ...] = (), **options) -> CaseResult:
    case = Case("work", "group", (Contender("ours", "m:f"), Contender("peer", "m:g")), targets, **options)
    outcomes = {"ours": outcome([1.0, 2.0, 6.0], 3e8, share=0.2), "peer": outcome([4.0, 4.0, 3.0], 6e8)}
    return CaseResult(case, "native", outcomes)


def test_a_ratio_is_of_medians_with_the_spread_of_rounds_and_of_minima():
    ratio = make_result().ratio("peer")
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.25, 2.0)
    assert ratio.of_minima == pytest.approx(1 / 3)


def test_a_ratio_to_nothing_has_no_value():
    assert compare([1.0], []) is None and compare([1.0], [0.0]) is None


def test_targets_are_judged_by_ratio_or_by_the_number_itself():
    targets = (
        Target(SECONDS, 0.5, "peer"),
        Target(MEMORY, 0.49, "peer"),
        Target(MEMORY, 3e8),
        Target("share", 0.1),
        Target("unknown", 1),
    )
    verdicts = make_result(targets).verdicts()
    assert [verdict.met for verdict in verdicts] == [True, False, True, False, None]
    assert [verdict.value for verdict in verdicts] == [0.5, 0.5, 3e8, 0.2, None]


def test_the_table_has_a_row_for_each_other_contender_with_its_targets():
    text = format_table([make_result((Target(SECONDS, 0.5, "peer"), Target("share", 0.1)))])
    row = " ".join(text.splitlines()[-1].split())
    assert row.startswith("work 2.00 s peer 4.00 s 0.50 (0.25..2.00) 0.33 300 MB / 600 MB 0.50")
    assert row.endswith("time <= 0.5: met; share is 0.2, <= 0.1: missed")


def test_loading_is_told_beside_what_a_node_needs():
    assert NODE_NEEDS.keys() <= {case.name for case in build_cases()}
    result = make_result()
    assert format_loading([result]) == ""
    name = "data loading: ADE20K semantic"
    result.case = replace(result.case, name=name)
    result.outcomes["ours"] = outcome([0.010, 0.0125, 0.1], 0)
    assert format_loading([result]) == f"{name}: eight H100 train 1320 images a second, a core loads 80: 17 cores"


def test_a_failed_contender_is_in_the_table():
    result = make_result()
    result.outcomes["peer"] = Outcome(error="RuntimeError: no")
    assert "failed" in format_table([result]).splitlines()[-1]


def test_sizes_and_times_have_units():
    assert [format_bytes(size) for size in (2.5e9, 3e6, None)] == ["2.50 GB", "3 MB", "failed"]
    assert [format_seconds(value) for value in (1.234, 0.01234)] == ["1.23 s", "12.3 ms"]


def test_the_report_holds_every_sample_and_is_json():
    report = describe_results([make_result((Target(SECONDS, 0.5, "peer"),))], {"cores": "2"}, {"quick": False})
    case = json.loads(json.dumps(report))["cases"][0]
    assert [sample[SECONDS] for sample in case["outcomes"]["ours"]["samples"]] == [1.0, 2.0, 6.0]
    assert case["ratios"]["peer"][SECONDS]["value"] == 0.5 and case["verdicts"][0]["met"] is True


def test_pictures_show_ratios_and_curves(tmp_path: Path):
    curve = [make_result(curve="work by size", position=position) for position in (1.0, 2.0)]
    written = write_pictures([make_result((Target(SECONDS, 0.4, "peer"),)), *curve], tmp_path)
    assert {path.name for path in written} == {f"{a}_{b}.png" for a in ("ratios", "growth") for b in ("time", "memory")}
    assert all(path.stat().st_size > 5000 for path in written)


def test_the_page_shows_the_table_and_the_pictures_beside_it(tmp_path: Path, open_page):
    results = [make_result((Target(SECONDS, 0.4, "peer"),))]
    pictures = write_pictures(results, tmp_path)
    write_html(results, {"processor": "<b>fast</b>"}, pictures, tmp_path / "benchmark.html")
    driver = open_page(tmp_path / "benchmark.html")
    assert "<b>fast</b>" in driver.find_element("tag name", "p").text
    assert driver.find_element("css selector", "tbody td").text == results[0].case.name
    images = driver.find_elements("tag name", "img")
    assert len(images) == len(pictures) == 2
    driver.execute_script("arguments[0].scrollIntoView()", images[0])
    assert int(images[0].get_attribute("naturalWidth")) > 500


def test_every_case_names_set_ups_that_exist_and_targets_that_can_be_judged():
    for quick in (False, True):
        for case in build_cases(quick):
            assert case.group and case.rounds >= 1
            for each in case.contenders:
                module, _, function = each.setup.partition(":")
                assert callable(getattr(__import__(module, fromlist=[function]), function)), each.setup
                json.dumps(each.options)


def test_cases_of_one_name_or_with_an_unknown_peer_are_refused():
    case = make_result().case
    with pytest.raises(AssertionError, match="two cases"):
        check_cases([case, case])
    with pytest.raises(AssertionError, match="no contender stranger"):
        check_cases([Case("work", "group", case.contenders, (Target(SECONDS, 1, "stranger"),))])


def test_cases_are_chosen_by_group_or_by_name():
    cases = build_cases()
    chosen = select_cases(cases, ["losses", "memory: Mapillary semantic 2048 x 2731"])
    assert {case.group for case in chosen} == {"losses", "memory"} and len(chosen) == 3
    assert select_cases(cases, []) == cases


def test_an_unknown_name_is_answered_with_the_groups(capsys: pytest.CaptureFixture):
    assert main(["--only", "loses"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'losses'?" in error and "training" in error and error.count("\n") == 1


def test_operations_are_sorted_into_parts():
    names = ("aten::mkldnn_convolution", "aten::addmm", "aten::native_group_norm", "aten::_softmax", "aten::copy_")
    parts = ["convolution", "matrix products", "normalisation", "attention", "copies and other"]
    assert [classify_operation(name) for name in names] == parts


def test_made_up_predictions_keep_the_segments_that_they_shall():
    class_logits, mask_logits = draw_class_logits(30, 40, kept=20), draw_mask_logits(30, 20, (48, 64))
    result = definitions.panoptic_segmentation(
        class_logits, mask_logits, thing_class_ids=range(40), object_mask_threshold=0.8, overlap_threshold=0.8
    )
    assert len(result.segments_info) == 20


def test_a_drawn_segment_map_has_all_segments():
    assert torch.equal(draw_segment_map(200, (256, 256), 0).unique(), torch.arange(1, 201, dtype=torch.uint8))


@pytest.mark.slow
def test_a_quick_run_measures_every_kind_of_case(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("transformers", reason="a test-only dependency: pip install -e .[test]")
    names = [
        "parts of the training step R50 512 x 512",
        "matcher and losses 512 x 512, 10 masks",
        "optimizer and clipping, 41 M parameters",
        "instance inference R50 800 x 1216",
        "losses by masks: 10",
    ]
    words = ["--quick", "--rounds", "1", "--output-dir", str(tmp_path), "--device", "cpu", "--only", *names]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "failed" not in captured.out + captured.err
    assert "share outside products" in captured.out
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert [case["name"] for case in report["cases"]] == names
    assert torch.__version__.startswith(report["machine"]["torch"]) and report["settings"]["quick"] is True
    assert (tmp_path / "ratios_time.png").exists() and (tmp_path / "benchmark.html").exists()
