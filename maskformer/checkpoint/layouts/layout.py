"""What a layout is: somebody's parameter names, how to know them, and how to bring them to ours and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
NOTHING = r"(?!)"  # a pattern that is found nowhere
_NUMBER = re.compile(r"\{(?:(\d+)([+-]))?([a-z])\}")
_Rule = tuple[re.Pattern[str], str, str]  # what fits a name, the template it comes from, the template to fill


@dataclass(frozen=True)
class Layout:
    """One source of weights.

    Attributes:
        name: for messages.
        marks: patterns; a file has this layout when each of them is found in the beginning of some name.
        convert: their tensors by their names -> tensors by our names; what we have no name for keeps its own.
        backbone_only: such files hold no head.
        never_holds: a pattern for parameters and buffers of ours that such files never hold, and do without.
        may_be_differences: what such files hold of the backbone may be its differences to a released one.
    """

    name: str
    marks: tuple[str, ...]
    convert: Callable[[StateDict], StateDict]
    backbone_only: bool = False
    never_holds: str = NOTHING
    may_be_differences: bool = False

    def fits(self, names: Iterable[str]) -> bool:
        """Whether parameters of these names are in this layout."""
        names = list(names)
        return all(any(re.match(mark, name) for name in names) for mark in self.marks)


def drop(state: StateDict, pattern: str) -> StateDict:
    """Leave out tensors whose name a pattern is found in."""
    return {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


def join_projections(state: StateDict, parts: tuple[str, str, str], whole: str) -> StateDict:
    """Join query, key and value projections, which others keep apart, into one.

    Args:
        state: tensors by name.
        parts: what the three are called within a name, such as "q_proj.", in the order query, key, value.
        whole: what their join is called there, such as "in_proj_".

    Returns:
        The same without the parts and with the joins, (3D,D) or (3D,).
    """
    joined = dict(state)
    for name in [name for name in state if parts[0] in name]:
        joined[name.replace(parts[0], whole)] = torch.cat([joined.pop(name.replace(parts[0], part)) for part in parts])
    return joined


def split_projections(state: StateDict, whole: str, parts: tuple[str, str, str]) -> StateDict:
    """The opposite of ``join_projections``."""
    split = dict(state)
    for name in [name for name in state if whole in name]:
        for part, tensor in zip(parts, split.pop(name).chunk(3)):
            split[name.replace(whole, part)] = tensor.clone()
    return split


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

    def rename(self, state: StateDict) -> StateDict:
        """Bring their names to ours; what we have no name for keeps its own."""
        return {self.to_ours(name) or name: tensor for name, tensor in state.items()}

    def to_theirs(self, name: str) -> str | None:
        """Their name for one of ours; None where there is none."""
        return _translate(name, self._to_theirs)


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
