from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_run import HOSTILE, run_facts, write_run
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from maskformer.reports import report
from maskformer.reports.run_folder import RunFolder, read_run
from maskformer.structures import InputError

OpenPage = Callable[[Path], Chrome]


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cells(driver: Chrome, table: str, column: int) -> list[str]:
    return [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, f"table.{table} tbody td:nth-child({column})")]


def heading(driver: Chrome, table: str, name: str) -> WebElement:
    buttons = driver.find_elements(By.CSS_SELECTOR, f"table.{table} th button")
    return next(button for button in buttons if button.text.split("\n")[0].strip() == name)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "first run"), write_run(folder / "second", seed=1)


class TestInABrowser:
    """The fixture ``open_page`` fails a test after which the console holds an error."""

    def test_classes_sort_by_any_column_with_missing_ones_last(
        self, two_runs: tuple[Path, Path], open_page: OpenPage
    ) -> None:
        driver = open_page(report.write_report(two_runs[0]))
        assert cells(driver, "classes", 1) == ["grass", HOSTILE, "sky", "pole 10", "pole 9", "never seen"]
        heading(driver, "classes", "IoU").click()
        scores = cells(driver, "classes", 8)
        assert scores[:-1] == sorted(scores[:-1], key=float)
        assert scores[-1] == "\N{EN DASH}"
        assert cells(driver, "classes", 1)[-1] == "never seen"
        heading(driver, "classes", "class").click()
        assert cells(driver, "classes", 1)[2:5] == ["never seen", "pole 9", "pole 10"]

    def test_slider_shows_picture_truth_and_prediction(self, two_runs: tuple[Path, Path], open_page: OpenPage) -> None:
        driver = open_page(report.write_report(two_runs[0]))
        figure = driver.find_element(By.CSS_SELECTOR, "figure.compare")
        picture, truth, prediction = figure.find_elements(By.TAG_NAME, "img")
        slider, stops = figure.find_element(By.TAG_NAME, "input"), figure.find_elements(By.TAG_NAME, "button")

        def hidden_on_the_right(layer: WebElement) -> str:
            return re.findall(r"[\d.]+%|[\d.]+px", layer.value_of_css_property("clip-path"))[1]

        assert [image.get_attribute("naturalWidth") for image in (picture, truth, prediction)] == ["64"] * 3
        assert hidden_on_the_right(prediction) == "0%"
        stops[0].click()
        assert [hidden_on_the_right(layer) for layer in (truth, prediction)] == ["100%", "100%"]
        stops[1].click()
        assert [hidden_on_the_right(layer) for layer in (truth, prediction)] == ["0%", "100%"]
        slider.send_keys(Keys.ARROW_RIGHT)
        assert hidden_on_the_right(prediction) == "99%"
        assert slider.get_attribute("aria-valuetext") == "truth"
        driver.find_element(By.XPATH, "//div[@class='show-all']/button[text()='picture']").click()
        places = {slider.get_attribute("value") for slider in driver.find_elements(By.CSS_SELECTOR, ".compare input")}
        assert places == {"0"}

    def test_confusions_of_a_class_are_found_by_its_name(
        self, two_runs: tuple[Path, Path], open_page: OpenPage
    ) -> None:
        driver = open_page(report.write_report(two_runs[0]))
        driver.find_element(By.CSS_SELECTOR, "input.filter").send_keys("POLE 9")
        rows = driver.find_elements(By.CSS_SELECTOR, "table.confusions tbody tr")
        shown = [row.text for row in rows if row.is_displayed()]
        assert 0 < len(shown) < len(rows)
        assert all("pole 9" in text for text in shown)

    def test_names_are_no_markup(self, two_runs: tuple[Path, Path], open_page: OpenPage, tmp_path: Path) -> None:
        run = Path(shutil.copytree(two_runs[0], tmp_path / "<b>run"))
        inference = run / "inference" / "garden_val"
        image = {"file_name": f"{HOSTILE}.jpg", "score": 1.0}
        pictures = json.loads((inference / "pictures.json").read_text())
        change_json(inference / "per_image.json", images=[image], measure=HOSTILE)
        change_json(inference / "pictures.json", worst=[{**pictures["worst"][0], "file_name": image["file_name"]}])
        change_json(inference / "evaluation.json", dataset=HOSTILE)
        change_json(run / "run.json", command=[HOSTILE], device=HOSTILE, changed={HOSTILE: [HOSTILE, HOSTILE]})
        other = Path(shutil.copytree(run, tmp_path / '"other'))
        driver = open_page(report.write_report(run, other))
        assert len(driver.find_elements(By.TAG_NAME, "script")) == 2
        assert not driver.find_elements(By.CSS_SELECTOR, "[onload], h1 b")
        assert "<b>run" in driver.find_element(By.TAG_NAME, "h1").text
        assert HOSTILE in cells(driver, "classes", 1)

    def test_differences_come_first_and_the_largest_of_them(
        self, two_runs: tuple[Path, Path], open_page: OpenPage
    ) -> None:
        driver = open_page(report.write_report(*two_runs))
        assert driver.find_element(By.TAG_NAME, "h2").text == "Differences"
        scores, classes, images = driver.find_elements(By.CSS_SELECTOR, "table.changes")
        assert scores.find_element(By.CSS_SELECTOR, "tbody tr").text.split() == [
            "PQ",
            "panoptic",
            "+0.0",
            "43.2",
            "43.2",
        ]
        rows = [row.text.rsplit(maxsplit=3)[1:] for row in classes.find_elements(By.CSS_SELECTOR, "tbody tr")]
        changes, ours, theirs = zip(*([float(cell.replace("\N{MINUS SIGN}", "-")) for cell in row] for row in rows))
        assert list(changes) == sorted(changes, key=abs, reverse=True)
        assert changes[0] == pytest.approx(ours[0] - theirs[0], abs=0.11)
        assert len(images.find_elements(By.CSS_SELECTOR, "tbody tr")) == 2 * 10
        keys = driver.find_element(By.CSS_SELECTOR, "table.keys tbody").text.split("\n")
        assert keys == ["SEED 0 1", "SOLVER.MAX_ITER 1000 1001"]
        chart = driver.find_element(By.CSS_SELECTOR, ".charts svg")
        assert len(chart.find_elements(By.CSS_SELECTOR, "polyline")) == 2

    def test_page_fits_a_phone(self, two_runs: tuple[Path, Path], open_page: OpenPage) -> None:
        driver = open_page(report.write_report(*two_runs))
        size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        finally:
            driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_needs_nothing_else(two_runs: tuple[Path, Path]) -> None:
    page = report.write_report(*two_runs).read_text()
    assert {address[:5] for address in re.findall(r"""(?:src|href)=["']?([^"'>]*)""", page) if address[0] != "#"} == {
        "data:"
    }
    assert not re.findall(r"https?:|url\(|@import|fetch\(", page)


