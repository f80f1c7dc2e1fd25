"""What is wrong with a dataset that was inspected: a sentence for each kind of problem, with the key to change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .guesses import (
    LEAST_BLURRED,
    ValueCount,
    find_blurred,
    guess_mask,
    guess_remedy,
    list_values,
    looks_like_mask,
)
from .inspection import Inspection, Sight

PROBLEMS = {
    "image": "images cannot be used",
    "declared": "images have another size than their annotation says",
    "label": "labels cannot be used",
    "size": "labels have another size than their image",
    "segments": "panoptic labels disagree with their JSON",
    "annotation": "images have an annotation that cannot be used",
}
_NAMED = 3  # files after the first
_NEAREST = "save labels as PNG, and resize them with nearest neighbour"
_THIN = 50  # pixels that are all at edges, from which on that is told
_MANY_COLORS = 300
_MAIN_COLOR = 0.01  # of all pixels
_MOST_FREQUENT = 50  # colours, which in labels cover nearly all
_ALIKE = 32  # in each channel; JPEG changes colours by less


@dataclass
class Finding:
    """Something to correct.

    Attributes:
        sentence: what it is, how often, an example and the key to change.
        sights: the images that have it.
    """

    sentence: str
    sights: list[Sight] = field(default_factory=list)


def find_problems(seen: Inspection, names: Sequence[str], queries: int, block: str) -> list[Finding]:
    """Say what is wrong, once for each kind.

    Args:
        seen: all that was looked at.
        names: of the classes.
        queries: how many segments of an image the model can find.
        block: what of ``DATASETS.OWN`` describes the dataset; empty: nothing does.
    """
    return [
        *_find_bad_files(seen),
        *_find_colors(seen, block),
        *_find_foreign(seen, names, block),
        *_find_crowded(seen, queries),
    ]


def _find_bad_files(seen: Inspection) -> list[Finding]:
    findings = []
    for kind, phrase in PROBLEMS.items():
        bad = [sight for sight in seen.sights if sight.problem and sight.problem[0] == kind and not sight.colors]
        if bad:
            assert bad[0].problem is not None
            sentence = f"{len(bad)} of {len(seen.sights)} {phrase}: {bad[0].problem[1]}{_name_others(bad)}"
            findings.append(Finding(sentence, bad))
    return findings


def _name_others(sights: Sequence[Sight]) -> str:
    if len(sights) < 2:
        return ""
    names = [Path(sight.label_file).name for sight in sights[1 : _NAMED + 1]]
    more = len(sights) - 1 - len(names)
    return f" So it is with {', '.join(names)}" + (f" and {more} more." if more else ".")


def _find_colors(seen: Inspection, block: str) -> list[Finding]:
    """Labels that are colour pictures, where numbers are expected."""
    coloured = [sight for sight in seen.sights if sight.colors]
    if not coloured:
        return []
    counts: defaultdict[tuple[int, ...], ValueCount] = defaultdict(ValueCount)
    for sight in coloured:
        for color, count in sight.colors.items():
            counts[color].add(count)
    total = sum(count.pixels for count in counts.values())
    main = _main_colors(counts)
    shown = ", ".join(f"{list(color)} ({_percent(counts[color].pixels / total)})" for color in main[:6])
    if seen.numbering.colors:
        return [Finding(_explain_unknown_colors(coloured, len(counts), main, shown, block), coloured)]
    remedy = _guess_colors(main, len(counts), len(seen.numbering.of_classes), block)
    most = sorted((count.pixels for count in counts.values()), reverse=True)[:_MOST_FREQUENT]
    if sum(most) < total / 2:
        remedy = "they look like photographs: are images and labels swapped?"
    sentence = (
        f"Labels are pictures of several channels in {len(coloured)} of {len(seen.sights)} files, first "
        f"{coloured[0].label_file}, with {len(counts)} colours, such as {shown}; expected one number a pixel: "
        f"{remedy}"
    )
    return [Finding(sentence, coloured)]


def _explain_unknown_colors(
    coloured: Sequence[Sight], number: int, main: Sequence[tuple[int, ...]], shown: str, block: str
) -> str:
    """What is wrong with labels by colours of which some are no class."""
    remedy = f"a class of them is missing, or `ignore: {[list(color) for color in main[:6]]}` ({block})?"
    if number > 2 * len(main):
        remedy = f"most are rare and at edges, as JPEG and interpolation leave them: {_NEAREST}."
    return (
        f"Labels of {len(coloured)} files, first {coloured[0].label_file}, hold colours that are no class, {number} in "
        f"all, such as {shown}; expected those of `colors`: {remedy}"
    )


def _main_colors(counts: Mapping[tuple[int, ...], ValueCount]) -> list[tuple[int, ...]]:
    """The colours that are meant, the most frequent first: of very many, one of each group that is nearly alike."""
    by_frequency = sorted(counts, key=lambda color: -counts[color].pixels)
    if len(counts) <= _MANY_COLORS and not find_blurred(counts):
        return by_frequency
    pixels: dict[tuple[int, ...], int] = {}
    for color in by_frequency:
        alike = (other for other in pixels if max(abs(a - b) for a, b in zip(color, other)) < _ALIKE)
        group = next(alike, color)
        pixels[group] = pixels.get(group, 0) + counts[color].pixels
    least = _MAIN_COLOR * sum(pixels.values())
    return [color for color in by_frequency if pixels.get(color, 0) >= least]


def _guess_colors(main: list[tuple[int, ...]], number: int, num_classes: int, block: str) -> str:
    all_of_them = ", ".join(str(list(color)) for color in sorted(main)[:24]) + (", ..." if len(main) > 24 else "")
    others = ", without those that are no class, which `ignore` has," if len(main) > num_classes else ""
    key = f"`colors: [{all_of_them}]`{others} in the order of `classes` ({block})?"
    if not block:
        key = "prepare them (datasets/README.md)."
    if number > 2 * len(main):
        return f"most colours are rare and at edges, as JPEG and interpolation leave them: {_NEAREST}; then {key}"
    if all(len(set(color)) == 1 for color in main):
        return f"all channels are alike, so save one of them; or {key}"
    return key


def _find_foreign(seen: Inspection, names: Sequence[str], block: str) -> list[Finding]:
    """Values that are no class and not ignored; and masks of 0 and 255, whose objects would be ignored."""
    foreign, kept, findings = seen.foreign, seen.values, []
    blurred = find_blurred(foreign)
    if blurred:
        reason = "only edges have them, as JPEG and interpolation leave them"
        findings.append(Finding(f"{_describe(seen, blurred)}: {reason}: {_NEAREST}.", _holding(seen, blurred)))
        kept = {value: count for value, count in kept.items() if not count.is_blurred}
    solid = foreign.keys() - blurred
    if solid:
        remedy = guess_remedy(kept, seen.numbering, list(names), len(seen.labelled), block)
        doubt = ""
        if len(solid) < LEAST_BLURRED and all(foreign[v].is_blurred and foreign[v].pixels >= _THIN for v in solid):
            doubt = " Only edges have it, so it may also be what JPEG or interpolation left."
        findings.append(Finding(f"{_describe(seen, solid)}: {remedy}{doubt}", _holding(seen, solid)))
    elif looks_like_mask(kept, seen.numbering):
        remedy = guess_mask(255, names[0]) if len(names) == 1 else "`ids: [0, 255]`?"
        fact = "Labels hold 0 and 255 alone, and 255 is ignored, so that nothing but 0 would be learned"
        findings.append(Finding(f"{fact}: {remedy}", _holding(seen, {255})))
    return findings


def _holding(seen: Inspection, values: Set[int]) -> list[Sight]:
    return [sight for sight in seen.sights if sight.pixels.keys() & values]


def _describe(seen: Inspection, values: Set[int]) -> str:
    """What values there are, in how many files and of how many pixels."""
    counts, holding = seen.values, _holding(seen, values)
    share = sum(counts[value].pixels for value in values) / sum(count.pixels for count in counts.values())
    return (
        f"Labels hold the value{'s' * (len(values) > 1)} {list_values(values)} in {len(holding)} of "
        f"{len(seen.labelled)} files, {_percent(share)} of {unit_of(seen)}, first {holding[0].label_file}; expected "
        f"{_allowed(seen)}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.1g} %"


def _allowed(seen: Inspection) -> str:
    of_classes, ignored = seen.numbering.of_classes, seen.numbering.ignored
    first, last = min(of_classes), max(of_classes)
    is_range = 1 < len(of_classes) == last - first + 1
    classes = f"{first}..{last}" if is_range else list_values(of_classes)
    return classes + (f" or {list_values(ignored)} (ignored)" if ignored and unit_of(seen) == "pixels" else "")


def unit_of(seen: Inspection) -> str:
    """What is counted of each class."""
    has_maps = {"sem_seg_file_name", "pan_seg_file_name"} & seen.sights[0].record.keys()
    return "pixels" if has_maps else "instances"


def _find_crowded(seen: Inspection, queries: int) -> list[Finding]:
    """Images with more segments than the model has queries, the worst first."""
    crowded = sorted((s for s in seen.labelled if (s.segments or 0) > queries), key=lambda s: -(s.segments or 0))
    if not crowded:
        return []
    most = crowded[0].segments
    sentence = (
        f"{len(crowded)} of {len(seen.sights)} images have more segments than the {queries} queries, most has "
        f"{crowded[0].file_name}, {most}: what is above cannot be learned: raise "
        f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES to {most} or more."
    )
    return [Finding(sentence, crowded)]


@dataclass(frozen=True)
class ClassShare:
    """How much of a class there is.

    Attributes:
        name: of the class.
        value: in the labels.
        amount: pixels; annotations, where there are instances alone.
        share: of the amount of all classes, 0..1.
        images: that have it.
    """

    name: str
    value: int
    amount: int
    share: float
    images: int


def class_shares(seen: Inspection, names: Sequence[str]) -> list[ClassShare]:
    """How much there is of each class, in their order."""
    values = seen.values
    pairs = list(zip(names, seen.numbering.of_classes, strict=True))
    amounts = [values[value].pixels if value in values else 0 for _, value in pairs]
    total = sum(amounts) or 1
    return [
        ClassShare(name, value, amount, amount / total, values[value].images if value in values else 0)
        for (name, value), amount in zip(pairs, amounts, strict=True)
    ]


def describe(seen: Inspection, names: Sequence[str]) -> list[str]:
    """The facts beside the shares of classes: what is ignored, absent or empty, sizes, and segments in an image."""
    shares, labelled = class_shares(seen, names), seen.labelled
    absent = [share.name for share in shares if not share.amount]
    empty = [sight for sight in labelled if not sight.segments]
    lines = [
        f"classes that do not occur: {len(absent)} of {len(names)}" + (f", first {absent[0]}" if absent else ""),
        f"images without annotation: {len(empty)}" + (f", first {empty[0].file_name}" if empty else ""),
    ]
    if unit_of(seen) == "pixels" and labelled:
        total = sum(sight.size[0] * sight.size[1] for sight in labelled if sight.size)
        foreign = sum(count.pixels for count in seen.foreign.values())
        ignored = total - foreign - sum(share.amount for share in shares)
        lines.insert(0, f"pixels without a class: {100 * ignored / total:.1f} %")
    sizes = sorted((s.size for s in seen.sights if s.size), key=lambda size: size[0] * size[1])
    if sizes:
        smallest, median, largest = (f"{w} x {h}" for h, w in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        lines.append(f"size of images (width x height): {smallest} to {largest}, median {median}")
    if labelled:
        counts = [sight.segments or 0 for sight in labelled]
        most = labelled[int(np.argmax(counts))]
        lines.append(f"most segments in an image: {most.segments} {most.file_name}; median {np.median(counts):g}")
    return lines
