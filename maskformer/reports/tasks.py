"""The three tasks, and for each: what switches it on, how to read the model's output, draw it and encode it as ids.

Drawing is pure: an image and a result in, a picture out.
Detectron2's Visualizer draws outlines and labels. Areas are filled here, because Visualizer fills the holes of things.
All images are (height,width,3) uint8 RGB. The same result is always drawn in the same colours.
"""

from __future__ import annotations

import colorsys
import numbers
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from matplotlib.patches import Polygon
from pycocotools import mask as rle_codec

from maskformer.structures import Classes, InputError, PanopticResult

Color = tuple[float, float, float]  # red, green, blue in 0..1

INSTANCE_THRESHOLD = 0.5  # drawn by default; panoptic has the configuration's OBJECT_MASK_THRESHOLD
OPACITY = 0.6
STUFF_EDGE = (1.0, 1.0, 0.94)
LABEL_HALF_HEIGHT = 6  # pixels: Visualizer places the top of a text
MIN_LABEL_DEPTH = 3  # pixels to the nearest edge of what is labelled; thinner segments go without a label
HUE_STEP = 0.055  # of the colour circle, between two things of one class
GOLDEN_RATIO = 0.618034


@dataclass(frozen=True)
class Layer:
    """One area of a picture.

    Attributes:
        mask: (height,width) bool.
        color: of the area.
        edge_color: of its outline.
        label: written where the area is widest.
    """

    mask: np.ndarray
    color: Color
    edge_color: Color
    label: str


@dataclass(frozen=True)
class ClassTable:
    """Name and colour of each class 0..K-1."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]

    @classmethod
    def of(cls, classes: Classes | None, num_classes: int) -> ClassTable:
        """What a model knows of its K classes; numbers and made-up colours where it knows none."""
        names = tuple(f"class {index}" for index in range(num_classes)) if classes is None else classes.names
        if classes is None or classes.colors is None:
            hues = (index * GOLDEN_RATIO % 1 for index in range(num_classes))
            return cls(names, tuple(colorsys.hls_to_rgb(hue, 0.5, 0.7) for hue in hues))
        return cls(names, tuple((red / 255, green / 255, blue / 255) for red, green, blue in classes.colors))

    def __len__(self) -> int:
        return len(self.names)

    def label(self, index: int) -> str:
        """The first of a class's names: some datasets give several, parted by commas."""
        return self.names[index].split(",")[0]


def draw_semantic(
    image: np.ndarray, class_map: np.ndarray, classes: ClassTable, *, scale: int = 1, opacity: float = OPACITY
) -> np.ndarray:
    """Colour every pixel by its class, and name each class once.

    Args:
        image: (height,width,3).
        class_map: (height,width) integers; a value outside 0..K-1 is left undrawn.
        classes: K names and colours.
        scale: size of the picture over size of the image.
        opacity: of the colours, 0..1.
    """
    present = [index for index in np.unique(class_map).tolist() if 0 <= index < len(classes)]
    return _paint(image, [_stuff_layer(class_map == index, classes, index) for index in present], scale, opacity)


def draw_panoptic(
    image: np.ndarray, result: PanopticResult, classes: ClassTable, *, scale: int = 1, opacity: float = OPACITY
) -> np.ndarray:
    """Colour every segment by its class; things of one class differ a little.

    Args:
        image: (height,width,3).
        result: segments of the image; void is left undrawn.
        classes: K names and colours.
        scale: size of the picture over size of the image.
        opacity: of the colours, 0..1.
    """
    segment_map = result.segment_map.cpu().numpy()
    layers, masks, categories = [], [], []
    for segment in result.segments_info:
        mask, category = segment_map == segment["id"], segment["category_id"]
        if segment["isthing"]:
            masks.append(mask)
            categories.append(category)
        else:
            layers.append(_stuff_layer(mask, classes, category))
    layers += _thing_layers(masks, categories, [classes.label(category) for category in categories], classes)
    return _paint(image, layers, scale, opacity)


