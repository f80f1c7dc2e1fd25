"""The Python door: ``load`` gives a ``Predictor``; pictures in, results out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image
from torch import Tensor, nn

from maskformer.checkpoint import Checkpointer, find_weights_file
from maskformer.config import as_options
from maskformer.data.datasets.own import bands_of
from maskformer.data.files import reading
from maskformer.data.mappers.base import evaluation_resize
from maskformer.engine.accelerator import with_device
from maskformer.engine.network import run_as_configured
from maskformer.engine.setup import register_datasets
from maskformer.engine.test_time import apply_test_time_options, check_test_classes, inference_options, innermost
from maskformer.exporting.folder import described_bands, described_classes, find_model, write_folder
from maskformer.meta_arch import MaskClassifier, know_classes
from maskformer.model_inputs import MOST_OF_ONE
from maskformer.model_inputs import output_size as checked_size
from maskformer.reports.tasks import TASKS, Task
from maskformer.results import Result
from maskformer.structures import BadImageError, Bands, Classes, InputError, check_choice

CHANNEL_ORDERS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_ALLOWED = "(height, width, 3) uint8 RGB, or another picture that maskformer.predictor.as_rgb takes"


def load(source: str | Path, weights: str | Path | None = None, *, device: str = "auto", **keys: Any) -> Predictor:
    """A trained model, ready to segment pictures.

    Args:
        source: a configuration file; the output folder of a training, or a checkpoint in it; or a folder that
            ``save_pretrained`` wrote, ours or Hugging Face's.
        weights: a file of any layout that docs/weights.md names, or a folder; by default those of the folder (of a
            training, the last), or the configuration's MODEL.WEIGHTS.
        device: cpu, cuda, ...; "auto": an accelerator, else the CPU.
        **keys: changes of the configuration, with a double underscore for each point: ``INPUT__MIN_SIZE_TEST=512``.

    Raises:
        InputError: something is not there, does not fit, or makes no sense; the message says which key to change.
    """
    options = as_options({"MODEL.DEVICE": device, **keys})
    if weights is not None:
        options += ["MODEL.WEIGHTS", find_weights_file(os.path.expanduser(weights))]
    source = os.path.expanduser(source)
    cfg = find_model(source, options)
    register_datasets(cfg)
    predictor = Predictor.from_config(cfg)
    if predictor.classes is None:
        innermost(predictor.model).classes = described_classes(source)  # type: ignore[assignment]
    predictor.bands = predictor.bands or described_bands(source)
    return predictor


class Predictor:
    """Segments pictures with a trained model. It can be pickled, and several threads may use one.

    Args:
        model: gives, for a list of examples, a list of results.
        resize: applied to each image before the model sees it.
        input_format: the model's channel order, "RGB" or "BGR"; callers always give RGB.
        cfg: the model's configuration, for ``save_pretrained``, and for which results are shown first.
        bands: which channels of picture files are read, and what their values mean; None: they are plain pictures.

    Raises:
        InputError: another channel order.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        resize: T.Augmentation,
        input_format: str = "RGB",
        cfg: CfgNode | None = None,
        bands: Bands | None = None,
    ):
        if input_format not in CHANNEL_ORDERS:
            raise InputError(f"INPUT.FORMAT is {input_format!r}; expected one of {', '.join(CHANNEL_ORDERS)}.")
        self.model = model.eval()
        self.cfg = cfg
        self.bands = bands
        self._resize = resize
        self._channel_order = list(CHANNEL_ORDERS[input_format])
        self._lock = threading.Lock()  # what a call asks of the model is set on the model

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Predictor:
        """Build the model that a configuration describes and load MODEL.WEIGHTS.

        Picture files are read as the first dataset of ``DATASETS.OWN`` says that DATASETS.TEST, else TRAIN, names.

        Args:
            cfg: complete; a MODEL.DEVICE of "auto" takes an available accelerator, else the CPU.

        Raises:
            InputError: no weights are given, or they do not fit; or of the classes less is known than results need, or
                something else than ``DATASETS.TEST`` says.
        """
        if not cfg.MODEL.WEIGHTS:
            raise InputError("MODEL.WEIGHTS is empty; set it to a trained model, such as output/model_final.pth.")
        cfg = with_device(cfg)
        model = build_model(cfg)
        know_classes(model, cfg)
        run_as_configured(cfg, model)
        _load_all(model, cfg.MODEL.WEIGHTS)
        check_test_classes(cfg, model)
        cfg, model = apply_test_time_options(cfg, model)
        bands = bands_of((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN))
        return cls(model=model, resize=evaluation_resize(cfg), input_format=cfg.INPUT.FORMAT, cfg=cfg, bands=bands)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str = "auto", **keys: Any) -> Predictor:
        """What ``save_pretrained`` wrote, ours or Hugging Face's; see ``load``."""
        if not os.path.isdir(os.path.expanduser(folder)):
            raise InputError(f"{folder} is no folder; expected one that save_pretrained wrote.")
        return load(folder, device=device, **keys)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        layout: str = "maskformer",
        licence: str = "",
        max_shard_bytes: int = 5 * 2**30,
    ) -> None:
        """Write weights, configuration, preprocessing and a model card into a folder that ``load`` reads.

        Args:
            folder: created where it is missing.
            layout: "maskformer", or "hugging-face" for its ``from_pretrained``, which has fewer models.
            licence: of the weights, for the card, such as "apache-2.0"; "": the card says that nobody stated it.
            max_shard_bytes: larger weights are divided into several files.

        Raises:
            InputError: the folder cannot be written, or Hugging Face has no such model.
        """
        if self.cfg is None:
            raise InputError("This Predictor has no configuration to save: make it with load or from_config.")
        write_folder(
            Path(folder).expanduser(),
            innermost(self.model).state_dict(),
            self.cfg,
            self.classes,
            layout=layout,
            licence=licence,
            max_shard_bytes=max_shard_bytes,
            bands=self.bands,
        )

    @property
    def classes(self) -> Classes | None:
        """What the model knows of its classes; None: nothing."""
        return getattr(innermost(self.model), "classes", None)

    def __call__(
        self,
        image: Any,
        output_size: tuple[int, int] | None = None,
        *,
        task: str | None = None,
        threshold: float | None = None,
        batch_size: int = 1,
    ) -> Any:
        """Segment one picture, or many.

        Args:
            image: (height,width,3) uint8 RGB, or another picture that ``as_rgb`` takes, such as the name of a file; or
                many pictures: a list, a tuple, an array or tensor (N, ...), or an iterator.
            output_size: (height, width) of the results; the picture's own by default.
            task: "panoptic", "instance" or "semantic" alone, whether the configuration has it on or not; by default all
                that it has on, of which the first of these is what ``Result.segments`` shows.
            threshold: 0..1, of what is shown: the least score of an instance, by default 0.5; the least class
                probability of a panoptic segment, by default the configuration's OBJECT_MASK_THRESHOLD; or that of a
                pixel's class in semantic results, by default 0, for which ``sem_seg`` is scores.
            batch_size: how many of many pictures the model sees at once, where neighbours have one size.

        Returns:
            A ``Result``; of many pictures a list; of an iterator an iterator, which segments as it is asked and keeps
            nothing. Of a picture it has the model's results, of ``sem_seg`` (of our models: labels, not scores),
            ``panoptic_seg`` and ``instances``; and more readable forms of them.

        Raises:
            BadImageError: it is no picture, or so narrow that nothing is left of it when it is resized.
            InputError: the size of results is none, or the model cannot do the task.
        """
        chosen, options = self._choose(task, threshold)
        if output_size is not None and not (isinstance(output_size, (list, tuple)) and len(output_size) == 2):
            raise InputError(f"output_size is {output_size!r}; expected (height, width).")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}; expected an integer from 1.")
        is_batch = isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4
        if not (is_batch or isinstance(image, (list, tuple, Iterator))):
            (result,) = self._segment_all([("", image)], output_size, chosen, options, 1)
            return result
        named = ((f"Picture {index} (the first is 0): ", picture) for index, picture in enumerate(image))
        results = self._segment_all(named, output_size, chosen, options, batch_size)
        return results if isinstance(image, Iterator) else list(results)

    def _choose(self, name: str | None, threshold: float | None) -> tuple[Task, dict[str, Any]]:
        """What is shown, and the options that make the model give it."""
        options: dict[str, Any] = {"semantic_as_labels": True, "segment_scores": True}
        if name is not None:
            check_choice(name, TASKS, "task")
            options.update({f"{other}_on": other == name for other in TASKS})
        model = innermost(self.model)
        if isinstance(model, MaskClassifier):
            is_on = {other: getattr(model.inference, f"{other}_on") for other in TASKS}
            # Panoptic and instance output have it so for semantic output too.
            options["restore_masks_first"] = (
                model.inference.restore_masks_first or is_on["panoptic"] or is_on["instance"]
            )
        else:
            is_on = {other: other == "semantic" for other in TASKS}
            if name is not None and not is_on[name]:
                raise InputError(f"task is {name!r}, but a {type(model).__name__} gives semantic results alone.")
        shown = name or next((other for other in TASKS if is_on[other]), None)
        if shown is None:
            raise InputError("The model has every result switched off (MODEL.MASK_FORMER.TEST): name a task.")
        if shown != "semantic" and getattr(self.model, "window", None) is not None:
            raise InputError(
                f"task is {shown!r}, but MODEL.MASK_FORMER.TEST.SLIDING_WINDOW gives semantic results alone: load the "
                "model without it."
            )
        if threshold is None:
            return TASKS[shown], options
        task, more = TASKS[shown].above(threshold)
        return task, {**options, **more}

    def _segment_all(
        self,
        pictures: Iterable[tuple[str, Any]],
        output_size: tuple[int, int] | None,
        task: Task,
        options: dict[str, Any],
        batch_size: int,
    ) -> Iterator[Result]:
        """Results of pictures, of each of which is said how an error about it begins."""
        batch: list[tuple[Any, np.ndarray, dict[str, Any]]] = []
        for place, picture in pictures:
            try:
                rgb = as_rgb(picture, self.bands)
                example = self.example(rgb, output_size)
            except BadImageError as error:
                raise BadImageError(f"{place}{error}") from error
            if batch and (len(batch) == batch_size or batch[0][2]["image"].shape != example["image"].shape):
                yield from self._segment_batch(batch, task, options)
                batch = []
            batch.append((picture, rgb, example))
        if batch:
            yield from self._segment_batch(batch, task, options)

    def _segment_batch(
        self, batch: list[tuple[Any, np.ndarray, dict[str, Any]]], task: Task, options: dict[str, Any]
    ) -> Iterator[Result]:
        outputs = self._outputs([example for _, _, example in batch], options)
        num_classes = len(self.classes) if self.classes is not None else self._num_classes
        for (picture, rgb, _), output in zip(batch, outputs, strict=True):
            name = os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else getattr(picture, "filename", "")
            yield Result(
                output, image=rgb, task=task, known=self.classes, num_classes=num_classes, name=str(name or "")
            )

    def _outputs(self, examples: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
        with self._lock, torch.inference_mode(), inference_options(self.model, **options):
            check = getattr(innermost(self.model), "check_classes", None)
            if check is not None:
                check()
            return self.model(examples)

    def outputs(
        self, examples: list[dict[str, Any]], *, task: str | None = None, threshold: float | None = None
    ) -> list[dict[str, Any]]:
        """The model's results of a batch that is ready: for whoever reads pictures and keeps results himself.

        Args:
            examples: what ``example`` gave, of one ``bucket``.
            task: as for a call.
            threshold: as for a call.
        """
        return self._outputs(examples, self._choose(task, threshold)[1])

    def bucket(self, example: dict[str, Any]) -> tuple[int, ...]:
        """The size that an example is padded to: a batch of one size gives what each example gives alone."""
        divisor = max(getattr(innermost(self.model), "size_divisibility", 1), 1)  # of others, equal sizes are safe
        return tuple(-(-length // divisor) * divisor for length in example["image"].shape[-2:])

    @property
    def _num_classes(self) -> int:
        return 0 if self.cfg is None else self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES

    def example(self, rgb: np.ndarray, output_size: tuple[int, int] | None = None) -> dict[str, Any]:
        """What the model is given of a picture.

        Args:
            rgb: (height,width,3) uint8.
            output_size: as for a call.

        Raises:
            BadImageError: nothing is left of it when it is resized.
        """
        asked = {} if output_size is None else dict(zip(("height", "width"), output_size))
        height, width = checked_size({"file_name": "the picture", **asked}, rgb.shape[:2])
        transform = self._resize.get_transform(rgb)
        if isinstance(transform, T.ResizeTransform) and min(transform.new_h, transform.new_w) < 1:
            raise BadImageError(
                f"A picture of {rgb.shape[0]} x {rgb.shape[1]} pixels (height x width) becomes {transform.new_h} x "
                f"{transform.new_w} within INPUT.MAX_SIZE_TEST; expected at least one pixel each way: cut the picture "
                "or raise the key."
            )
        resized = transform.apply_image(rgb)[:, :, self._channel_order]
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": pixels, "height": height, "width": width}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def as_rgb(picture: Any, bands: Bands | None = None) -> np.ndarray:
    """Bring a picture into the one form that a predictor resizes.

    Args:
        picture: the name of an image file; a picture of Pillow's, of any mode; or an array or tensor. Arrays are
            (height,width) or (height,width,channels), tensors (height,width) or (channels,height,width), and each the
            other way round where it can be nothing else. One channel is grey, four are RGBA, of which A is dropped.
            Values are bytes or other integers of 0..255; uint16 of 0..65535; bool; floats of 0..1, or of 0..255 if
            one is 2 or more.
        bands: how to read a file; None: as a plain picture.

    Returns:
        (height,width,3) uint8 RGB, upright as an EXIF orientation says.

    Raises:
        BadImageError: it is anything else, empty, or has values out of range.
    """
    remedy = "Give another picture."
    if isinstance(picture, str) and "://" in picture:
        raise BadImageError(f"{picture} is an address, and nothing is fetched here: download it and give the file.")
    if isinstance(picture, (str, os.PathLike)):
        return np.asarray(reading.read_picture(os.path.expanduser(picture), remedy, bands))
    if isinstance(picture, Image.Image):
        name = getattr(picture, "filename", "") or "without a name"
        picture = np.asarray(reading.to_rgb(picture, name, remedy))
    if isinstance(picture, Tensor):
        pixels = _to_array(picture)
    elif isinstance(picture, np.ndarray):
        pixels = np.asarray(picture)  # without the rules of matrices
    else:
        raise BadImageError(f"The picture is a {type(picture).__name__}; expected {_ALLOWED}.")
    pixels = _channels_last(pixels, channels_first=isinstance(picture, Tensor))
    pixels = _to_bytes(pixels[:, :, :3])
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _to_array(tensor: Tensor) -> np.ndarray:
    try:
        return (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantised, without values
        raise BadImageError(f"The picture is a tensor that is no array ({error}); expected {_ALLOWED}.") from error


def _channels_last(pixels: np.ndarray, *, channels_first: bool) -> np.ndarray:
    """(height,width,channels) of what may have its channels first, or none."""
    shape = pixels.shape
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    can_be_first, can_be_last = (pixels.ndim == 3 and pixels.shape[axis] in _CHANNELS for axis in (0, -1))
    if 0 in shape or not (can_be_first or can_be_last):
        raise BadImageError(f"The picture has the shape {shape}; expected {_ALLOWED}.")
    if can_be_first and len(shape) == 3 and (channels_first or not can_be_last):
        pixels = pixels.transpose(1, 2, 0)
    return pixels


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Scale values of any kind to uint8."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "uif":
        raise BadImageError(f"The picture has values of the type {pixels.dtype}; expected {_ALLOWED}.")
    low, high = pixels.min(), pixels.max()
    if pixels.dtype == np.uint16 and (high > 255 or high == 0):
        return (pixels >> 8).astype(np.uint8)
    # Floats between 1 and 2 may be of either scale, and so may small numbers of 16 bits.
    is_fraction = pixels.dtype.kind == "f" and (pixels % 1 != 0).any()
    is_either = pixels.dtype == np.uint16 or (is_fraction and MOST_OF_ONE < high < 2)
    if is_either or not (low >= 0 and high <= 255):  # NaN is neither
        raise BadImageError(
            f"The picture has values of {low:g}..{high:g} in {pixels.dtype}; expected uint8, other integers or floats "
            "of 0..255, floats of 0..1, or uint16 up to 65535: scale or clip them, make uint8 of them, and leave "
            "normalisation to the model."
        )
    if pixels.dtype.kind == "f" and high <= MOST_OF_ONE:
        return np.rint(pixels.clip(max=1) * 255.0).astype(np.uint8)
    return np.rint(pixels).astype(np.uint8)


def _load_all(model: nn.Module, path: str) -> None:
    """Load weights that must hold every parameter: those of a backbone alone would give random pictures."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    Checkpointer(model).load(path)
    unset = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    if unset:
        raise InputError(
            f"Weights {path} leave {len(unset)} parameters without a value (the first is {unset[0]}); expected a "
            "trained model, not a backbone: set --weights or MODEL.WEIGHTS to one."
        )
