from __future__ import annotations

import colorsys
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskformer.data.datasets.shapes import CATEGORIES, THINGS
from maskformer.demo.shapes import generate_shapes
from maskformer.demo.shapes.scene import MIN_VISIBLE_PIXELS, Scene, Sprite, make_sprite
from maskformer.demo.shapes.writer import scene_of
from maskformer.structures import InputError

SIZE = (64, 96)


def generate(root: Path, **changes: object) -> Path:
    return generate_shapes(root, **{"num_train": 3, "num_val": 2, "image_size": SIZE, "seed": 0, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene_of(0, "train", index, (128, 160)) for index in range(40)]


def panoptic_ids(folder: Path, split: str, file_name: str) -> np.ndarray:
    red, green, blue = np.array(Image.open(folder / f"panoptic_{split}" / file_name), np.int64).transpose(2, 0, 1)
    return red + 256 * green + 65536 * blue


def read_json(folder: Path, name: str) -> dict:
    return json.loads((folder / "annotations" / name).read_text())


# What is drawn


def sprite_of(name: str) -> Sprite:
    candidates = (make_sprite(np.random.default_rng(seed), (40.0, 40.0), 20.0) for seed in range(100))
    return next(sprite for sprite in candidates if THINGS[sprite.category].name == name)


def test_ball_covers_the_area_of_its_circle():
    sprite = sprite_of("ball")
    radius = np.sqrt(sprite.coverage.sum() / np.pi)
    assert 20 * (0.84 + 0.08) - 0.5 < radius < 20 * (0.9 + 0.08) + 0.5
    assert sprite.depth.max() == pytest.approx(radius, abs=1)


def test_ring_has_a_hole():
    sprite = sprite_of("ring")
    assert sprite.coverage[40 - sprite.top, 40 - sprite.left] == 0
    assert sprite.coverage[40 - sprite.top].max() == 1


def test_scene_depends_on_seed_split_and_index_only():
    first = scene_of(3, "train", 5, SIZE)
    assert np.array_equal(first.image, scene_of(3, "train", 5, SIZE).image)
    for other in (scene_of(4, "train", 5, SIZE), scene_of(3, "val", 5, SIZE), scene_of(3, "train", 6, SIZE)):
        assert not np.array_equal(first.image, other.image)


def test_every_segment_is_visible_and_every_pixel_has_one(scenes):
    crowded = [scene_of(0, "train", index, (64, 64)) for index in range(40)]
    for scene in [*scenes, *crowded]:
        visible = np.bincount(scene.segment_map.ravel())
        assert len(visible) == len(scene.categories)
        assert visible.min() >= MIN_VISIBLE_PIXELS


def test_scene_has_two_to_five_things_on_distinct_stuff(scenes):
    for scene in scenes:
        things = [category for category in scene.categories if CATEGORIES[category].is_thing]
        stuff = [category for category in scene.categories if not CATEGORIES[category].is_thing]
        assert 2 <= len(things) <= 5
        assert len(set(stuff)) == len(stuff) >= 1


def test_all_categories_occur(scenes):
    assert {category for scene in scenes for category in scene.categories} == set(range(len(CATEGORIES)))


def test_things_of_a_category_have_hues_around_one_of_their_own(scenes):
    distances = []
    for category, color in (pair for scene in scenes for pair in mean_colors(scene)):
        turn = colorsys.rgb_to_hsv(*color / 255)[0] - category / len(THINGS)
        distances.append(abs((turn + 0.5) % 1 - 0.5))
    assert np.mean(np.array(distances) < 0.5 / len(THINGS)) > 0.6
    assert np.std(distances) > 0.02


def mean_colors(scene: Scene) -> list[tuple[int, np.ndarray]]:
    means = [scene.image[scene.segment_map == segment].mean(axis=0) for segment in range(len(scene.categories))]
    return [(c, mean) for c, mean in zip(scene.categories, means, strict=True) if CATEGORIES[c].is_thing]


@pytest.mark.parametrize("shift", [(0, 3), (0, -3), (3, 0), (-3, 0)])
def test_label_borders_lie_on_the_edges_of_the_picture(scenes, shift):
    here = there = 0.0
    for scene in scenes:
        steps = np.abs(np.diff(scene.image.astype(int), axis=1)).sum(axis=2)
        borders = np.diff(scene.segment_map.astype(int), axis=1) != 0
        here += steps[borders].mean()
        there += steps[np.roll(borders, shift, axis=(0, 1))].mean()
    assert here > 1.5 * there


# What is written


@pytest.mark.parametrize("split", ["train", "val"])
def test_image_file_shows_the_scene(folder, split):
    image = np.array(Image.open(folder / split / "000001.jpg"), float)
    assert image.shape == (*SIZE, 3)
    drawn = scene_of(0, split, 1, SIZE).image
    assert np.abs(image - drawn).mean() < 8 < np.abs(image - drawn[..., ::-1]).mean()


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_segments_are_those_of_the_png(folder, split):
    for annotation in read_json(folder, f"panoptic_{split}.json")["annotations"]:
        ids = panoptic_ids(folder, split, annotation["file_name"])
        assert {segment["id"] for segment in annotation["segments_info"]} == set(np.unique(ids))
        for segment in annotation["segments_info"]:
            y, x = np.nonzero(ids == segment["id"])
            assert segment["area"] == len(y)
            assert segment["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert segment["iscrowd"] == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_semantic_png_is_the_category_of_each_panoptic_segment(folder, split):
    for annotation in read_json(folder, f"panoptic_{split}.json")["annotations"]:
        ids = panoptic_ids(folder, split, annotation["file_name"])
        expected = np.zeros(SIZE, np.uint8)
        for segment in annotation["segments_info"]:
            expected[ids == segment["id"]] = segment["category_id"] - 1
        semantic = np.array(Image.open(folder / f"sem_seg_{split}" / annotation["file_name"]))
        assert semantic.dtype == np.uint8
        assert np.array_equal(semantic, expected)


@pytest.mark.parametrize("split", ["train", "val"])
def test_instances_are_the_things_of_the_panoptic_png(folder, split):
    instances = read_json(folder, f"instances_{split}.json")["annotations"]
    assert [instance["id"] for instance in instances] == list(range(1, len(instances) + 1))
    for annotation in read_json(folder, f"panoptic_{split}.json")["annotations"]:
        ids = panoptic_ids(folder, split, annotation["file_name"])
        things = [segment for segment in annotation["segments_info"] if segment["category_id"] <= len(THINGS)]
        own = [instance for instance in instances if instance["image_id"] == annotation["image_id"]]
        assert len(own) == len(things) > 0
        for instance, thing in zip(own, things, strict=True):
            assert np.array_equal(coco_mask.decode(instance["segmentation"]), ids == thing["id"])
            for key in ("category_id", "area", "bbox", "iscrowd"):
                assert instance[key] == thing[key]


def test_categories_count_from_one_with_things_first(folder):
    panoptic = read_json(folder, "panoptic_val.json")["categories"]
    assert [(c["id"], c["name"]) for c in panoptic] == list(enumerate((c.name for c in CATEGORIES), 1))
    assert [c["isthing"] for c in panoptic] == [1] * 5 + [0] * 4
    assert read_json(folder, "instances_val.json")["categories"] == panoptic[:5]


def test_segment_ids_are_distinct_and_near_to_the_category_colour(folder):
    colors = {category["id"]: category["color"] for category in read_json(folder, "panoptic_train.json")["categories"]}
    for annotation in read_json(folder, "panoptic_train.json")["annotations"]:
        ids = [segment["id"] for segment in annotation["segments_info"]]
        assert len(set(ids)) == len(ids) and 0 not in ids
        for segment in annotation["segments_info"]:
            red, green, _ = colors[segment["category_id"]]
            assert segment["id"] & 0xFFFF == red + 256 * green


# When it is written


def test_same_seed_writes_the_same_bytes_and_another_seed_others(folder, tmp_path):
    first, other = contents(folder), contents(generate(tmp_path / "other", seed=1))
    assert contents(generate(tmp_path / "same")) == first
    assert first.keys() == other.keys()
    assert first["train/000000.jpg"] != other["train/000000.jpg"]


def test_more_images_leave_the_first_ones_as_they_were(folder, tmp_path):
    few, more = contents(folder), contents(generate(tmp_path, num_train=4))
    assert all(more[name] == few[name] for name in few if name.endswith((".jpg", ".png")))
    assert len([name for name in more if name.startswith("train/")]) == 4


def test_progress_is_given_every_image(tmp_path):
    seen: list[list[tuple[str, int]]] = []
    generate(tmp_path, progress=lambda jobs: seen.append(jobs) or jobs)
    assert seen == [[("train", 0), ("train", 1), ("train", 2), ("val", 0), ("val", 1)]]


def test_second_call_draws_nothing(folder):
    def fail(jobs: object) -> None:
        raise AssertionError(f"drew {jobs}")

    assert generate(folder.parent, progress=fail) == folder


@pytest.mark.parametrize("missing", ["train/000001.jpg", "panoptic_val/000000.png", "annotations/instances_train.json"])
def test_dataset_with_a_missing_file_is_written_anew(tmp_path, missing):
    folder = generate(tmp_path)
    complete = contents(folder)
    (folder / missing).unlink()
    generate(tmp_path)
    assert contents(folder) == complete


def test_other_parameters_replace_the_dataset(tmp_path):
    generate(tmp_path)
    folder = generate(tmp_path, num_train=1, image_size=(80, 64))
    assert [path.name for path in (folder / "train").iterdir()] == ["000000.jpg"]
    assert Image.open(folder / "train" / "000000.jpg").size == (64, 80)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_interruption_keeps_the_old_dataset_and_the_next_call_recovers(tmp_path):
    def interrupt(jobs: list) -> Iterator:
        yield from jobs[:2]
        raise KeyboardInterrupt

    folder = generate(tmp_path)
    old = contents(folder)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, seed=1, progress=interrupt)
    assert contents(folder) == old
    assert contents(generate(tmp_path, seed=1)) == contents(generate(tmp_path / "fresh", seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "shapes"]


def test_leftovers_of_an_interrupted_exchange_are_removed(tmp_path):
    generate(tmp_path)
    (tmp_path / "shapes.outdated").mkdir()
    (tmp_path / "shapes.outdated" / "old.jpg").write_text("")
    generate(tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_folder_of_somebody_else_is_refused_and_kept(tmp_path):
    precious = tmp_path / "shapes" / "mine.txt"
    precious.parent.mkdir()
    precious.write_text("keep")
    with pytest.raises(InputError, match=r"exists without shapes\.json"):
        generate(tmp_path)
    assert precious.read_text() == "keep"


def test_root_that_cannot_be_written_is_named(tmp_path):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(InputError, match=r"file/shapes cannot be written .* another folder"):
        generate(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "num_train is 0, expected 1 or more"),
        ({"num_val": 0}, "num_val is 0, expected 1 or more"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"image_size": (32, 160)}, "image_size is 32x160, expected 64 or more"),
    ],
)
def test_parameter_out_of_range_is_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        generate(tmp_path, **changes)
    assert not list(tmp_path.iterdir())
