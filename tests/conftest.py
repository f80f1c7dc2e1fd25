"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from tiny_model import SHAPES_CONFIG, TINY_OPTIONS, write_tiny_weights

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def samples_root() -> Path:
    """Real annotated images in the datasets' own layouts: $MASKFORMER_SAMPLES, else ../shared/samples."""
    root = Path(os.environ.get("MASKFORMER_SAMPLES", REPOSITORY.parent / "shared" / "samples"))
    if not root.is_dir():
        pytest.skip(f"no real samples in {root}; set MASKFORMER_SAMPLES")
    return root


def pytest_configure() -> None:
    """Small tensors gain nothing from threads, and threads that wait for each other cost much on a shared machine."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a device that is not there."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shapes_config() -> str:
    """The configuration file of the built-in dataset."""
    return SHAPES_CONFIG


@pytest.fixture(scope="session")
def tiny_options() -> list[str]:
    """KEY VALUE pairs that make the model of ``shapes_config`` tiny."""
    return TINY_OPTIONS


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of random weights of the tiny model."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    write_tiny_weights(path)
    return str(path)


@pytest.fixture(scope="session")
def _chromium() -> Iterator[webdriver.Chrome]:
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("no chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=Service(driver))
    yield chromium
    chromium.quit()


@pytest.fixture
def open_page(_chromium: webdriver.Chrome) -> Iterator[Callable[[str | Path], webdriver.Chrome]]:
    """Opens a file or an address in a real browser; at the end, its console must hold no error."""

    def open_in_browser(page: str | Path) -> webdriver.Chrome:
        _chromium.get(page.resolve().as_uri() if isinstance(page, Path) else page)
        return _chromium

    yield open_in_browser
    errors = [entry["message"] for entry in _chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
