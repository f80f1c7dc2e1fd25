from __future__ import annotations

from maskformer.checkpoint.layouts.layout import NameMap

NAMES = NameMap(
    [
        ("stages.{i}.norm.", "res{2+i}.norm."),
        ("fpn.{i}.", "layer_{3-i}."),
        ("a{1+i}.b{j}.", "{j}.x{i}."),
        ("stages.{i}.", "res{2+i}."),
    ]
)


def test_numbers_follow_from_one_another_in_both_directions():
    pairs = {
        "stages.0.weight": "res2.weight",
        "stages.10.norm.bias": "res12.norm.bias",
        "fpn.0.weight": "layer_3.weight",
        "fpn.2.weight": "layer_1.weight",
        "a3.b7.c": "7.x2.c",
    }
    assert {theirs: NAMES.to_ours(theirs) for theirs in pairs} == pairs
    assert {NAMES.to_theirs(ours): ours for ours in pairs.values()} == pairs


def test_names_that_no_pair_fits_have_no_translation():
    assert NAMES.to_ours("other.weight") is None
    assert NAMES.to_ours("stages.x.weight") is None
    assert NAMES.to_ours("a.stages.0.weight") is None  # templates are beginnings
    assert NAMES.to_theirs("res1.weight") is None  # no number is negative
    assert NAMES.to_theirs("layer_4.weight") is None


def test_dots_are_dots():
    assert NAMES.to_ours("stagesx0xweight") is None