def test_a_run_of_5000_pictures_and_150_classes_makes_less_than_20_mb(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(150)]
    run = write_run(tmp_path / "run", names=names, num_images=5000, num_pictures=20, picture_size=(480, 640))
    page = report.write_report(run)
    assert page.stat().st_size < 20e6
    assert page.read_text().count('src="data:image/jpeg;base64,') == 40 * 3


def test_missing_and_broken_files_are_left_out_with_a_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    inference = run / "inference" / "garden_val"
    (run / "run.json").unlink()
    (run / "metrics.json").write_text('{"iteration": 19, "total_loss": 3.0}\n{"iteration": 39, "total_')
    (inference / "pictures.json").unlink()
    change_json(inference / "per_image.json", version=2)
    content = report.describe(read_run(run))
    assert [note.split(" ")[0].rstrip(":") for note in content["notes"]] == [
        "run.json", "metrics.json", "inference/garden_val/per_image.json", "inference/garden_val/pictures.json"
    ]  # fmt: skip
    assert content["charts"][0].curves[0].last == 3.0
    report.write_report(run)


@pytest.mark.parametrize("name", ["metrics.json", "run.json"])
def test_a_run_before_its_first_evaluation_has_a_report(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run")
    shutil.rmtree(run / "inference")
    (run / name).unlink()
    assert report.write_report(run).is_file()
    assert any("--eval-only" in note for note in read_run(run).notes)


@pytest.mark.parametrize(
    "value", [None, 3, "text", [], [[]], [1, None, {}], {}, {"a": 1, "b": None, "c": [{}]}, -1e400]
)
def test_whatever_a_file_holds_there_is_a_page(tmp_path: Path, value: Any) -> None:
    run = write_run(tmp_path / "run")
    inference = run / "inference" / "garden_val"
    for file in (run / "run.json", *(inference / f"{name}.json" for name in ("evaluation", "per_image", "pictures"))):
        content = json.loads(file.read_text())
        file.write_text(json.dumps(dict.fromkeys(content, value) | {"version": 1}))
    (run / "metrics.json").write_text(
        "\n".join(map(json.dumps, [value, {"iteration": value}, {"iteration": 3, "lr": value}]))
    )
    assert report.write_report(run, run).is_file()


def test_a_file_that_is_no_json_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for file in run.rglob("*.json"):
        file.write_bytes(b"\xff\xfe{")
    notes = read_run(run).notes
    assert len(notes) == 3
    report.write_report(run)


@pytest.mark.parametrize("name", ["../../../outside.jpg", "/etc/passwd", "pictures", "pictures/link.jpg", "\0", 3])
def test_pictures_from_elsewhere_are_not_shown(tmp_path: Path, name: Any) -> None:
    run = write_run(tmp_path / "run", num_pictures=1)
    inference = run / "inference" / "garden_val"
    shutil.copy(next(inference.glob("pictures/*.jpg")), tmp_path / "outside.jpg")
    (inference / "pictures" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    change_json(inference / "pictures.json", worst=[{"file_name": "a", "score": 1.0, "picture": name}], best=[])
    assert "src=" not in report.write_report(run).read_text()


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_pictures=1)
    next(run.rglob("*_truth.jpg")).write_bytes(b"no picture")
    assert report.write_report(run).read_text().count("src=") == 5


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: folder.mkdir(), lambda folder: folder.touch()])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = tmp_path / "no run"
    make(folder)
    with pytest.raises(InputError, match=r"no run.*metrics\.json"):
        report.write_report(folder)