def draw_instances(
    image: np.ndarray, instances: Instances, classes: ClassTable, *, scale: int = 1, opacity: float = OPACITY
) -> np.ndarray:
    """Draw every instance with its class and score.

    Args:
        image: (height,width,3).
        instances: with ``pred_masks`` (N,height,width), ``pred_classes`` and ``scores``.
        classes: K names and colours.
        scale: size of the picture over size of the image.
        opacity: of the colours, 0..1.
    """
    masks = list(instances.pred_masks.cpu().numpy().astype(bool))
    categories = instances.pred_classes.tolist()
    named = zip(categories, instances.scores.tolist(), strict=True)
    labels = [f"{classes.label(index)} {score:.0%}" for index, score in named]
    return _paint(image, _thing_layers(masks, categories, labels, classes), scale, opacity)


def _stuff_layer(mask: np.ndarray, classes: ClassTable, index: int) -> Layer:
    return Layer(mask, classes.colors[index], STUFF_EDGE, classes.label(index))


def _thing_layers(
    masks: list[np.ndarray], categories: list[int], labels: list[str], classes: ClassTable
) -> list[Layer]:
    """Turn the hue of every further thing of one colour, left and right of it in turn."""
    seen: Counter[Color] = Counter()
    layers = []
    for mask, category, label in zip(masks, categories, labels, strict=True):
        color = classes.colors[category]
        turn = (seen[color] + 1) // 2 * (1 if seen[color] % 2 else -1)
        seen[color] += 1
        hue, lightness, saturation = colorsys.rgb_to_hls(*color)
        varied = colorsys.hls_to_rgb((hue + turn * HUE_STEP) % 1, lightness, saturation)
        layers.append(Layer(mask, varied, varied, label))
    return layers


