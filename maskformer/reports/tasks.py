"""The three tasks, and for each: what switches it on, how to read the model's output, draw it and encode it as ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances
from pycocotools import mask as rle_codec

from maskformer.structures import InputError, PanopticResult

from .drawing import ClassTable, draw_instances, draw_panoptic, draw_semantic

INSTANCE_THRESHOLD = 0.5  # drawn by default; panoptic has the configuration's OBJECT_MASK_THRESHOLD


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
            **{key: value.item() if hasattr(value, "item") else value for key, value in segment.items()},  # for JSON
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
    segments = []
    for index, (category, score, mask) in enumerate(zip(categories, scores, masks, strict=True)):
        named = {"id": index + 1, "category_id": category, "category_name": classes.names[category]}
        segments.append({**named, "score": score, "area": int(mask.sum())})
        if is_overlapping:
            rle = rle_codec.encode(np.asfortranarray(mask, dtype=np.uint8))
            segments[-1]["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    encoding = "pixel value = segment id; where segments overlap, the one with the higher score"
    return IdMap(image, {"encoding": encoding, "void_id": 0, "overlapping": is_overlapping, "segments_info": segments})


@dataclass(frozen=True)
class Task:
    """What is done with one kind of result.

    Attributes:
        name: as on the command line.
        key: of the result in the model's output.
        read: the model's output for one image -> the result, on the CPU.
        draw: (RGB image, result, classes) -> RGB picture.
        encode: (result, classes) -> raw ids.
    """

    name: str
    key: str
    read: Callable[[dict[str, Any]], Any]
    draw: Callable[..., np.ndarray]
    encode: Callable[[Any, ClassTable], IdMap]

    @property
    def switch(self) -> str:
        """Which of MODEL.MASK_FORMER.TEST's keys makes the model give this result."""
        return f"{self.name.upper()}_ON"


def read_semantic(output: dict[str, Any]) -> np.ndarray:
    """The best class of each pixel, (height,width) int32 or int64."""
    semantic = output["sem_seg"]
    labels = semantic if semantic.dim() == 2 else semantic.argmax(dim=0)  # MODEL.MASK_FORMER.TEST.SEM_SEG_LABELS
    return labels.cpu().numpy()


def read_panoptic(output: dict[str, Any]) -> PanopticResult:
    """The panoptic result."""
    segment_map, segments_info = output["panoptic_seg"]
    return PanopticResult(segment_map.cpu(), segments_info)


def read_instances(output: dict[str, Any], threshold: float = INSTANCE_THRESHOLD) -> Instances:
    """The instances whose score exceeds a threshold."""
    instances = output["instances"].to("cpu")
    return instances[instances.scores > threshold]


# In order of preference: the first that is switched on is drawn.
TASKS = {
    task.name: task
    for task in (
        Task("panoptic", "panoptic_seg", read_panoptic, draw_panoptic, encode_panoptic),
        Task("instance", "instances", read_instances, draw_instances, encode_instances),
        Task("semantic", "sem_seg", read_semantic, draw_semantic, encode_semantic),
    )
}


def choose_task(cfg: CfgNode, name: str | None = None) -> Task:
    """The task that is asked for, or else the first that the model has switched on.

    Raises:
        InputError: the model has it, or all of them, switched off.
    """
    for task in TASKS.values():
        if cfg.MODEL.MASK_FORMER.TEST[task.switch] and name in (task.name, None):
            return task
    if name is not None:
        raise InputError(f"--task {name}, but {_switch_key(TASKS[name])} is False; expected True, or another --task.")
    raise InputError(f"The model gives no result: one of {', '.join(map(_switch_key, TASKS.values()))} must be True.")


def give_only(task: Task, cfg: CfgNode) -> None:
    """Switch off in a configuration what is not asked for; the results of the task stay the same."""
    test = cfg.MODEL.MASK_FORMER.TEST
    # Panoptic and instance output have it so for semantic output too.
    test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE |= test.PANOPTIC_ON or test.INSTANCE_ON
    for other in TASKS.values():
        test[other.switch] = other.name == task.name


def _switch_key(task: Task) -> str:
    return f"MODEL.MASK_FORMER.TEST.{task.switch}"


def with_threshold(task: Task, cfg: CfgNode, threshold: float) -> Task:
    """The task that keeps only what scores higher than a threshold.

    Args:
        task: panoptic or instance.
        cfg: changed where the model applies the threshold itself (panoptic).
        threshold: 0..1.

    Raises:
        InputError: the threshold is outside 0..1, or the task is semantic.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"--confidence-threshold is {threshold}; expected 0..1.")
    if task.name == "panoptic":
        cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = threshold
        return task
    if task.name == "instance":
        return replace(task, read=partial(read_instances, threshold=threshold))
    raise InputError(
        "--confidence-threshold does not apply to semantic results, where every pixel has its best class: leave it "
        f"out, or use a model with {_switch_key(TASKS['panoptic'])} or {_switch_key(TASKS['instance'])}."
    )
