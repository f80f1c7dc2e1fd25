"""Parameter names of another layout and ours, as pairs of templates that are read in both directions."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\{(?:(\d+)([+-]))?([a-z])\}")


class NameMap:
    """Translates names between another layout and ours.

    Args:
        pairs: (theirs, ours), beginnings of names. ``{i}`` stands for a number, ``{2+i}`` and ``{3-i}`` for numbers
            that follow from it. Of several pairs that fit a name the first counts.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]):
        self._to_ours = [(_compile(theirs), theirs, ours) for theirs, ours in pairs]
        self._to_theirs = [(_compile(ours), ours, theirs) for theirs, ours in pairs]

    def to_ours(self, name: str) -> str | None:
        """Our name for one of theirs; None where there is none."""
        return _translate(name, self._to_ours)

    def to_theirs(self, name: str) -> str | None:
        """Their name for one of ours; None where there is none."""
        return _translate(name, self._to_theirs)


_Rule = tuple[re.Pattern[str], str, str]  # what fits a name, the template it comes from, the template to fill


def _compile(template: str) -> re.Pattern[str]:
    parts = _NUMBER.split(template)[:: _NUMBER.groups + 1]
    return re.compile(r"(\d+)".join(map(re.escape, parts)) + "(.*)")


def _translate(name: str, rules: Sequence[_Rule]) -> str | None:
    for pattern, source, target in rules:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        *values, rest = match.groups()
        numbers = {
            letter: int(offset or 0) - int(value) if sign == "-" else int(value) - int(offset or 0)
            for (offset, sign, letter), value in zip(_NUMBER.findall(source), values)
        }
        if all(number >= 0 for number in numbers.values()):
            return _fill(target, numbers) + rest
    return None


def _fill(template: str, numbers: dict[str, int]) -> str:
    def number_of(match: re.Match[str]) -> str:
        offset, sign, letter = match.groups()
        return str(int(offset or 0) + (-numbers[letter] if sign == "-" else numbers[letter]))

    return _NUMBER.sub(number_of, template)