def test_curves_of_resumed_runs_go_on_where_the_last_one_began(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"iteration": 19, "total_loss": 4.0},
        {"iteration": 39, "total_loss": 3.0},
        {"iteration": 59, "total_loss": float("nan")},
        {"iteration": 39, "total_loss": 2.5},
        {"iteration": 39, "sem_seg/mIoU": 50.0},
        {"sem_seg/mIoU": 77.0},
        {"iteration": 59, "total_loss": float("inf"), "sem_seg/IoU-sky": 1},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    run = read_run(tmp_path)
    assert run.metrics["total_loss"] == [(19, 4.0), (39, 2.5)]
    assert run.metrics["sem_seg/mIoU"] == [(39, 50.0)]
    assert any("total_loss" in note and "1 value" in note for note in run.notes)
    titles = [chart.title for chart in report.describe(run)["charts"]]
    assert titles == ["Total loss", "Semantic scores"]


def test_scores_of_several_datasets_have_a_chart_each(tmp_path: Path) -> None:
    line = {"iteration": 1, "garden_a/sem_seg/mIoU": 1.0, "garden/b/segm/AP": 2.0, "sem_seg/IoU-a/b": 3.0}
    run = RunFolder(tmp_path, metrics={key: [(1, value)] for key, value in line.items()})
    charts = report.describe(run)["charts"]
    assert [(chart.title, chart.curves[0].name) for chart in charts] == [
        ("Semantic scores, garden_a", "mIoU"), ("Instance scores, garden/b", "AP")
    ]  # fmt: skip


def test_scores_of_the_averaged_weights_follow_those_of_the_weights(
    two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(two_runs[0], tmp_path / "run"))
    shutil.copytree(folder / "inference", folder / "ema" / "inference")
    run = read_run(folder)
    run.metrics = {f"{place}sem_seg/mIoU": [(1, 1.0)] for place in ("ema/", "")}
    content = report.describe(run)
    weights, averaged = (evaluation["dataset"] for evaluation in content["evaluations"])
    assert weights == "garden_val" and averaged.startswith("garden_val (") and "average" in averaged
    assert [chart.title for chart in content["charts"]] == ["Semantic scores", "Semantic scores, ema"]


