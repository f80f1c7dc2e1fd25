"""What is read, and how outputs are named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.reports.media import Source, Video, find_sources, ids_path, plan_outputs, read_picture
from maskformer.structures import InputError


def names(patterns: list[str | Path]) -> list[str]:
    return [Path(source.name).name for source in find_sources([str(pattern) for pattern in patterns])]


def save(path: Path, color: tuple[int, int, int] = (200, 30, 10), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path, **options)
    return path


def test_folder_stands_for_its_images_and_videos_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden.png", "sub/c.png"):
        save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "clip.mp4").touch()
    assert names([tmp_path]) == ["a.JPG", "b.png", "clip.mp4"]
    assert [source.is_video for source in find_sources([str(tmp_path)])] == [False, False, True]


def test_globs_expand_and_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "deep/er/c.png"):
        save(tmp_path / name)
    assert names([tmp_path / "b.png", tmp_path / "*.png", tmp_path / "**" / "c.png"]) == ["b.png", "a.png", "c.png"]


def test_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    assert names([save(tmp_path / "scan[1].png")]) == ["scan[1].png"]


def test_what_cannot_be_read_is_found_too_so_that_it_is_named_later(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder").mkdir()
    everything = ["a.png", "dangling.png", "fifo.png", "folder.png"]
    assert names([tmp_path]) == names([tmp_path / "*"]) == everything
    assert names([tmp_path / "fifo.png", tmp_path / "dangling.png"]) == ["fifo.png", "dangling.png"]


def test_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No file matches the input .*missing\.jpg"):
        find_sources([str(tmp_path / "missing.jpg")])
    with pytest.raises(InputError, match=r"holds no image or video \(\.jpg"):
        find_sources([str(tmp_path)])


def test_picture_is_read_as_upright_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to see it upright
    path = save(tmp_path / "turned.png", (200, 30, 10), exif=exif)
    picture = read_picture(str(path))
    assert picture.shape == (6, 4, 3)
    assert picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [200, 30, 10]


def test_grey_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 77).save(tmp_path / "grey.png")
    Image.new("RGBA", (3, 2), (1, 2, 3, 255)).save(tmp_path / "clear.png")
    assert read_picture(str(tmp_path / "grey.png"))[0, 0].tolist() == [77, 77, 77]
    assert read_picture(str(tmp_path / "clear.png"))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", b"not an image", b"truncated"])
def test_unreadable_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    if content == b"truncated":
        Image.effect_noise((64, 64), 80).save(path)
        content = path.read_bytes()[:-400]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"Image .*broken\.jpg cannot be read: .+; expected a complete image file"):
        read_picture(str(path))


def test_picture_of_dangerous_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"large\.png cannot be used: it is too large \(image size \(24 pixels\)"):
        read_picture(str(save(tmp_path / "large.png")))


def test_unreadable_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"clip\.mp4 cannot be opened"):
        Video(Source.of_file(str(tmp_path / "clip.mp4")))


def test_outputs_in_a_folder_keep_the_name_and_ending() -> None:
    sources = [Source.of_file(path) for path in ("in/a.jpg", "in/b.mov", "in/c.gif")] + [
        Source("camera_0", is_video=True, camera=0)
    ]
    assert [str(path) for path in plan_outputs(sources, "out")] == [
        "out/a.jpg",
        "out/b.mp4",
        "out/c.png",
        "out/camera_0.mp4",
    ]


def test_sources_that_differ_in_their_endings_alone_are_drawn_apart():
    sources = [
        Source.of_file(path) for path in ("in/0.jpg", "in/0.v.png", "in/0.png", "in/0.mp4", "in/1.avi", "in/1.mov")
    ]
    outputs = plan_outputs(sources, "out")
    names = ["0_jpg.jpg", "0.v.png", "0_png.png", "0.mp4", "1_avi.mp4", "1_mov.mp4"]
    assert outputs == [Path("out", name) for name in names]
    assert ids_path(outputs[0], ".json") == Path("out/0_jpg_ids.json")


def test_output_with_an_ending_is_a_file_unless_it_is_a_folder(tmp_path: Path) -> None:
    source = [Source.of_file("in/a.jpg")]
    assert plan_outputs(source, str(tmp_path / "x.png")) == [tmp_path / "x.png"]
    assert plan_outputs(source, str(tmp_path / "v1.2") + "/") == [tmp_path / "v1.2" / "a.jpg"]
    (tmp_path / "v1.3").mkdir()
    assert plan_outputs(source, str(tmp_path / "v1.3")) == [tmp_path / "v1.3" / "a.jpg"]


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["a.png", "b.png"], "out.png", r"out\.png is a file, but there are 2 inputs"),
        (["a.png"], "out.pdf", r"out\.pdf ends in \.pdf; expected one of \.jpg"),
        (["a.mp4"], "out.png", r"out\.png ends in \.png; expected one of \.mp4 \.avi for a\.mp4"),
        (["x/a.png", "y/a.png"], "out", r"x/a\.png and y/a\.png would both be written to out/a"),
        (["x/a.png", "x/a.jpg", "x/a_jpg.png"], "out", r"would both be written"),
        (["x/a.png", "x/a_ids.png"], "out", r"x/a_ids\.png would both be written to out/a_ids\.png"),
        (["x/a.png"], "x", r"x/a\.png would overwrite an input"),
        (["x/a.png"], "y/../x/a.png", r"would overwrite an input"),
        (["x/a_ids.png"], "x/a.jpg", r"x/a_ids\.png would overwrite an input"),
    ],
)
def test_impossible_output_is_refused(inputs: list[str], output: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_outputs([Source.of_file(path) for path in inputs], output)


def test_input_behind_a_link_is_not_overwritten(tmp_path: Path) -> None:
    original = save(tmp_path / "data" / "a.png")
    (tmp_path / "out").symlink_to(original.parent)
    with pytest.raises(InputError, match="would overwrite"):
        plan_outputs([Source.of_file(str(original))], str(tmp_path / "out"))


def test_ids_lie_beside_the_picture() -> None:
    assert ids_path(Path("out/street.v2.jpg"), ".json") == Path("out/street.v2_ids.json")
