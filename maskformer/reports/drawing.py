"""Pure drawing: an image and a result in, a picture out.

Detectron2's Visualizer draws outlines and labels. Areas are filled here, because Visualizer fills the holes of things.
All images are (height,width,3) uint8 RGB. The same result is always drawn in the same colours.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from maskformer.structures import Classes, PanopticResult

Color = tuple[float, float, float]  # red, green, blue in 0..1

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


def draw_semantic(image: np.ndarray, class_map: np.ndarray, classes: ClassTable, *, scale: int = 1) -> np.ndarray:
    """Colour every pixel by its class, and name each class once.

    Args:
        image: (height,width,3).
        class_map: (height,width) integers; a value outside 0..K-1 is left undrawn.
        classes: K names and colours.
        scale: size of the picture over size of the image.
    """
    present = [index for index in np.unique(class_map).tolist() if 0 <= index < len(classes)]
    return _paint(image, [_stuff_layer(class_map == index, classes, index) for index in present], scale)


def draw_panoptic(image: np.ndarray, result: PanopticResult, classes: ClassTable, *, scale: int = 1) -> np.ndarray:
    """Colour every segment by its class; things of one class differ a little.

    Args:
        image: (height,width,3).
        result: segments of the image; void is left undrawn.
        classes: K names and colours.
        scale: size of the picture over size of the image.
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
    return _paint(image, layers, scale)


def draw_instances(image: np.ndarray, instances: Instances, classes: ClassTable, *, scale: int = 1) -> np.ndarray:
    """Draw every instance with its class and score.

    Args:
        image: (height,width,3).
        instances: with ``pred_masks`` (N,height,width), ``pred_classes`` and ``scores``.
        classes: K names and colours.
        scale: size of the picture over size of the image.
    """
    masks = list(instances.pred_masks.cpu().numpy().astype(bool))
    categories = instances.pred_classes.tolist()
    named = zip(categories, instances.scores.tolist(), strict=True)
    labels = [f"{classes.label(index)} {score:.0%}" for index, score in named]
    return _paint(image, _thing_layers(masks, categories, labels, classes), scale)


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


def _paint(image: np.ndarray, layers: Sequence[Layer], scale: int) -> np.ndarray:
    """Fill the areas, the largest first, then draw outlines and labels over them."""
    picture = _enlarge(image, scale)
    layers = [replace(layer, mask=_enlarge(layer.mask.astype(np.float32), scale) > 0.5) for layer in layers]
    layers.sort(key=lambda layer: -layer.mask.sum())
    for layer in layers:
        color = np.array(layer.color) * 255
        picture[layer.mask] = (1 - OPACITY) * picture[layer.mask] + OPACITY * color
    visualizer = Visualizer(picture)
    # Its figure is a hundredth of a pixel larger than the picture, which Matplotlib before 3.11 would stretch to it.
    figure, axes = visualizer.output.fig, visualizer.output.ax
    axes.set_position((0, 0, picture.shape[1] / figure.bbox.width, picture.shape[0] / figure.bbox.height))
    for layer in layers:
        contours, _ = cv2.findContours(layer.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        for contour in contours:  # (points,1,2) x and y of pixels along the edges, those of holes included
            if len(contour) > 2:
                visualizer.draw_polygon(contour[:, 0] + 0.5, layer.color, edge_color=layer.edge_color, alpha=0)
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
