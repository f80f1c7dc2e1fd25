"""What may be given to ``Predictor`` as a picture: each form gives the same bytes, or a sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from maskformer.predictor import Predictor, as_rgb
from maskformer.structures import BadImageError, InputError

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
ALPHA = np.full((6, 5, 1), 17, np.uint8)
RGBA = np.concatenate([RGB, ALPHA], axis=2)


class Recorder(torch.nn.Module):
    """A model that keeps what it is shown."""

    def forward(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (self.seen,) = examples
        return [{}]


@pytest.mark.parametrize(
    "picture",
    [
        RGB,
        RGBA,
        RGB.transpose(2, 0, 1),
        RGB[::-1][::-1],
        RGB.astype(np.int64),
        RGB.astype(np.float32),
        RGB.astype(np.float64) / 255,
        RGBA.astype(np.float32) / 255,
        RGB.astype(np.uint16) * 257,
        torch.from_numpy(RGB.transpose(2, 0, 1).copy()),
        torch.from_numpy(RGBA.transpose(2, 0, 1).copy()),
        torch.from_numpy(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1) / 255,
        torch.from_numpy(RGB).bfloat16().requires_grad_(),
        Image.fromarray(RGB),
        Image.fromarray(RGBA),
        Image.fromarray(RGB).convert("RGBA"),
    ],
    ids=lambda picture: f"{type(picture).__name__}-{getattr(picture, 'dtype', '')}-{getattr(picture, 'shape', '')}",
)
def test_every_form_of_a_picture_in_colours(picture: object):
    tolerance = 1 if isinstance(picture, torch.Tensor) and picture.dtype == torch.bfloat16 else 0  # has 8 bits
    np.testing.assert_allclose(as_rgb(picture).astype(int), RGB, atol=tolerance)
    assert as_rgb(picture).dtype == np.uint8 and as_rgb(picture).shape == (6, 5, 3)


@pytest.mark.parametrize(
    "picture",
    [
        GREY,
        GREY[:, :, None],
        GREY[None],
        GREY / 255,
        np.ma.masked_array(GREY),
        torch.from_numpy(GREY.copy())[None],
        Image.fromarray(GREY),
        Image.fromarray(GREY.astype(np.uint16) * 256 + 3),
    ],
)
def test_every_form_of_a_grey_picture(picture: object):
    np.testing.assert_array_equal(as_rgb(picture), np.repeat(GREY[:, :, None], 3, axis=2))


def test_floats_that_interpolation_left_above_one_are_of_one():
    assert as_rgb(np.array([[0.2, 1.000001]]))[0, :, 0].tolist() == [51, 255]
    assert as_rgb(np.array([[0.2, 200.0]]))[0, :, 0].tolist() == [0, 200]


def test_palettes_bits_and_booleans():
    palette = Image.fromarray(RGB).quantize(4)
    np.testing.assert_array_equal(as_rgb(palette), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(as_rgb(GREY > 99)[:, :, 1], np.where(GREY > 99, 255, 0))
    np.testing.assert_array_equal(as_rgb(Image.fromarray(GREY > 99))[:, :, 1], np.where(GREY > 99, 255, 0))


def test_what_can_be_two_things_is_what_its_kind_usually_is():
    both = RGB[:3, :3]
    np.testing.assert_array_equal(as_rgb(both), both)
    np.testing.assert_array_equal(as_rgb(torch.from_numpy(both.copy())), both.transpose(1, 2, 0))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_read_upright(kind: type, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(as_rgb(kind(tmp_path / "turned.png")), np.rot90(RGB, -1))
    with Image.open(tmp_path / "turned.png") as picture:
        np.testing.assert_array_equal(as_rgb(picture), np.rot90(RGB, -1))
        assert picture.size == (5, 6)  # the caller's own stays as it is


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "is a NoneType"),
        ([RGB], "is a list"),
        (b"a.png", "is a bytes"),
        (RGB[None], r"shape \(1, 6, 5, 3\)"),
        (RGB[:, :, :2], r"shape \(6, 5, 2\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.array([]), r"shape \(0,\)"),
        (Image.new("RGB", (0, 5)), r"shape \(5, 0, 3\)"),
        (np.where(RGB[0, 0] == RGB, np.nan, RGB), r"nan\.\.nan in float64"),
        (np.where(RGB[0, 0] == RGB, np.inf, RGB), r"\.\.inf in float64"),
        ((RGB - 123.7) / 58.4, r"-2\.\d+.* leave normalisation to the model"),
        (RGB.astype(np.int32) - 300, r"-300\.\.-\d+ in int32"),
        (RGB.astype(np.uint16), "in uint16"),
        (RGB * np.float32(1.3 / RGB.max()), r"\.\.1\.3 in float32; expected .*clip"),
        (RGB.astype(str), "type <U3"),
        (RGB * 1j, "type complex128"),
        (Image.fromarray(GREY.astype(np.float32)), "32-bit numbers"),
        (torch.zeros(3, 6, 5, device="meta"), "no array"),
        (torch.zeros(3, 6).to_sparse(), "no array"),
        ("missing.png", r"missing\.png cannot be read: it does not exist"),
    ],
)
def test_what_is_no_picture_is_named(picture: object, message: str):
    with pytest.raises(BadImageError, match=message):
        as_rgb(picture)


def test_a_fifo_does_not_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadImageError, match=r"a\.png .* is a FIFO"):
        as_rgb(tmp_path / "a.png")


def test_a_picture_of_which_nothing_is_left_is_named():
    predictor = Predictor(model=Recorder(), resize=T.ResizeShortestEdge(800, 256))
    with pytest.raises(BadImageError, match=r"1 x 4000 pixels.* 0 x 256 within INPUT\.MAX_SIZE_TEST"):
        predictor(np.zeros((1, 4000, 3), np.uint8))
    predictor(np.zeros((1, 400, 3), np.uint8))
    assert predictor.model.seen["image"].shape == (3, 1, 256)


@pytest.mark.parametrize("size", [(0, 5), (-1, 5), (2.5, 5), (10**9, 10**9)])
def test_results_of_no_size_are_named(size: tuple[float, float]):
    predictor = Predictor(model=Recorder(), resize=T.ResizeShortestEdge(800, 256))
    with pytest.raises(InputError, match="'height' and 'width' of the picture"):
        predictor(RGB, size)
