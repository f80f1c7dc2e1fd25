"""The demo's pictures and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from maskformer.reports import gallery
from maskformer.reports.tasks import ClassTable

CLASSES = ClassTable(names=("ball", "grass"), colors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))


def make_record(folder: Path) -> dict[str, Any]:
    Image.new("RGB", (20, 16), (128, 128, 128)).save(folder / "image.png")
    ids = np.zeros((16, 20, 3), dtype=np.uint8)
    ids[:8] = (5, 1, 0)  # 5 + 256
    Image.fromarray(ids).save(folder / "ids.png")
    segments = [{"id": 261, "isthing": False, "category_id": 1}]
    names = {"file_name": str(folder / "image.png"), "pan_seg_file_name": str(folder / "ids.png")}
    return {**names, "segments_info": segments}


def test_row_has_a_picture_for_each_heading_and_blanks_for_missing_results(tmp_path: Path) -> None:
    scores = torch.zeros(2, 16, 20)
    scores[1] = 1
    row = gallery.make_row(make_record(tmp_path), lambda image: {"sem_seg": scores}, CLASSES)
    assert [picture.shape for picture in row] == [(48, 60, 3)] * len(gallery.HEADINGS)
    image, annotation, panoptic, semantic, instance = row
    assert np.abs(image.astype(int) - 128).max() <= 1
    assert annotation[15, 50].argmax() == 1
    assert annotation[40, 50].tolist() == [128, 128, 128]
    assert panoptic.min() == instance.min() == 255
    assert semantic[40, 50].argmax() == 1


def test_sheet_holds_all_rows_under_the_headings() -> None:
    pictures = [np.full((30, 40, 3), 10 * index, dtype=np.uint8) for index in range(5)]
    row = gallery.join_row(pictures)
    assert row.shape == (30, 5 * 40 + 4 * gallery.GAP, 3)
    sheet = gallery.make_sheet([row, row])
    assert sheet.shape == (gallery.HEADING_HEIGHT + 2 * 30 + gallery.GAP, row.shape[1], 3)
    np.testing.assert_array_equal(sheet[-30:], row)
    assert sheet[: gallery.HEADING_HEIGHT].min() < 100  # something is written there


def test_losses_of_a_resumed_training_are_told_once(tmp_path: Path) -> None:
    entries = [
        {"iteration": 19, "total_loss": 3.0, "lr": 0.1},
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 19, "total_loss": 2.5},
        {"iteration": 59, "sem_seg/mIoU": 80.0},
        {"iteration": 79, "total_loss": None},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, entries)))
    assert gallery.read_losses(tmp_path / "metrics.json") == [(19, 2.5), (39, 2.0)]


def test_page_needs_no_other_file(tmp_path: Path, open_page: Callable[[Path], Chrome]) -> None:
    picture = np.zeros((10, 10, 3), dtype=np.uint8)
    curve = gallery.draw_curve([(0, 4.0), (20, 2.0)])
    scores = [("panoptic", "PQ", 65.432)]
    gallery.write_gallery(tmp_path / "index.html", "Title <1>", "Summary.", scores, [picture, picture], curve)
    page = (tmp_path / "index.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert page.count("src=") == 3
    assert "http" not in page
    driver = open_page(tmp_path / "index.html")
    assert driver.find_element(By.TAG_NAME, "h1").text == "Title <1>"
    assert driver.find_element(By.CSS_SELECTOR, ".scores div").text.split("\n") == ["65.4", "PQ, panoptic"]
    assert [image.get_attribute("naturalHeight") for image in driver.find_elements(By.TAG_NAME, "img")][:2] == [
        "10"
    ] * 2


def test_index_shows_files_of_any_name(tmp_path: Path, open_page: Callable[[Path], Chrome]) -> None:
    names = ["a b.png", "100%#1?.png", "<b>\u00e9'\".png", "javascript:alert(1).png"]
    for name in names:
        Image.new("RGB", (20, 16)).save(tmp_path / name)
    gallery.write_index(tmp_path / "predictions.html", "Predictions", [tmp_path / name for name in names])
    driver = open_page(tmp_path / "predictions.html")
    images = driver.find_elements(By.TAG_NAME, "img")
    assert [caption.text for caption in driver.find_elements(By.TAG_NAME, "figcaption")] == names
    assert [image.get_attribute("naturalWidth") for image in images] == ["20"] * len(names)
    assert all(link.get_attribute("href").startswith("file:") for link in driver.find_elements(By.TAG_NAME, "a"))
