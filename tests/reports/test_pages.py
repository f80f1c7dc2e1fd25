from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jinja2 import ChoiceLoader, DictLoader
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from maskformer.reports import pages

OpenPage = Callable[[Path], Chrome]


@pytest.fixture
def open_body(tmp_path: Path, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Chrome]:
    """Opens a page with a body of one's own."""

    def open_it(body: str) -> Chrome:
        source = '{% extends "base.html" %}{% block body %}' + body + "{% endblock %}"
        loader = ChoiceLoader([DictLoader({"body.html": source}), pages._TEMPLATES.loader])
        monkeypatch.setattr(pages._TEMPLATES, "loader", loader)
        pages.write_page(tmp_path / "page.html", "body.html", {"title": "Page"})
        return open_page(tmp_path / "page.html")

    return open_it


def column(driver: Chrome, index: int = 1) -> list[str]:
    return [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, f"tbody td:nth-child({index})")]


def table(*cells: str, rest: str = "") -> str:
    rows = "".join(f"<tr><td>{cell}</td></tr>" for cell in cells)
    return f'<table class="sortable"><thead><tr><th>heading</th></tr></thead><tbody>{rows}</tbody></table>{rest}'


@pytest.mark.parametrize(
    ("cells", "ascending"),
    [
        (["9.5", "10", "-3", "\u2212100", "+2"], ["\u2212100", "-3", "+2", "9.5", "10"]),
        (["1,200", "90 %", "1e1"], ["1e1", "90 %", "1,200"]),
        (["pole 10", "Pole 9", "\u00c4hre", "zebra"], ["\u00c4hre", "Pole 9", "pole 10", "zebra"]),
        (["7", "x", "30"], ["7", "30", "x"]),
    ],
    ids=["numbers", "separators", "names", "mixed"],
)
def test_a_click_on_a_heading_sorts_and_the_next_one_reverses(
    open_body: Callable[[str], Chrome], cells: list[str], ascending: list[str]
) -> None:
    driver = open_body(table(*cells))
    assert column(driver) == cells
    driver.find_element(By.CSS_SELECTOR, "th button").click()
    assert column(driver) == ascending
    driver.find_element(By.CSS_SELECTOR, "th button").click()
    assert column(driver) == ascending[::-1]


def test_missing_values_are_last_in_both_orders(open_body: Callable[[str], Chrome]) -> None:
    driver = open_body(table("", "5", "\u2013", "0", "-", "10"))
    button = driver.find_element(By.CSS_SELECTOR, "th button")
    button.click()
    assert column(driver) == ["0", "5", "10", "", "\u2013", "-"]
    button.click()
    assert column(driver) == ["10", "5", "0", "", "\u2013", "-"]


def test_sorting_is_reached_by_the_keyboard_and_told_to_screen_readers(open_body: Callable[[str], Chrome]) -> None:
    driver = open_body(table("2", "1"))
    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert column(driver) == ["1", "2"]
    assert driver.find_element(By.TAG_NAME, "th").get_attribute("aria-sort") == "ascending"


def test_a_cell_sorts_by_its_data_value(open_body: Callable[[str], Chrome]) -> None:
    rows = "".join(f'<tr><td data-value="{value}">{text}</td></tr>' for value, text in ((2e9, "2 GB"), (5e6, "5 MB")))
    driver = open_body(f'<table class="sortable"><thead><tr><th>size</th></tr></thead><tbody>{rows}</tbody></table>')
    driver.find_element(By.CSS_SELECTOR, "th button").click()
    assert column(driver) == ["5 MB", "2 GB"]


def test_texts_are_escaped(tmp_path: Path) -> None:
    pages.write_page(tmp_path / "page.html", "base.html", {"title": "<script>alert('1')</script>"})
    page = (tmp_path / "page.html").read_text()
    assert "<title>&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;</title>" in page


def test_a_name_that_is_no_utf_8_is_shown_as_far_as_it_can_be(tmp_path: Path) -> None:
    pages.write_page(tmp_path / "page.html", "base.html", {"title": b"caf\xe9.jpg".decode(errors="surrogateescape")})
    assert "<h1>caf\\udce9.jpg</h1>" in (tmp_path / "page.html").read_text()


def test_a_picture_is_made_smaller_where_it_is_to_be() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (100, 400, 3), dtype=np.uint8)
    small, whole = pages.picture_url(picture, longest_side=40), pages.picture_url(picture)
    assert small.startswith("data:image/jpeg;base64,")
    assert len(small) < len(whole) / 10
