"""Raw id maps and video files, read back."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as rle_codec

from maskformer.reports.media import Source, Video, VideoFile, write_picture, write_result
from maskformer.reports.tasks import ClassTable, encode_instances, encode_panoptic, encode_semantic
from maskformer.structures import BadImageError, InputError, PanopticResult


def classes(count: int) -> ClassTable:
    return ClassTable(tuple(f"c{index}" for index in range(count)), ((0.0, 0.0, 0.0),) * count)


def instances(masks: list[list[list[int]]], categories: list[int], scores: list[float]) -> Instances:
    result = Instances((2, 3))
    result.pred_masks = torch.tensor(masks, dtype=torch.bool).reshape(-1, 2, 3)
    result.pred_classes = torch.tensor(categories, dtype=torch.int64)
    result.scores = torch.tensor(scores, dtype=torch.float64)
    return result


@pytest.mark.parametrize(
    ("num_classes", "dtype", "ignore_value"),
    [(255, np.uint8, 255), (256, np.uint16, 65535), (847, np.uint16, 65535)],
)
def test_semantic_ids_are_as_wide_as_the_classes_and_the_ignore_value_need(
    tmp_path: Path, num_classes: int, dtype: type, ignore_value: int
) -> None:
    class_map = np.array([[0, 1, 2], [3, 4, num_classes - 1]])
    ids = encode_semantic(class_map, classes(num_classes))
    write_picture(tmp_path / "ids.png", ids.image)
    read = np.asarray(Image.open(tmp_path / "ids.png"))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, class_map)
    assert ids.meaning["ignore_value"] == ignore_value


def test_panoptic_ids_are_colours_of_24_bits(tmp_path: Path) -> None:
    segment_map = torch.tensor([[0, 1, 255], [256, 65536, 70000]], dtype=torch.int32)
    segments = [
        {"id": number, "isthing": True, "category_id": 1, "score": torch.tensor(0.5)} for number in (1, 255, 256)
    ]
    ids = encode_panoptic(PanopticResult(segment_map, segments), classes(2))
    write_picture(tmp_path / "ids.png", ids.image)
    read = np.asarray(Image.open(tmp_path / "ids.png")).astype(int)
    np.testing.assert_array_equal(read @ [1, 256, 65536], segment_map.numpy())
    assert ids.meaning["segments_info"][0] == {
        "id": 1, "isthing": True, "category_id": 1, "score": 0.5, "category_name": "c1", "area": 1,
    }  # fmt: skip


def test_separate_instances_are_told_by_the_map_alone() -> None:
    ids = encode_instances(instances([[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 1]]], [1, 0], [0.75, 0.5]), classes(2))
    np.testing.assert_array_equal(ids.image, np.array([[1, 1, 0], [0, 2, 2]], dtype=np.uint16))
    assert ids.image.dtype == np.uint16
    assert ids.meaning["overlapping"] is False
    assert ids.meaning["segments_info"] == [
        {"id": 1, "category_id": 1, "category_name": "c1", "score": 0.75, "area": 2},
        {"id": 2, "category_id": 0, "category_name": "c0", "score": 0.5, "area": 2},
    ]


def test_overlapping_instances_keep_their_whole_masks() -> None:
    masks = [[[1, 1, 0], [1, 0, 0]], [[0, 1, 1], [0, 1, 1]]]
    ids = encode_instances(instances(masks, [0, 1], [0.25, 0.75]), classes(2))
    np.testing.assert_array_equal(ids.image, [[1, 2, 2], [1, 2, 2]])
    stored = json.loads(json.dumps(ids.meaning))["segments_info"]
    decoded = [rle_codec.decode(segment["segmentation"]).tolist() for segment in stored]
    assert decoded == masks


def test_no_instances_give_an_empty_map() -> None:
    ids = encode_instances(instances([], [], []), classes(2))
    assert not ids.image.any()
    assert ids.meaning["segments_info"] == []


def test_json_names_the_id_space(tmp_path: Path) -> None:
    ids = encode_semantic(np.array([[0, 1, 1]]), classes(2))
    write_result(
        tmp_path / "street.jpg", np.zeros((1, 3, 3), np.uint8), ids, {"task": "semantic", "dataset": "ours"}, classes(2)
    )
    assert json.loads((tmp_path / "street_ids.json").read_text()) == {
        "task": "semantic",
        "dataset": "ours",
        "height": 1,
        "width": 3,
        "encoding": "pixel value = class id",
        "ignore_value": 255,
        "classes": [{"id": 0, "name": "c0"}, {"id": 1, "name": "c1"}],
    }
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "street_ids.png")), [[0, 1, 1]])


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/a\.png cannot be written"):
        write_picture(tmp_path / "file" / "a.png", np.zeros((2, 2), np.uint8))


def colored_frames() -> list[np.ndarray]:
    return [np.full((48, 64, 3), color, dtype=np.uint8) for color in ((220, 30, 30), (30, 220, 30), (30, 30, 220))]


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_video_comes_back_with_its_frames_in_order_and_its_colours(tmp_path: Path, suffix: str) -> None:
    with VideoFile(tmp_path / f"clip{suffix}", frame_rate=10) as file:
        for frame in colored_frames():
            file.write(frame)
    video = Video(Source.of_file(str(file.path)))
    assert video.frame_rate == pytest.approx(10)
    assert video.num_frames == 3
    for read, written in zip(list(video), colored_frames(), strict=True):
        assert np.abs(read.astype(int) - written).mean() < 12  # lossy, but red stays red


def test_video_is_not_written_through_a_planted_link(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "out"
    outside.write_text("theirs")
    folder.mkdir()
    for name in ("clip.mp4", "clip.partial.mp4", ".clip.mp4.partial"):
        (folder / name).symlink_to(outside)
    with VideoFile(folder / "clip.mp4", frame_rate=10) as file:
        file.write(colored_frames()[0])
    assert outside.read_text() == "theirs"
    assert len(list(Video(Source.of_file(str(folder / "clip.mp4"))))) == 1


def test_nothing_is_left_of_a_video_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), VideoFile(tmp_path / "clip.mp4", frame_rate=10) as file:
        file.write(colored_frames()[0])
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_video_of_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="no UTF-8"):
        VideoFile(tmp_path / "clip\udcff.mp4", frame_rate=10).write(colored_frames()[0])


def test_picture_that_its_format_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"wide\.webp cannot be written"):
        write_picture(tmp_path / "wide.webp", np.zeros((1, 20000, 3), np.uint8))


def take_codecs_away(monkeypatch: pytest.MonkeyPatch, *suffixes: str) -> None:
    real = cv2.VideoWriter

    class Writer:
        fourcc = real.fourcc

        def __new__(cls, path: str, *options: object) -> cv2.VideoWriter:
            return real() if path.endswith(suffixes) else real(path, *options)

    monkeypatch.setattr(cv2, "VideoWriter", Writer)


def test_missing_codec_falls_back_to_the_next_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_codecs_away(monkeypatch, ".mp4")
    with VideoFile(tmp_path / "clip.mp4", frame_rate=10) as file:
        file.write(colored_frames()[0])
    assert file.path == tmp_path / "clip.avi"
    assert len(list(Video(Source.of_file(str(file.path))))) == 1


def test_no_codec_at_all_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_codecs_away(monkeypatch, ".mp4", ".avi")
    with pytest.raises(InputError, match="no codec of mp4v, XVID, MJPG"):
        VideoFile(tmp_path / "clip.mp4", frame_rate=10).write(colored_frames()[0])
