"""CVAT for images 1.1: https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat."""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imported import Imported, draw, losses

Import = Callable[..., Imported]
META = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>4</id><name>segmentation</name><size>27</size><mode>annotation</mode>
      <labels>
        <label><name>car</name><color>#fa3253</color><type>any</type>
          <attributes><attribute><name>model</name><mutable>False</mutable></attribute></attributes></label>
        <label><name>road</name><color>#33ddff</color><attributes></attributes></label>
      </labels>
      <original_size><width>80</width><height>60</height></original_size>
    </task>
    <dumped>2024-01-01 00:00:00.000000+00:00</dumped>
  </meta>
"""
COMMON = 'source="manual" occluded="0"'
SHAPES = f"""
    <polygon label="car" {COMMON} points="10.00,10.00;30.00,10.00;30.00,20.00;10.00,20.00" z_order="1">
      <attribute name="model">a</attribute></polygon>
    <box label="road" {COMMON} xtl="0.00" ytl="0.00" xbr="40.00" ybr="30.00" z_order="0"></box>
    <box label="car" {COMMON} xtl="50.00" ytl="20.00" xbr="70.00" ybr="30.00" rotation="90.00" z_order="0"></box>
    <ellipse label="car" {COMMON} cx="20.00" cy="45.00" rx="15.00" ry="5.00" z_order="0"></ellipse>
    <mask label="car" {COMMON} rle="1, 3, 2, 4" left="60" top="50" width="5" height="2" z_order="0"></mask>
    <polyline label="car" {COMMON} points="1.00,2.00;3.00,4.00" z_order="0"></polyline>
    <points label="car" {COMMON} points="1.00,2.00" z_order="0"></points>
    <cuboid label="car" {COMMON} xtl1="1" ytl1="1" z_order="0"></cuboid>
    <polygon label="plane" {COMMON} points="1,1;5,1;5,5" z_order="0"></polygon>
    <polygon label="car" {COMMON} points="1,1;5" z_order="0"></polygon>
    <mask label="car" {COMMON} rle="1, 3" left="60" top="50" width="5" height="2" z_order="0"></mask>
    <tag label="car" source="manual"></tag>