def test_tables_of_sizes_boundaries_and_confusions_hold_the_numbers_of_the_files(
    two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """Of 200 true pixels of grass, 150 are found and 30 taken for sky; 20 of the ignored ones become grass."""
    runs = [Path(shutil.copytree(run, tmp_path / run.name)) for run in two_runs]
    file = runs[0] / "inference" / "garden_val" / "evaluation.json"
    counts = [[0, 0, 150], [0, 1, 30], [0, 2, 20], [1, 1, 70], [2, 0, 20]]
    change_json(
        file,
        confusion={"unit": "pixels", "classes": ["grass", "sky"], "counts": counts},
        by_size=[
            {"measure": "PQ", "size": size, "objects": n, "score": s} for size, n, s in (("s", 3, 10.5), ("l", 0, None))
        ],
        boundary={"mIoU": 60.0, "mBoundaryIoU": 45.5},
    )
    change_json(
        runs[1] / "inference" / "garden_val" / "evaluation.json",
        by_size=[{"measure": "PQ", "size": "s", "objects": 3, "score": 8.0}],
        boundary={"mIoU": 58.0},
    )
    (evaluation,) = report.describe(read_run(runs[0]), read_run(runs[1]))["evaluations"]
    grid = evaluation["confusion"]["grid"]
    assert grid["columns"] == ["grass", "sky", "none"]
    assert [(name, [share for _, share, _ in row]) for name, row in grid["rows"]] == [
        ("grass", [75, 15, 10]),
        ("sky", [0, 100, 0]),
        ("none", [100, 0, 0]),
    ]
    assert [is_right for _, row in grid["rows"] for _, _, is_right in row] == np.eye(3, dtype=bool).ravel().tolist()
    assert evaluation["confusion"]["pairs"] == [
        ("grass", "sky", 15, 30),
        ("grass", "none", 10, 20),
        ("none", "grass", 100, 20),
    ]
    small, large = {"score": 10.5, "objects": 3, "change": 2.5}, {"score": None, "objects": 0, "change": None}
    assert evaluation["by_size"] == {"sizes": ["s", "l"], "rows": [("PQ", [small, large])]}
    assert evaluation["boundary"] == [("mIoU", 60.0, 58.0), ("mBoundaryIoU", 45.5, None)]


def test_a_key_that_one_run_left_alone_has_its_default(tmp_path: Path) -> None:
    ours = run_facts()
    theirs = {**ours, "changed": {"SEED": [-1, 0], "SOLVER.BASE_LR": [1e-4, 1e-3], "OUTPUT_DIR": ["output", "b"]}}
    rows = report.describe(RunFolder(tmp_path, ours), RunFolder(tmp_path / "b", theirs))["differing_keys"]
    assert report.describe(RunFolder(tmp_path, ours), RunFolder(tmp_path / "b"))["differing_keys"] is None
    assert rows == [
        ("DATASETS.TRAIN", '["garden_train"]', "[]"),
        ("SOLVER.BASE_LR", "0.0001", "0.001"),
        ("SOLVER.MAX_ITER", "1000", "40000"),
    ]


def test_a_dataset_that_only_the_other_run_measured_is_told(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(two_runs[1], tmp_path / "other"))
    change_json(other / "inference" / "garden_val" / "evaluation.json", dataset="park_val")
    content = report.describe(read_run(two_runs[0]), read_run(other))
    assert [note for note in content["notes"] if "other" in note and "park_val" in note]
    assert [evaluation["is_compared"] for evaluation in content["evaluations"]] == [False]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (11525, "3 h 12 min"),
        (3600, "1 h 0 min"),
        (190_000, "2 d 4 h"),
    ],
)
def test_times_are_told_in_two_units(seconds: float, text: str) -> None:
    assert report.format_seconds(seconds) == text
