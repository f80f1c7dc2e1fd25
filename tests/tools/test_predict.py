"""The command line of predict, with a real model and real files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image

from maskformer.config import load_config
from maskformer.predictor import Predictor
from maskformer.reports import media
from maskformer.reports.media import Source, Video, VideoFile, read_picture
from maskformer.structures import Classes, InputError
from maskformer.tools import predict

Run = Callable[..., int]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, size in (("a.png", (64, 80)), ("b.jpg", (48, 96))):
        coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)).save(folder / name)
    return folder


@pytest.fixture
def run(shapes_config: str, tiny_options: list[str], tiny_weights: str) -> Run:
    """Predict with the tiny model; the arguments come before the KEY VALUE pairs."""

    def run_predict(*arguments: object, options: tuple[str, ...] = ()) -> int:
        fixed = ["--config-file", shapes_config, "--weights", tiny_weights]
        return predict.main([*fixed, *map(str, arguments), *tiny_options, *options])

    return run_predict


@pytest.fixture
def predictor(shapes_config: str, tiny_options: list[str], tiny_weights: str) -> Predictor:
    return Predictor.from_config(load_config(shapes_config, [*tiny_options, "MODEL.WEIGHTS", tiny_weights]))


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_semantic_ids_are_the_best_class_of_every_pixel(
    run: Run, predictor: Predictor, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = images.parent / "out"
    assert run("--input", images / "a.png", "--task", "semantic", "--output", out) == 0
    monkeypatch.setattr(
        "maskformer.predictor.inference_options", lambda *_, **__: contextlib.nullcontext()
    )  # gives scores
    expected = predictor(read(images / "a.png"))["sem_seg"].argmax(dim=0).numpy()
    ids = read(out / "a_ids.png")
    assert ids.dtype == np.uint8
    assert len(np.unique(ids)) > 1
    np.testing.assert_array_equal(ids, expected)


def test_panoptic_ids_are_the_models_segments(run: Run, predictor: Predictor, images: Path) -> None:
    out = images.parent / "out"
    assert run("--input", images / "a.png", "--output", out) == 0
    segment_map, segments = predictor(read(images / "a.png"))["panoptic_seg"]
    np.testing.assert_array_equal(read(out / "a_ids.png").astype(int) @ [1, 256, 65536], segment_map.numpy())
    content = json.loads((out / "a_ids.json").read_text())
    assert content["task"] == "panoptic"
    assert [segment["id"] for segment in content["segments_info"]] == [segment["id"] for segment in segments]


def test_json_says_where_the_ids_come_from_and_what_they_mean(
    run: Run, images: Path, shapes_config: str, tiny_weights: str
) -> None:
    run("--input", images / "b.jpg", "--task", "semantic", "--output", images.parent / "x.png")
    content = json.loads((images.parent / "x_ids.json").read_text())
    assert content["image"] == str(images / "b.jpg")
    assert (content["height"], content["width"]) == (48, 96)
    assert (content["config_file"], content["weights"]) == (shapes_config, tiny_weights)
    assert content["dataset"] == "shapes_panoptic_val"
    assert content["ignore_value"] == 255
    assert [entry["id"] for entry in content["classes"]] == list(range(9))
    assert content["classes"][0]["name"] == "ball"


def test_picture_has_the_size_of_the_image_and_is_drawn_on(run: Run, images: Path) -> None:
    run("--input", images, "--output", images.parent / "out")
    for name in ("a.png", "b.jpg"):
        drawn, image = read(images.parent / "out" / name), read(images / name)
        assert drawn.shape == image.shape
        assert np.abs(drawn.astype(int) - image).mean() > 5


def test_instances_are_kept_by_score(run: Run, predictor: Predictor, images: Path) -> None:
    scores = predictor(read(images / "a.png"))["instances"].scores  # best first
    middle = (scores[2] + scores[3]).item() / 2
    for threshold, kept in ((0.0, int((scores > 0).sum())), (middle, 3), (1.0, 0)):
        out = images.parent / f"out_{kept}"
        arguments = ("--task", "instance", "--confidence-threshold", threshold, "--output", out)
        assert run("--input", images / "a.png", *arguments) == 0
        stored = json.loads((out / "a_ids.json").read_text())["segments_info"]
        assert [segment["score"] for segment in stored] == pytest.approx(scores[:kept].tolist())
    np.testing.assert_array_equal(read(images.parent / "out_0" / "a.png"), read(images / "a.png"))


def test_panoptic_threshold_of_one_keeps_nothing(run: Run, images: Path) -> None:
    out = images.parent / "out"
    assert run("--input", images / "a.png", "--confidence-threshold", 1.0, "--output", out) == 0
    np.testing.assert_array_equal(read(out / "a.png"), read(images / "a.png"))
    assert not read(out / "a_ids.png").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--confidence-threshold", "50"), "--confidence-threshold is 50.0; expected 0..1"),
        (("--device", "abacus"), "abacus"),
        (("--weights", "missing.pth"), "missing.pth does not exist"),
        (("--weights", ""), "MODEL.WEIGHTS is empty"),
        (("--config-file", "missing.yaml"), "missing.yaml cannot be read"),
    ],
)
def test_mistake_in_an_argument_ends_in_one_line(
    run: Run, images: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("--input", images / "a.png", "--output", images.parent / "out", *arguments) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    assert message in line
    assert not (images.parent / "out").exists()


def test_weights_of_a_backbone_alone_are_refused(
    run: Run, images: Path, tiny_weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(tiny_weights, weights_only=True)["model"]
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, images.parent / "backbone.pth")
    arguments = ("--weights", images.parent / "backbone.pth", "--output", images.parent / "out")
    assert run("--input", images / "a.png", *arguments) == 2
    assert "parameters without a value (the first is sem_seg_head." in capsys.readouterr().err


def test_task_that_is_switched_off_names_its_key(run: Run, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    switch = "MODEL.MASK_FORMER.TEST.INSTANCE_ON"
    arguments = ("--input", images / "a.png", "--output", images.parent / "out", "--task", "instance")
    assert run(*arguments, options=(switch, "False")) == 2
    assert f"{switch} is False" in capsys.readouterr().err


@pytest.mark.parametrize(("switched_off", "drawn"), [("PANOPTIC_ON", "instance"), ("INSTANCE_ON", "semantic")])
def test_first_task_that_is_switched_on_is_drawn(run: Run, images: Path, switched_off: str, drawn: str) -> None:
    off = [f"MODEL.MASK_FORMER.TEST.{switch}" for switch in ("PANOPTIC_ON", switched_off)]
    options = tuple(word for key in off for word in (key, "False"))
    assert run("--input", images / "a.png", "--output", images.parent / "out", options=options) == 0
    assert json.loads((images.parent / "out" / "a_ids.json").read_text())["task"] == drawn


def test_unreadable_image_among_others_is_left_out_and_named(
    run: Run, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.jpg").write_bytes(b"no image")
    assert run("--input", images, "--output", images.parent / "out") == 1
    captured = capsys.readouterr()
    assert "broken.jpg cannot be read" in captured.err
    assert "2 of 3 inputs drawn" in captured.out
    assert sorted(path.name for path in (images.parent / "out").glob("*_ids.json")) == ["a_ids.json", "b_ids.json"]


def test_whatever_else_lies_in_a_folder_is_named_and_the_pictures_are_drawn(
    run: Run, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model resizes the shorter side to 64 pixels, the longer to MAX_SIZE_TEST at most."""
    out, content = images.parent / "out", (images / "a.png").read_bytes()
    Image.new("RGB", (5000, 1)).save(images / "strip.png")
    Image.new("RGB", (1, 5000)).save(images / "pole.jpg")
    fits, too_long = "l" * 240 + ".png", "m" * 248 + ".png"
    for name in (fits, too_long, "odd\udcff.png"):
        (images / name).write_bytes(content)
    os.mkfifo(images / "fifo.png")
    os.mkfifo(images / "pipe.mp4")
    (images / "folder.jpg").mkdir()
    (images / "device.png").symlink_to("/dev/zero")
    (images / "dangling.png").symlink_to("nowhere.png")
    for name in ("text.mp4", "bytes\udcff.mp4"):
        (images / name).write_text("no video")
    (out / "taken_ids.json").mkdir(parents=True)
    (images / "taken.png").write_bytes(content)
    assert run("--input", images, "--output", out) == 1
    captured = capsys.readouterr()
    drawn = {"a", "b", fits[:-4], "odd\udcff"}
    assert {path.name.removesuffix("_ids.json") for path in out.glob("*_ids.json") if path.is_file()} == drawn
    assert "4 of 15 inputs drawn" in captured.out
    assert (out / "predictions.html").read_text().count("<figure>") == 4
    lines = captured.err.splitlines()
    left_out = [line for line in lines if line.startswith("warning: left out: ")]
    for name, reason in {
        "strip.png": "INPUT.MAX_SIZE_TEST",
        "pole.jpg": "INPUT.MAX_SIZE_TEST",
        too_long: "File name too long",
        "fifo.png": "FIFO",
        "pipe.mp4": "FIFO",
        "folder.jpg": "folder",
        "device.png": "device",
        "dangling.png": "No such file",
        "text.mp4": "cannot be opened",
        "bytes\\udcff.mp4": "no UTF-8",
        "taken.png": "Is a directory",
    }.items():
        assert [line for line in left_out if f"{images / name}" in line and reason in line], name
    assert len(left_out) == 11
    assert not [path for path in out.iterdir() if path.name.startswith(".") or path.name.startswith(too_long[:-4])]


