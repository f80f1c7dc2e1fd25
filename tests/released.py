"""What the released configuration files of both generations resolve to, as far as it is not a default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parent
Recipe = dict[str, Any]

FIRST: dict[str, Recipe] = json.loads((_TESTS / "reference/recipes.json").read_text())


def _read_second() -> dict[str, Recipe]:
    """Rows of the file are laid over each other: every recipe, the folder's Base-*, its others, the recipe itself."""
    rows: dict[str, Recipe] = json.loads((_TESTS / "reference2/recipes.json").read_text())
    recipes = {}
    for name in (name for name in rows if name.endswith(".yaml")):
        folder = "/".join(name.split("/")[:2])
        base = next(row for row in rows if row.startswith(f"{folder}/Base-"))
        of_leaves = {} if name == base else {**rows["every recipe but Base-*"], **rows[f"{folder}/*"], **rows[name]}
        recipes[f"mask2former/{name}"] = {**rows["every recipe"], **rows[base], **of_leaves}
    return recipes


SECOND = _read_second()
