"""The page of tools/app, with a real model, in a real browser."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from maskformer.config import load_config
from maskformer.predictor import Predictor
from maskformer.structures import BadImageError
from maskformer.tools import app

PATIENCE = 30  # seconds


@pytest.fixture
def predictor(shapes_config: str, tiny_options: list[str], tiny_weights: str) -> Predictor:
    words = ["--weights", tiny_weights, "--config-file", shapes_config, "--device", "cpu", *tiny_options]
    return app.load_model(app.build_parser().parse_args(words))


@pytest.fixture
def picture(tmp_path: Path) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((80, 64), Image.Resampling.BILINEAR)
    image.save(tmp_path / "my picture.png")
    return np.asarray(image)


@pytest.fixture
def address(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page, served from this process; whoever it calls must be on this machine."""
    called, connect = set(), socket.socket.connect

    def watched(self: socket.socket, target: Any) -> None:
        called.add(target[0] if isinstance(target, tuple) else target)
        connect(self, target)

    monkeypatch.setattr(socket.socket, "connect", watched)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = app.build_page(predictor)
    app.launch(page, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    page.close()
    assert called <= {"127.0.0.1", "localhost", "::1"}


class Page:
    """What a person does on the page and sees there."""

    def __init__(self, browser: WebDriver):
        self.browser = browser

    def wait(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, PATIENCE, ignored_exceptions=[Exception]).until(lambda _: condition())

    def find(self, selector: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def drop(self, file: Path) -> None:
        self.wait(lambda: self.find("#picture input[type=file]"))
        self.find("#picture input[type=file]")[0].send_keys(str(file))

    def clear(self) -> None:
        self.find("#picture button[aria-label=Clear], #picture button[aria-label='Remove this file']")[0].click()

    @property
    def text(self) -> str:
        return self.find("body")[0].text

    @property
    def result(self) -> str:
        """Where the browser has the drawn picture from; "" if there is none."""
        pictures = self.find("#result img")
        return pictures[0].get_attribute("src") if pictures else ""

    def wait_for_another(self, result: str) -> str:
        self.wait(lambda: self.result not in ("", result))
        return self.result

    @property
    def headings(self) -> list[str]:
        return [cell.text for cell in self.find("#found thead th") if cell.text]

    def set(self, slider: str, value: str) -> None:
        number = self.find(f"#{slider} input[type=number]")[0]
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys(value, Keys.ENTER)


@pytest.mark.slow
def test_a_picture_is_dropped_looked_at_and_drawn_in_other_ways(
    tmp_path: Path, picture: np.ndarray, address: str, open_page: Callable[[str], WebDriver]
) -> None:
    page = Page(open_page(address))
    page.drop(tmp_path / "my picture.png")
    panoptic = page.wait_for_another("")
    page.wait(lambda: page.headings == ["class", "score", "pixels", "of the picture"])
    page.set("transparency", "90")
    clear = page.wait_for_another(panoptic)
    page.set("threshold", "0.99")
    strict = page.wait_for_another(clear)
    page.find("#task input[value=instance]")[0].click()
    instances = page.wait_for_another(strict)
    page.find("#task input[value=semantic]")[0].click()
    page.wait_for_another(instances)
    page.wait(lambda: page.headings == ["class", "pixels", "of the picture"])
    requests = page.browser.execute_script("return performance.getEntries().map(entry => entry.name)")
    assert [name for name in requests if name.startswith("http") and not name.startswith(address)] == []


@pytest.mark.slow
def test_a_broken_picture_is_told_on_the_page_and_the_next_one_is_drawn(
    tmp_path: Path, picture: np.ndarray, address: str, open_page: Callable[[str], WebDriver]
) -> None:
    (tmp_path / "<b>broken.png").write_bytes((tmp_path / "my picture.png").read_bytes()[:200])
    page = Page(open_page(address))
    page.drop(tmp_path / "my picture.png")
    page.wait_for_another("")
    page.clear()
    page.wait(lambda: not page.result)
    page.drop(tmp_path / "<b>broken.png")
    page.wait(lambda: "expected a complete image file" in page.text)
    assert "broken.png" in page.text and "/tmp" not in page.text and not page.result
    page.clear()
    page.drop(tmp_path / "my picture.png")
    page.wait_for_another("")


def test_the_sliders_begin_where_the_configuration_does(predictor: Predictor) -> None:
    assert app.thresholds_of(predictor) == {"panoptic": 0.0, "instance": 0.5, "semantic": 0.0}


def test_the_table_names_what_was_found_the_largest_first(predictor: Predictor, picture: np.ndarray) -> None:
    for task, headings in (("instance", 4), ("panoptic", 4), ("semantic", 3)):
        result = app.segment(predictor, picture, task, 0.0)
        table = app.list_found(result)
        assert len(table["headers"]) == headings and {len(row) for row in table["data"]} == {headings}
        areas = [int(row[-2].replace(",", "")) for row in table["data"]]
        assert areas == sorted((segment.area for segment in result.segments), reverse=True)
        assert table["data"][0][-1] == f"{100 * areas[0] / (64 * 80):.1f} %"


def test_transparency_goes_from_colours_alone_to_the_picture_alone(predictor: Predictor) -> None:
    black = np.zeros((64, 80, 3), dtype=np.uint8)
    result = app.segment(predictor, black, "semantic", 0.0)
    assert app.draw(result, 0).max() > 0 and app.draw(None, 0) is None
    centre = {value: app.draw(result, value).astype(float).mean() for value in (0, 50, 100)}
    assert centre[0] > centre[50] > centre[100]


def test_too_little_memory_is_a_sentence(
    predictor: Predictor, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(predictor.model, "forward", exhaust)
    with pytest.raises(BadImageError, match="more memory than there is"):
        app.segment(predictor, picture, "semantic", 0.0)


def test_mistakes_end_in_a_sentence(
    tmp_path: Path,
    tiny_weights: str,
    shapes_config: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert app.main(["--weights", str(tmp_path / "model.pth")]) == 2
    assert f"{tmp_path / 'model.pth'} does not exist" in capsys.readouterr().err
    assert app.main(["--weights", str(tmp_path / "model.pth"), "--config-file", shapes_config]) == 2
    assert f"{tmp_path / 'model.pth'}" in capsys.readouterr().err
    monkeypatch.setattr(app, "gr", None)
    assert app.main(["--weights", tiny_weights, "--config-file", shapes_config]) == 2
    assert "pip install" in capsys.readouterr().err


def test_configuration_beside_the_weights_is_taken(
    tmp_path: Path, shapes_config: str, tiny_options: list[str], tiny_weights: str
) -> None:
    (tmp_path / "config.yaml").write_text(load_config(shapes_config, tiny_options).dump())
    (tmp_path / "model_final.pth").write_bytes(Path(tiny_weights).read_bytes())
    for weights in (tmp_path / "model_final.pth", tmp_path):
        args = app.build_parser().parse_args(["--weights", str(weights), "--device", "cpu"])
        assert list(app.thresholds_of(app.load_model(args))) == ["panoptic", "instance", "semantic"]


def test_a_port_that_is_taken_is_a_sentence(predictor: Predictor) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(app.InputError, match=str(port)):
            app.serve(app.build_page(predictor), "127.0.0.1", port)
