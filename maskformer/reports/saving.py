"""Pure encodings of results as raw id maps, and writing of pictures, id maps and videos."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as rle_codec

from maskformer.files import folder_beside, unfinished
from maskformer.structures import BadImageError, InputError, PanopticResult

from .drawing import ClassTable
from .sources import ids_path, name_for_opencv

JPEG_QUALITY = 92
# A name that this file alone cannot have (too long, no text, a folder's), or a picture that its format cannot hold.
_OF_ONE_FILE = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, None)
# Tried in this order, the ending asked for first: which codecs exist depends on how OpenCV was built.
VIDEO_CODECS = ((".mp4", "mp4v"), (".avi", "XVID"), (".avi", "MJPG"))


@dataclass(frozen=True)
class IdMap:
    """Raw ids of an image and what they mean.

    Attributes:
        image: (height,width) uint8 or uint16, or (height,width,3) uint8: what goes into the PNG file.
        meaning: what goes into the JSON file, apart from what is common to all tasks.
    """

    image: np.ndarray
    meaning: dict[str, Any]


def encode_semantic(class_map: np.ndarray, classes: ClassTable) -> IdMap:
    """Class ids as pixel values, one byte where it holds them and the ignore value 255, else two bytes."""
    dtype, ignore_value = (np.uint8, 255) if len(classes) <= 255 else (np.uint16, 65535)
    meaning = {"encoding": "pixel value = class id", "ignore_value": ignore_value}
    return IdMap(class_map.astype(dtype), meaning)


def encode_panoptic(result: PanopticResult, classes: ClassTable) -> IdMap:
    """Segment ids as colours, as in COCO's panoptic format: id = R + 256 G + 65536 B."""
    ids = result.segment_map.cpu().numpy().astype(np.uint32)
    image = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)
    segments = [
        {
            **_plain(segment),
            "category_name": classes.names[segment["category_id"]],
            "area": int((ids == segment["id"]).sum()),
        }
        for segment in result.segments_info
    ]
    meaning = {"encoding": "segment id = R + 256 * G + 65536 * B", "void_id": 0, "segments_info": segments}
    return IdMap(image, meaning)


def encode_instances(instances: Instances, classes: ClassTable) -> IdMap:
    """Instance ids 1..N as pixel values; where instances overlap, the JSON has each one's mask as COCO RLE too."""
    masks = instances.pred_masks.cpu().numpy().astype(bool)
    scores, categories = instances.scores.tolist(), instances.pred_classes.tolist()
    image = np.zeros(instances.image_size, dtype=np.uint16)
    for index in np.argsort(scores, kind="stable").tolist():  # the best comes last and lies on top
        image[masks[index]] = index + 1
    is_overlapping = bool((masks.sum(axis=0) > 1).any())
    segments = [
        {
            "id": index + 1,
            "category_id": category,
            "category_name": classes.names[category],
            "score": score,
            "area": int(mask.sum()),
            **({"segmentation": _to_rle(mask)} if is_overlapping else {}),
        }
        for index, (category, score, mask) in enumerate(zip(categories, scores, masks, strict=True))
    ]
    encoding = "pixel value = segment id; where segments overlap, the one with the higher score"
    return IdMap(image, {"encoding": encoding, "void_id": 0, "overlapping": is_overlapping, "segments_info": segments})


def _plain(segment: dict[str, Any]) -> dict[str, Any]:
    """The same values as Python's own numbers, which JSON can write."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in segment.items()}


def _to_rle(mask: np.ndarray) -> dict[str, Any]:
    rle = rle_codec.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB, grey or 16-bit picture in the format that the name ends in; folders are created.

    Raises:
        BadImageError: this one cannot be written: its name, or the format's limits.
        InputError: no file can be written there.
    """
    suffix = path.suffix.lower()
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if suffix in (".jpg", ".jpeg", ".webp") else {}
    content = io.BytesIO()
    with _explained(path):
        Image.fromarray(picture).save(content, format=Image.registered_extensions()[suffix], **options)
    write_whole(path, content.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either whole or as it was, whenever the process or the machine stops; folders are created.

    Raises:
        InputError: it cannot be written.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path, flush=True) as temporary:
            temporary.write_bytes(content)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # the latter of a format's limits
        kind = BadImageError if getattr(error, "errno", None) in _OF_ONE_FILE else InputError
        raise kind(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}. Check --output.") from error


def write_ids(picture_path: Path, ids: IdMap, facts: dict[str, Any], classes: ClassTable) -> None:
    """Write ``NAME_ids.png`` and then ``NAME_ids.json`` beside a picture.

    Args:
        picture_path: the picture that belongs to them.
        ids: the encoded result.
        facts: task, model, dataset and so on; they come first in the JSON.
        classes: K names.
    """
    write_picture(ids_path(picture_path, ".png"), ids.image)
    height, width = ids.image.shape[:2]
    named = [{"id": index, "name": name} for index, name in enumerate(classes.names)]
    content = {**facts, "height": height, "width": width, **ids.meaning, "classes": named}
    write_whole(ids_path(picture_path, ".json"), (json.dumps(content, indent=1) + "\n").encode())


def has_ids(picture_path: Path, facts: dict[str, Any]) -> bool:
    """Whether a picture and its ids are there, with these facts among those in the JSON.

    Args:
        picture_path: as for ``write_ids``.
        facts: likewise, or some of them.
    """
    try:
        content = json.loads(ids_path(picture_path, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_same = isinstance(content, dict) and all(content.get(key) == value for key, value in facts.items())
    return is_same and picture_path.is_file() and ids_path(picture_path, ".png").is_file()


def forget_ids(picture_path: Path) -> None:
    """Remove ``NAME_ids.json``, before what belongs to it is written anew.

    Raises:
        InputError: it cannot be removed.
    """
    with _explained(ids_path(picture_path, ".json")):
        ids_path(picture_path, ".json").unlink(missing_ok=True)


class VideoFile:
    """A video that is written frame by frame, in the first codec that this OpenCV has. Use it in a ``with`` block.

    The file has its name once the block ends without an error.

    Args:
        path: .mp4 or .avi; ``path`` says later which of them it became.
        frame_rate: frames a second.
    """

    def __init__(self, path: Path, frame_rate: float):
        self.path = path
        self._frame_rate = frame_rate
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append an RGB frame; all frames have the size of the first.

        Raises:
            BadImageError: no codec works for it.
            InputError: the file cannot be written.
        """
        if self._writer is None:
            self._writer = self._open(frame.shape[:2])
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))  # OpenCV's frames are BGR

    def _open(self, frame_size: Sequence[int]) -> cv2.VideoWriter:
        height, width = frame_size
        name_for_opencv(self.path)
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = folder_beside(self.path)
        for suffix, codec in sorted(VIDEO_CODECS, key=lambda pair: pair[0] != self.path.suffix.lower()):
            path = self.path.with_suffix(suffix)
            aside = Path(self._folder.name, path.name)
            writer = cv2.VideoWriter(str(aside), cv2.VideoWriter.fourcc(*codec), self._frame_rate, (width, height))
            if writer.isOpened():
                self.path, self._aside = path, aside
                return writer
        self._folder.cleanup()
        codecs = ", ".join(codec for _, codec in VIDEO_CODECS)
        raise BadImageError(f"{self.path} cannot be written: check --output, or this OpenCV has no codec of {codecs}.")

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        with _explained(self.path), self._folder:
            if kind is None:
                self._aside.replace(self.path)
