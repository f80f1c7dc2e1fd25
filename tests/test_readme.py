"""What the README names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from maskformer.config import load_config

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LINKS = sorted(set(re.findall(r"\]\((?!https?:)([^)#\s]+)\)", TEXT)))
CONFIGS = sorted(set(re.findall(r"(?:configs/)?([\w-]+/[\w-]+\.yaml)", TEXT)))
PAGES = TEXT + (REPOSITORY / "docs" / "sdaa.md").read_text(encoding="utf-8")
MODULES = sorted(set(re.findall(r"python -m (maskformer[\w.]+)", PAGES)))


@pytest.mark.parametrize("link", LINKS)
def test_linked_file_exists(link):
    assert (REPOSITORY / link).exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_named_configuration_loads(name):
    assert load_config(str(REPOSITORY / "configs" / name)).MODEL.META_ARCHITECTURE == "MaskFormer"


@pytest.mark.parametrize("module", MODULES)
def test_named_command_exists(module):
    path = REPOSITORY.joinpath(*module.split("."))
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_commands_of_the_makefile_are_its_targets():
    targets = re.findall(r"^([a-z_]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`?make ([a-z_]+)`?", TEXT)) <= set(targets)


def test_links_configurations_and_commands_are_found_in_the_text():
    assert len(LINKS) >= 5 and len(CONFIGS) >= 4 and len(MODULES) >= 2