def test_names_are_printed_without_control_characters(
    run: Run, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = images / "\x1b[31mred\udcff.png"
    name.write_bytes((images / "a.png").read_bytes())
    assert run("--input", name, "--output", f"{images.parent}/out/") == 0
    name.write_bytes(b"")
    assert run("--input", name, images / "a.png", "--output", images.parent / "out") == 1
    assert run("--input", name, "--output", images.parent / "out") == 2
    printed = "".join(capsys.readouterr())
    assert printed.count("\\x1b[31mred\\udcff.png") >= 3
    assert "\x1b" not in printed and "\udcff" not in printed


def test_a_picture_without_memory_for_it_is_left_out(
    run: Run, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str, bands: None) -> np.ndarray:
        if path.endswith("a.png"):
            raise MemoryError
        return read_picture(path)

    monkeypatch.setattr(media, "read_picture", read)
    assert run("--input", images, "--output", images.parent / "out") == 1
    assert "a.png needs more memory than there is" in capsys.readouterr().err


def test_window_shows_the_others_and_names_the_one_that_is_none(
    run: Run, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(predict, "open_window", lambda: None)
    monkeypatch.setattr(predict, "_show", lambda pictures, wait: shown.extend(pictures))
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    (images / "ab.png").write_bytes(b"no image")
    assert run("--input", images, "--device", "cpu") == 1
    assert [picture.shape for picture in shown] == [(64, 80, 3), (48, 96, 3)]
    assert "ab.png cannot be read" in capsys.readouterr().err


def count_images(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are read from now on."""
    read = []

    def counting(path: str, bands: None) -> np.ndarray:
        read.append(Path(path).name)
        return read_picture(path)

    monkeypatch.setattr(media, "read_picture", counting)
    return read


def test_resume_passes_over_images_whose_files_are_complete(
    run: Run, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, read = images.parent / "out", count_images(monkeypatch)
    arguments = ("--input", images, "--output", out)
    assert run(*arguments) == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    for gone in ("b_ids.json", "b_ids.png", "b.jpg"):  # in the order of a run that is killed earlier and earlier
        (out / gone).unlink()
        read.clear()
        assert run(*arguments, "--resume") == 0
        assert read == ["b.jpg"]
        assert "2 of 2 inputs drawn (1 of them before)" in capsys.readouterr().out
        assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    read.clear()
    assert run(*arguments) == 0
    assert read == ["a.png", "b.jpg"]


def test_resume_draws_again_what_other_options_have_drawn(
    run: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, read = ("--input", images, "--output", images.parent / "out"), count_images(monkeypatch)
    run(*arguments)
    for changed in (("--task", "semantic"), ("--confidence-threshold", "0.9"), ("--device", "cpu")):
        read.clear()
        keys = ("INPUT.MIN_SIZE_TEST", "48") if changed == ("--device", "cpu") else ()
        assert run(*arguments, *changed, "--resume", options=keys) == 0
        assert read == ["a.png", "b.jpg"], changed


def test_resume_draws_again_what_other_weights_of_the_same_name_have_drawn(
    run: Run, images: Path, tiny_weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = images.parent / "weights.pth"
    content = torch.load(tiny_weights, weights_only=True)
    torch.save(content, weights)
    arguments = ("--weights", weights, "--input", images, "--output", images.parent / "out", "--resume")
    read = count_images(monkeypatch)
    run(*arguments)
    content["model"]["sem_seg_head.predictor.class_embed.bias"][0] += 1e-6
    torch.save(content, weights)
    run(*arguments)
    run(*arguments)
    assert read == 2 * ["a.png", "b.jpg"]


def test_resume_draws_again_a_picture_that_was_replaced(
    run: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of the same name, size and time, as copying with times leaves it."""
    out = images.parent / "out"
    pixels = np.zeros((64, 80, 3), np.uint8)
    for value in (10, 200):
        Image.fromarray(pixels + np.uint8(value)).save(images / "c.bmp")
        os.utime(images / "c.bmp", (1e9, 1e9))
        read = count_images(monkeypatch)
        assert run("--input", images, "--output", out, "--resume") == 0
    assert read == ["c.bmp"]
    (images / "c.bmp").unlink()
    os.mkfifo(images / "c.bmp")
    assert run("--input", images, "--output", out, "--resume") == 1


def test_resume_draws_again_what_has_a_broken_json(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, read = images.parent / "out", count_images(monkeypatch)
    run("--input", images, "--output", out)
    for content in ("", "[]", '{"image":', "\x80"):
        (out / "a_ids.json").write_text(content, encoding="latin-1")
        read.clear()
        assert run("--input", images, "--output", out, "--resume") == 0
        assert read == ["a.png"], content


def test_a_folder_that_cannot_be_written_ends_the_run_instead_of_leaving_out_every_image(
    run: Run, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = count_images(monkeypatch)
    (images.parent / "file").write_text("")
    assert run("--input", images, "--output", images.parent / "file" / "out") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert read == ["a.png"]


def test_single_unreadable_image_is_an_error(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert run("--input", tmp_path / "broken.jpg", "--output", tmp_path / "out") == 2
    assert "broken.jpg cannot be read" in capsys.readouterr().err


def test_input_is_never_overwritten(run: Run, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (images / "a.png").read_bytes()
    assert run("--input", images / "a.png", "--output", images) == 2
    assert "would overwrite an input" in capsys.readouterr().err
    assert (images / "a.png").read_bytes() == before


def test_no_display_asks_for_an_output(
    run: Run, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert run("--input", images / "a.png", "--device", "cpu") == 2
    assert "There is no display to open a window on: say with --output" in capsys.readouterr().err


def test_opencv_without_windows_asks_for_an_output(
    run: Run, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_windows(name: str) -> None:
        raise cv2.error("not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", no_windows)
    assert run("--input", images / "a.png", "--device", "cpu") == 2
    assert "say with --output" in capsys.readouterr().err


def test_video_is_drawn_frame_by_frame(run: Run, images: Path) -> None:
    frame = read(images / "a.png")
    with VideoFile(images / "clip.mp4", frame_rate=5) as file:
        for _ in range(3):
            file.write(frame)
    out = images.parent / "out.mp4"
    assert run("--video-input", images / "clip.mp4", "--confidence-threshold", 1.0, "--output", out) == 0
    video = Video(Source.of_file(str(out)))
    drawn = list(video)
    assert video.frame_rate == pytest.approx(5)
    assert len(drawn) == 3
    assert np.abs(drawn[1].astype(int) - frame).mean() < 12  # nothing drawn at threshold 1: red and blue in place


def test_unregistered_dataset_gives_numbered_classes_and_a_warning(
    run: Run, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = images.parent / "out"
    options = ("DATASETS.TEST", "('moon_val',)", "DATASETS.TRAIN", "()")
    assert run("--input", images / "a.png", "--output", out, "--task", "semantic", options=options) == 0
    assert "dataset 'moon_val' (DATASETS.TEST) is not registered" in capsys.readouterr().err
    assert json.loads((out / "a_ids.json").read_text())["classes"][3] == {"id": 3, "name": "class 3"}


def test_model_sees_the_channel_order_that_it_was_trained_with() -> None:
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, examples: list[dict]) -> list[dict]:
            seen.append(examples[0])
            return [{}]

    red = np.zeros((2, 3, 3), dtype=np.uint8)
    red[:, :, 0] = 200

    class Nothing:
        def get_transform(self, image: np.ndarray) -> Nothing:
            return self

        def apply_image(self, image: np.ndarray) -> np.ndarray:
            return image

    for input_format, channel in (("RGB", 0), ("BGR", 2)):
        Predictor(model=Recorder(), resize=Nothing(), input_format=input_format)(red)
        assert seen[-1]["image"].shape == (3, 2, 3)
        assert seen[-1]["image"].amax(dim=(1, 2)).tolist()[channel] == 200
        assert (seen[-1]["height"], seen[-1]["width"]) == (2, 3)
    with pytest.raises(InputError, match=r"INPUT\.FORMAT is 'L'; expected one of RGB, BGR"):
        Predictor(model=Recorder(), resize=Nothing(), input_format="L")


def test_predictor_looks_at_the_views_of_the_original_that_the_configuration_asks_for(
    shapes_config: str, tiny_options: list[str], tiny_weights: str, predictor: Predictor, images: Path
) -> None:
    """INPUT.MIN_SIZE_TEST is 64 where there is no view, and of no effect where there is one of 64."""
    image = read(images / "a.png")
    views = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", "False"]
    words = [*tiny_options, "MODEL.WEIGHTS", tiny_weights, *views, "INPUT.MIN_SIZE_TEST", "17"]
    result = Predictor.from_config(load_config(shapes_config, words))(image)
    torch.testing.assert_close(result["sem_seg"], predictor(image)["sem_seg"])
    assert torch.equal(result["panoptic_seg"][0], predictor(image)["panoptic_seg"][0])


# --- what is known of the classes ---


@pytest.fixture
def _unregistered() -> Iterator[None]:
    """Only what Detectron2 registers is there, as in a new process."""
    kept = [(catalog, dict(catalog)) for catalog in (DatasetCatalog, MetadataCatalog)]
    for name in [name for name in DatasetCatalog if name.startswith("shapes_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    yield
    for catalog, content in kept:
        catalog.clear()
        catalog.update(content)


@pytest.fixture
def with_classes(tiny_weights: str, tmp_path: Path) -> Callable[[Classes], str]:
    """Writes the tiny model's weights as a checkpoint that knows these classes."""

    def write(classes: Classes) -> str:
        torch.save({**torch.load(tiny_weights, weights_only=True), "classes": classes.to_plain()}, tmp_path / "w.pth")
        return str(tmp_path / "w.pth")

    return write


UNKNOWN = ("DATASETS.TRAIN", "('moon_train',)", "DATASETS.TEST", "('moon_val',)")
MOON = Classes("moon", tuple("abcdefghi"), frozenset({0, 8}))


def kinds(segments: list[dict]) -> list[tuple[int, bool]]:
    return [(segment["category_id"], segment["isthing"]) for segment in segments]


@pytest.mark.usefixtures("_unregistered")
def test_python_gives_what_the_command_gives(
    run: Run, images: Path, shapes_config: str, tiny_options: list[str], tiny_weights: str
) -> None:
    """The first prediction of a process: nobody has registered a dataset."""
    image = read(images / "a.png")
    words = [*tiny_options, "MODEL.WEIGHTS", tiny_weights]
    cfg = load_config(shapes_config, words)
    _, segments = Predictor.from_config(cfg)(image)["panoptic_seg"]
    out = images.parent / "out"
    assert run("--input", images / "a.png", "--output", out) == 0
    of_command = json.loads((out / "a_ids.json").read_text())["segments_info"]
    assert kinds(segments) == kinds(of_command)
    assert {index for index, is_thing in kinds(segments) if is_thing} <= set(range(5))
    assert any(is_thing for _, is_thing in kinds(segments))
    of_detectron2 = DefaultPredictor(cfg)(np.ascontiguousarray(image[:, :, ::-1]))  # which takes BGR
    assert kinds(of_detectron2["panoptic_seg"][1]) == kinds(segments)
    assert {*of_detectron2["instances"].pred_classes.tolist()} <= set(range(5))


def test_weights_tell_the_classes_of_a_dataset_that_is_unknown_here(
    run: Run, images: Path, with_classes: Callable[[Classes], str]
) -> None:
    out = images.parent / "out"
    arguments = ("--input", images / "a.png", "--output", out, "--weights", with_classes(MOON))
    assert run(*arguments, options=UNKNOWN) == 0
    segments = json.loads((out / "a_ids.json").read_text())["segments_info"]
    assert {segment["category_name"] for segment in segments} <= set("abcdefghi")
    assert all(segment["isthing"] == (segment["category_id"] in (0, 8)) for segment in segments)
    assert segments


def test_dataset_that_the_users_python_registers_is_used(
    shapes_config: str, tiny_options: list[str], tiny_weights: str
) -> None:
    words = [*tiny_options, "MODEL.WEIGHTS", tiny_weights, *UNKNOWN]
    ids = {10: 0, 80: 8}
    MetadataCatalog.get("moon_val").set(stuff_classes=[*MOON.names], thing_dataset_id_to_contiguous_id=ids)
    try:
        classes = Predictor.from_config(load_config(shapes_config, words)).classes
    finally:
        MetadataCatalog.remove("moon_val")
    assert classes is not None and (classes.names, classes.things) == (MOON.names, MOON.things)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_without_things_there_is_no_panoptic_or_instance_result(
    run: Run, images: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--input", images / "a.png", "--output", images.parent / "out", "--task", task)
    assert run(*arguments, options=UNKNOWN) == 2
    error = capsys.readouterr().err
    assert "DATASETS.TRAIN" in error and "MODEL.MASK_FORMER.TEST.PANOPTIC_ON" in error and error.count("\n") == 1


@torch.no_grad()
def test_model_that_detectron2_builds_says_so_too(shapes_config: str, tiny_options: list[str]) -> None:
    model = build_model(load_config(shapes_config, [*tiny_options, *UNKNOWN])).eval()
    with pytest.raises(InputError, match="thing_dataset_id_to_contiguous_id"):
        model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])


def test_weights_of_classes_in_another_order_are_refused(
    run: Run, images: Path, with_classes: Callable[[Classes], str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = list(MetadataCatalog.get("shapes_panoptic_val").stuff_classes)
    names[1], names[2] = names[2], names[1]
    weights = with_classes(Classes("", tuple(names), frozenset(range(5))))
    assert run("--input", images / "a.png", "--output", images.parent / "out", "--weights", weights) == 2
    error = capsys.readouterr().err
    assert weights in error and "shapes_panoptic_val" in error and "class 1" in error