def _paint(image: np.ndarray, layers: Sequence[Layer], scale: int, opacity: float) -> np.ndarray:
    """Fill the areas, the largest first, then draw outlines and labels over them."""
    picture = _enlarge(image, scale)
    layers = [replace(layer, mask=_enlarge(layer.mask.astype(np.float32), scale) > 0.5) for layer in layers]
    layers.sort(key=lambda layer: -layer.mask.sum())
    for layer in layers:
        color = np.array(layer.color) * 255
        picture[layer.mask] = (1 - opacity) * picture[layer.mask] + opacity * color
    visualizer = Visualizer(picture)
    # Its figure is a hundredth of a pixel larger than the picture, which Matplotlib before 3.11 would stretch to it.
    figure, axes = visualizer.output.fig, visualizer.output.ax
    line_width = max(np.sqrt(picture.shape[0] * picture.shape[1]) // 90 // 15, 1)
    axes.set_position((0, 0, picture.shape[1] / figure.bbox.width, picture.shape[0] / figure.bbox.height))
    for layer in layers:
        contours, _ = cv2.findContours(layer.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        for contour in contours:  # (points,1,2) x and y of pixels along the edges, those of holes included
            if len(contour) > 2:
                # As draw_polygon draws, which finds limits of the axes too that are set: half of the time.
                corners = contour[:, 0] + 0.5
                axes.add_artist(Polygon(corners, fill=False, edgecolor=layer.edge_color, linewidth=line_width))
    for layer in layers:
        _write_label(visualizer, layer)
    return visualizer.output.get_image()


def _enlarge(pixels: np.ndarray, scale: int) -> np.ndarray:
    if scale == 1:
        return pixels.copy()
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def _write_label(visualizer: Visualizer, layer: Layer) -> None:
    framed = np.pad(layer.mask, 1).astype(np.uint8)  # the picture's border is an edge too
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, 1:-1]
    if depth.max() < MIN_LABEL_DEPTH:
        return
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    lighter = tuple((1 + value) / 2 for value in layer.color)  # labels stand on black
    visualizer.draw_text(layer.label, (x, y - LABEL_HALF_HEIGHT), color=lighter)


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
    """Class ids as pixel values, one byte where it holds them and the ignore value 255 (for -1), else two bytes."""
    dtype, ignore_value = (np.uint8, 255) if len(classes) <= 255 else (np.uint16, 65535)
    meaning = {"encoding": "pixel value = class id", "ignore_value": ignore_value}
    return IdMap(np.where(class_map < 0, ignore_value, class_map).astype(dtype), meaning)


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
        draw: (RGB image, result, classes) -> RGB picture; ``scale`` and ``opacity`` by name.
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

    def above(self, threshold: float, key: str = "threshold") -> tuple[Task, dict[str, Any]]:
        """The task that keeps only what scores higher, and the options that a model needs for it.

        Args:
            threshold: 0..1.
            key: what it is called where the user gave it.

        Raises:
            InputError: the threshold is outside 0..1.
        """
        if not isinstance(threshold, numbers.Real) or not 0 <= threshold <= 1:
            raise InputError(f"{key} is {threshold!r}; expected 0..1.")
        if self.name == "panoptic":
            return self, {"object_mask_threshold": threshold}
        if self.name == "instance":
            return replace(self, read=partial(read_instances, threshold=threshold)), {}
        # Labels alone, which take a K-th of the memory, have no probability.
        return replace(self, read=partial(read_semantic, threshold=threshold)), {"semantic_as_labels": threshold == 0}


def read_semantic(output: dict[str, Any], threshold: float = 0.0) -> np.ndarray:
    """The best class of each pixel, (height,width) int32 or int64.

    Args:
        output: with ``sem_seg``: scores (K,height,width), or labels (height,width), which have no probability.
        threshold: a pixel whose best class is not more probable is -1. MaskFormer's scores are probabilities as long
            as they sum to at most 1, and the rest is "no object"; where they sum to more, they are divided by it.
    """
    semantic = output["sem_seg"]
    if semantic.dim() == 2:  # MODEL.MASK_FORMER.TEST.SEM_SEG_LABELS
        return semantic.cpu().numpy()
    best, labels = semantic.max(dim=0)
    if threshold > 0:
        # Only the per-pixel models of Detectron2 give logits, of which some are negative.
        total = semantic.sum(dim=0).clamp(min=1)
        probs = semantic.softmax(dim=0).amax(dim=0) if semantic.min() < 0 else best / total
        labels = labels.masked_fill(probs <= threshold, -1)
    return labels.cpu().numpy()


def read_panoptic(output: dict[str, Any]) -> PanopticResult:
    """The panoptic result."""
    segment_map, segments_info = output["panoptic_seg"]
    return PanopticResult(segment_map.cpu(), segments_info)


def read_instances(output: dict[str, Any], threshold: float = INSTANCE_THRESHOLD) -> Instances:
    """The instances whose score exceeds a threshold."""
    instances = output["instances"].to("cpu")
    return instances[instances.scores > threshold]


def pack(result: Any) -> Any:
    """What ``Task.read`` gave, without tensors.

    From one process to another, tensors would take shared memory, of which containers have little.
    """
    if isinstance(result, PanopticResult):
        return {**vars(result), "segment_map": result.segment_map.numpy()}
    if isinstance(result, Instances):
        names = ("pred_masks", "pred_classes", "scores")
        return result.image_size, {name: result.get(name).numpy() for name in names}
    return result


def unpack(packed: Any) -> Any:
    """What ``Task.draw`` and ``Task.encode`` take, from what ``pack`` gave."""
    if isinstance(packed, dict):
        return PanopticResult(**{**packed, "segment_map": torch.from_numpy(packed["segment_map"])})
    if isinstance(packed, tuple):
        size, arrays = packed
        return Instances(size, **{name: torch.from_numpy(array) for name, array in arrays.items()})
    return packed


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