"""


def write(source: Path, *images: str) -> None:
    source.mkdir(exist_ok=True)
    (source / "annotations.xml").write_text(META + "".join(images) + "</annotations>")


def image(name: str, shapes: str = "", more: str = "") -> str:
    return f'  <image id="0" name="{name}" {more} width="80" height="60">{shapes}</image>\n'


def test_every_shape_with_an_area_becomes_an_instance(source: Path, import_from: Import) -> None:
    draw(source / "images/left/a b.png")
    draw(source / "images/right/a b.png")
    write(source, image("left/a b.png", SHAPES), image("right/a b.png"), image("gone.png"))
    result = import_from("cvat-xml", "--val-share", 0)
    assert result.content["OWN"]["garden"]["classes"] == ["car", "road"]
    assert [record["file_name"].split("train/")[1] for record in result.records()] == ["left/a b.png", "right/a b.png"]
    found = result.objects()["a b.png"] or result.objects()["a b.png"]
    records = result.records()
    assert [len(record["annotations"]) for record in records] == [5, 0]
    areas = [each["area"] for each in _json(result)["annotations"]]
    assert areas[0] == 1200 and areas[1] == 200 and areas[4] == 200
    assert areas[2] == pytest.approx(math.pi * 75, rel=0.05)
    assert areas[3] == 7
    assert _json(result)["annotations"][1]["bbox"] == [55, 15, 10, 20]  # turned about its centre
    assert found == []
    lost = losses(result.printed)
    assert lost["shapes that enclose nothing (points, lines)"] == 2
    assert lost["cuboids and skeletons"] == 1
    assert lost["shapes of a class that is not in the list"] == 1
    assert lost["shapes whose numbers make no sense"] == 2
    assert lost["attributes of shapes, and tags of pictures"] == 2
    assert lost["pictures that are missing"] == 1


def _json(result: Imported) -> dict:
    import json

    return json.loads((result.folder / "train.json").read_text())


def test_mask_runs_go_along_the_rows(source: Path, import_from: Import) -> None:
    draw(source / "images/a.png")
    write(source, image("a.png", SHAPES))
    mask = next(m for _, m in import_from("cvat-xml").objects()["a.png"] if m.sum() == 7)
    np.testing.assert_array_equal(mask[50:52, 60:65], [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]])


def test_label_maps_are_drawn_by_z_order(source: Path, import_from: Import) -> None:
    draw(source / "images/a.png")
    write(source, image("a.png", SHAPES))
    result = import_from("cvat-xml", "--as", "labels", "--unlabelled", "ignore")
    labels = result.label_map()
    assert result.content["OWN"]["garden"]["classes"] == ["car", "road"]
    assert labels[15, 20] == 0 and labels[25, 20] == 1 and labels[35, 40] == 255
    assert losses(result.printed)["pixels in several objects, of which the last drawn has them"] == 200


def test_grouped_shapes_are_one_object(source: Path, import_from: Import) -> None:
    draw(source / "images/a.png")
    boxes = "".join(
        f'<box label="car" {COMMON} xtl="{x}" ytl="0" xbr="{x + 10}" ybr="10" z_order="0" group_id="{group}"></box>'
        for x, group in ((0, 3), (20, 3), (40, 0), (60, 0))
    )
    write(source, image("a.png", boxes))
    assert [mask.sum() for _, mask in import_from("cvat-xml").objects()["a.png"]] == [200, 100, 100]


def test_zip_of_a_project_with_subsets(source: Path, tmp_path: Path, import_from: Import) -> None:
    for subset in ("Train", "Validation"):
        draw(source / "images" / subset / "a.png")
    write(source, image("a.png", SHAPES, 'subset="Train"'), image("a.png", "", 'subset="Validation"'))
    with zipfile.ZipFile(tmp_path / "project.zip", "w") as archive:
        for path in source.rglob("*.*"):
            archive.write(path, Path("export", path.relative_to(source)))
    result = import_from("cvat-xml", source="project.zip")
    assert result.content["TRAIN"] == ["garden_train"] and result.content["TEST"] == ["garden_validation"]
    assert len(result.objects()["a.png"]) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["garden", "project.zip", "source"]


def test_frames_of_a_video_and_its_tracks(source: Path, import_from: Import) -> None:
    draw(source / "images/frame_000007.PNG")
    write(source, image("frame_000007", SHAPES))
    assert len(import_from("cvat-xml").objects()["frame_000007.PNG"]) == 5
    write(source, '<track id="0" label="car"><polygon frame="0" keyframe="1" points="1,1;5,1;5,5"/></track>')
    result = import_from("cvat-xml", target="tracks")
    assert result.code == 2 and "CVAT for images 1.1" in result.printed


@pytest.mark.parametrize(
    "content",
    [
        '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><annotations>&z;</annotations>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>',
        "<annotations><image",
        "",
        "<annotations></annotations>",
    ],
)
def test_hostile_or_broken_xml_is_one_sentence(source: Path, import_from: Import, content: str) -> None:
    (source / "annotations.xml").write_text(content)
    result = import_from("cvat-xml")
    assert result.code == 2 and "annotations.xml" in result.printed
    assert "root:" not in result.printed


def test_a_name_that_leads_out_is_a_missing_picture(source: Path, tmp_path: Path, import_from: Import) -> None:
    draw(tmp_path / "secret.png")
    draw(source / "images/a.png")
    write(
        source, image("../../secret.png", SHAPES), image(str(tmp_path / "secret.png"), SHAPES), image("a.png", SHAPES)
    )
    assert losses(import_from("cvat-xml").printed)["pictures that are missing"] == 2


def test_a_picture_in_another_folder_is_not_taken_for_it(source: Path, import_from: Import) -> None:
    draw(source / "images/right/a.png")
    draw(source / "images/b.png")
    write(source, image("left/a.png", SHAPES), image("b.png", SHAPES))
    result = import_from("cvat-xml")
    assert losses(result.printed)["pictures that are missing"] == 1
    assert list(result.objects()) == ["b.png"]


@pytest.mark.parametrize(("program", "library"), [("cvat-xml", "defusedxml"), ("hf-datasets", "datasets")])
def test_an_optional_library_that_is_missing_is_named(
    source: Path, import_from: Import, monkeypatch: pytest.MonkeyPatch, program: str, library: str
) -> None:
    write(source, image("a.png"))
    for name in [name for name in sys.modules if name.partition(".")[0] == library] + [library]:
        monkeypatch.setitem(sys.modules, name, None)
    result = import_from(program)
    assert result.code == 2 and f"pip install {library}" in result.printed
