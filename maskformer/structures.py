"""The legend of letters, the glossary, the small data classes that cross layers, and the errors.

Letters used in every docstring of this package:

    B  images of a batch               G  ground-truth segments of one image
    Q  queries                         L  supervised decoder layers
    K  classes, "no object" left out   D  transformer width
    C  mask-embedding width            H, W  padded network input, in pixels
    h, w  mask grid (stride 4)         height, width  an image's own size

One tensor has one name: ``class_logits`` (B,Q,K+1), ``mask_logits`` (B,Q,h,w), ``class_probs``, ``mask_probs``,
``pixel_embeddings`` (B,C,h,w), ``mask_embeddings`` (B,Q,C). Sizes are (height, width) everywhere.

Words of the field:

    mask classification     a set of masks, each with one class, instead of one class a pixel
    segment                 a region with one class: an object, or all pixels of a stuff class
    thing, stuff            classes that are counted one by one (car), and those that are not (sky)
    query                   a learned vector that becomes one mask and its class
    no object               the class K of a query that answers for no segment
    pixel decoder           makes pixel embeddings of the backbone's features
    pixel embeddings        C numbers for each place of the mask grid
    mask embedding          C numbers of a query; their product with pixel embeddings is its mask
    matcher                 gives each target the query that answers for it, at the least cost in all
    deep supervision        the loss is taken of every decoder layer, not of the last alone
    levels                  features of several strides that queries attend to in turn, the coarsest first
    masked attention        a query attends only where the mask is that it predicted a layer before
    annealing               giving masked attention up in training, block by block, so that inference needs none
    deformable attention    a place takes values at few places around it, on every level; it learns where
    sampled points          random places of a mask; what losses and costs compare instead of all its pixels
    stride                  pixels of the input between two places of a feature
    shifted windows         Swin's attention within windows that every other block moves by half of one
    patch, token            a square of pixels; what a vision transformer makes of it, D numbers
    class token, registers  tokens of a vision transformer that stand for no patch
    attention mask          which places may be attended to: of shifted windows; of a query in masked attention
    drop path               leaving out a residual branch of some images in training
    layer-wise decay        blocks of a backbone learn the slower the earlier they are
    frozen norm             batch norm with fixed statistics; folded: put into its convolution
    bands                   rows of a result that are computed one after another, to bound memory
    test-time augmentation  results averaged over resized and flipped forms of an image (TTA)
    repeat factor           how often an image is drawn in an epoch, by how rare its classes are
    shard                   the part of a dataset that one process reads
    non-finite step         a step whose loss or gradient holds NaN or infinity; it changes nothing
    collective stop flag    all processes stop after one step, if one of them is asked to
    PQ = SQ x RQ            panoptic quality: mean IoU of matched segments times how many match (F1)
    mIoU, AP                mean intersection over union of classes; average precision of instances
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F


def printable(text: str, keep: str = "") -> str:
    """The text with what is more than shown on a terminal written as Python would, such as an escape as backslash x1b.

    Names out of files may hold escape sequences, line ends, marks that turn the direction of writing, lone surrogates.

    Args:
        text: any.
        keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class EscapingHandler(logging.Handler):
    """To be the first handler of a logger: those after it write what is ``printable``.

    A message whose format is one line stays one line, whatever its arguments hold. Detectron2's colours go.
    """

    _COLOURS = re.compile(r"\x1b\[[\d;]*m")

    def emit(self, record: logging.LogRecord) -> None:
        """Change the record's message, if it needs it."""
        try:
            text = record.getMessage()
            plain = text if record.name.startswith("maskformer") else self._COLOURS.sub("", text)
            safe = printable(plain, keep="\n\t" if "\n" in str(record.msg) else "\t")
            if safe != text:
                record.msg, record.args = safe, None
        except Exception:  # as every handler: a message that cannot be formatted stops nothing
            self.handleError(record)
        # Where nobody asks for logs, Python itself shows warnings, but not if it sees a handler.
        names = record.name, record.name.partition(".")[0], None  # None: the root
        others = [handler for name in names for handler in logging.getLogger(name).handlers]
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and all(handler is self for handler in others):
            last.handle(record)


ESCAPING = EscapingHandler()  # one, which a logger takes once, however often it is added


SCREEN = logging.getLogger("maskformer.screen")  # what a run shows on the terminal; the log file has all else too


class _Sentence(Exception):
    """An error whose message is for the terminal.

    Args:
        message: names out of files may stand in it as they are.
    """

    def __init__(self, message: str):
        # PyTorch raises a data worker's error anew, with its traceback's lines as the message.
        super().__init__(printable(message, keep="\n" if message.startswith("Caught ") else ""))


class InputError(_Sentence, ValueError):
    """A mistake in what the user gave: a file, a value or a configuration key.

    The message is complete by itself (file, value seen, value expected, key to change); the command line prints it
    without a traceback.
    """


class BadImageError(InputError):
    """One image, or its annotation, that cannot be used; ``DATALOADER.ON_BAD_IMAGE`` says whether to go on without.

    The message names the file, what is wrong with it, and what to do.
    """


class RunError(_Sentence, RuntimeError):
    """A run that cannot go on, though nothing that the user wrote is wrong: memory, numbers or a process are lost.

    The message is complete by itself (what happened, what is kept, key to change); the command line prints it without
    a traceback.
    """


def check_choice(value: object, options: Iterable[Any], key: str) -> None:
    """Refuse what is none of the options.

    Args:
        value: of the key.
        options: names in a registry, or others that can be sorted.
        key: of the configuration.

    Raises:
        InputError: it lists the options.
    """
    known = sorted(options)
    if value not in known:
        raise InputError(
            f"{key} is {value!r}, expected one of {', '.join(str(option) or repr('') for option in known)}."
        )


@dataclass(frozen=True)
class Classes:
    """What is known of K classes, in the order of their numbers; it travels with the model and its checkpoints.

    Attributes:
        source: who says so, for messages, such as "dataset shapes_panoptic_train".
        names: K names.
        things: numbers of the classes that are counted one by one; None: that is not known.
        ids: K numbers that the dataset's own files have for them; None: not known.
        colors: K colours (red, green, blue), 0..255; None: the dataset has none.
    """

    source: str
    names: tuple[str, ...]
    things: frozenset[int] | None = None
    ids: tuple[int, ...] | None = None
    colors: tuple[tuple[int, ...], ...] | None = None

    def difference(self, others: Classes) -> str | None:
        """Where two lists of classes differ first, as part of a sentence; None: they do not, as far as both go.

        Case, further names after a comma, and the endings that Detectron2 takes from names of COCO ("-merged") do not
        count: they differ between the semantic and the panoptic form of one dataset.
        """
        pairs = list(zip(self.names, others.names))
        place = next((i for i, pair in enumerate(pairs) if _plain_name(pair[0]) != _plain_name(pair[1])), None)
        if place is None:
            return None
        both = f"class {place} is {pairs[place][0]!r} of {self.source} but {pairs[place][1]!r} of {others.source}"
        lists = f" ({', '.join(self.names)}; {', '.join(others.names)})" if len(pairs) <= _MOST_LISTED else ""
        return both + lists

    def completed_by(self, others: Classes) -> Classes:
        """The same, with what only ``others``, which are the same classes, know of them."""
        found = {key: getattr(others, key) for key in ("things", "ids", "colors") if getattr(self, key) is None}
        return replace(self, **found)

    def to_plain(self) -> dict[str, Any]:
        """What a checkpoint holds of them: lists, text and integers, which are read without running code."""
        return {
            "names": list(self.names),
            "things": None if self.things is None else sorted(self.things),
            "ids": None if self.ids is None else list(self.ids),
            "colors": None if self.colors is None else [list(color) for color in self.colors],
        }

    @classmethod
    def from_plain(cls, content: Any, source: str) -> Classes | None:
        """What ``to_plain`` gave, out of a file; None: the file holds something else under that name.

        Raises:
            InputError: names are there, but something about them makes no sense.
        """
        if not isinstance(content, dict) or "names" not in content:
            return None
        names: Any = content["names"]
        things, ids, colors = (content.get(key) for key in ("things", "ids", "colors"))
        count = len(names) if _is_list(names, str) else 0
        fits = (
            count > 0
            and (things is None or (_is_list(things, int) and all(0 <= index < count for index in things)))
            and (ids is None or (_is_list(ids, int) and len(ids) == count))
            and (colors is None or (_is_list(colors, list) and len(colors) == count and all(map(_is_color, colors))))
        )
        if not fits:
            raise InputError(f"{source} says of its classes what makes no sense: take its entry 'classes' away.")
        return cls(
            source=source,
            names=tuple("".join(c if c.isprintable() else "?" for c in name) for name in names),
            things=None if things is None else frozenset(things),
            ids=None if ids is None else tuple(ids),
            colors=None if colors is None else tuple(map(tuple, colors)),
        )

    def __len__(self) -> int:
        return len(self.names)


_MOST_LISTED = 12  # classes that a message lists


def _plain_name(name: str) -> str:
    first = name.split(",")[0].strip().casefold().replace("_", " ")
    return re.sub(r"(-other|-merged|-stuff)+$", "", first)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(part) is kind for part in value)


def _is_color(value: list[Any]) -> bool:
    return _is_list(value, int) and len(value) == 3 and all(0 <= part <= 255 for part in value)


@dataclass(frozen=True)
class LabelValues:
    """How label files number or colour the classes, where they do not simply hold 0..K-1.

    Attributes:
        of_classes: K distinct integers: the value of each class in files of one channel.
        ignored: the values of pixels without a class.
        colors: K colours (red, green, blue) of the classes in files of three channels; empty: there are no such files.
        ignored_colors: the colours of pixels without a class.
        by_palette: a file with a palette means its colours, not its indices.
    """

    of_classes: tuple[int, ...]
    ignored: tuple[int, ...]
    colors: tuple[tuple[int, ...], ...] = ()
    ignored_colors: tuple[tuple[int, ...], ...] = ()
    by_palette: bool = False


@dataclass(frozen=True)
class Bands:
    """Which of a picture's channels are red, green and blue, and what values become 0 and 255.

    Attributes:
        numbers: three channels, or one for grey, counted from 1; empty: the first three.
        value_range: the lowest and the highest value; None: 0..255, of 16 bits 0..65535.
    """

    numbers: tuple[int, ...] = ()
    value_range: tuple[float, float] | None = None

    def to_plain(self) -> dict[str, list[float]]:
        """The keys ``bands`` and ``range`` of ``DATASETS.OWN`` that say so."""
        given = {"bands": self.numbers, "range": self.value_range}
        return {key: list(value) for key, value in given.items() if value}


@dataclass(frozen=True)
class OwnDataset:
    """One split of a user's own dataset, as ``DATASETS.OWN`` describes it.

    Attributes:
        name: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` call it.
        key: where it is described, for messages.
        classes: K names.
        colors: K colours (red, green, blue), 0..255; None: made up.
        values: the value of each class in label maps, or its category id in JSON; and the ignored values.
        things: the names among ``classes`` that are counted one by one.
        paths: absolute; ``images`` and either ``labels``, ``objects``, ``instances``, or ``panoptic`` and
            ``panoptic_masks``; and ``list`` where it names the images. What is in an archive begins with "zip://".
        image_suffix: how the names of images end; "": as any picture's.
        label_suffix: how the names of ``labels`` and ``objects`` end, likewise.
        bands: which channels of the images are read; None: they are plain pictures.
    """

    name: str
    key: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, ...], ...] | None
    values: LabelValues
    things: tuple[str, ...]
    paths: dict[str, str]
    image_suffix: str = ""
    label_suffix: str = ""
    bands: Bands | None = None

    @property
    def ignore_label(self) -> int | None:
        """The value of pixels without a class after reading; None where there are instances alone."""
        if {"instances", "objects"} & self.paths.keys():
            return None
        num_classes, ignored = len(self.classes), self.values.ignored
        is_plain = self.values.of_classes == tuple(range(num_classes))
        if is_plain and len(ignored) == 1 and ignored[0] >= num_classes:
            return ignored[0]
        return 255 if num_classes <= 255 else 65535


def multiply(mask_embeddings: Tensor, pixel_embeddings: Tensor) -> Tensor:
    """Products of (L,B,Q,C) with (B,C,h,w), summed over C: (L,B,Q,h,w).

    ``torch.einsum`` would do the same with a view of a non-contiguous tensor, which some accelerators refuse.
    """
    of_image = mask_embeddings.transpose(0, 1)  # one matrix product for each image, whatever L is
    products = of_image.flatten(1, 2) @ pixel_embeddings.flatten(2)
    return products.unflatten(2, pixel_embeddings.shape[2:]).unflatten(1, of_image.shape[1:3]).transpose(0, 1)


@dataclass(frozen=True)
class MaskPredictions:
    """What the network says, one entry a supervised decoder layer; the last layer is the answer.

    Attributes:
        class_logits: (L,B,Q,K+1) logits; index K is "no object".
        mask_logits: (L,B,Q,h,w) logits.
        mask_embeddings: (L,B,Q,C); None where masks are no products.
        pixel_embeddings: (B,C,h,w), which they are multiplied with to give ``mask_logits``, or what makes such of each
            layer; None likewise.
    """

    class_logits: Tensor
    mask_logits: Tensor
    mask_embeddings: Tensor | None = None
    pixel_embeddings: Tensor | PixelsOfLayers | None = None

    @classmethod
    def from_embeddings(
        cls, class_logits: Tensor, mask_embeddings: Tensor, pixel_embeddings: Tensor
    ) -> MaskPredictions:
        """Predictions whose masks are ``multiply``'s; shapes as above."""
        mask_logits = multiply(mask_embeddings, pixel_embeddings)
        return cls(class_logits, mask_logits, mask_embeddings, pixel_embeddings)

    @property
    def final(self) -> tuple[Tensor, Tensor]:
        """The last layer's ``class_logits`` (B,Q,K+1) and ``mask_logits`` (B,Q,h,w)."""
        return self.class_logits[-1], self.mask_logits[-1]

    def masks_of_pairs(self, layers: Tensor, images: Tensor, queries: Tensor, of_image: Sequence[int]) -> Tensor:
        """Some masks, as part of a loss: what their gradients cost is the cost of these masks alone.

        Where embeddings are known, the masks are products of their own, so that no gradient as large as
        ``mask_logits``, nearly all zeros, goes back through its product; and pixels are taken apart by image once, as
        each single image's gradient would be padded with zeros to the whole batch.

        Args:
            layers: (N,L) integers, along the first axis those of an image together; in each row all layers in turn, if
                each has its own pixel embeddings.
            images: of the same shape.
            queries: likewise.
            of_image: how many of the first axis belong to each of the B images.

        Returns:
            (N,L,h,w) logits.
        """
        if self.mask_embeddings is None or self.pixel_embeddings is None:
            return self.mask_logits[layers, images, queries]
        embeddings = self.mask_embeddings[layers, images, queries]
        if isinstance(self.pixel_embeddings, Tensor):
            masks = _multiply_by_image(embeddings, self.pixel_embeddings, of_image)
            return masks.unflatten(-1, self.pixel_embeddings.shape[-2:])
        with torch.no_grad():
            masks = self.mask_logits[layers, images, queries]
        return self.pixel_embeddings.lead_gradients(masks, embeddings, of_image)


@dataclass(frozen=True)
class PixelsOfLayers:
    """Pixel embeddings of which each layer has its own: none are kept, for gradients they are computed again.

    Attributes:
        module: makes (B,C,h,w) of (B,D,rows,columns), drawing nothing.
        features: L times what it makes them of.
    """

    module: nn.Module
    features: Sequence[Tensor]

    def lead_gradients(self, masks: Tensor, embeddings: Tensor, of_image: Sequence[int]) -> Tensor:
        """``masks`` (N,L,h,w), whose gradients go to the (N,L,C) mask embeddings that made them, and to the pixels'."""
        names, parameters = zip(*self.module.named_parameters())
        of_layers = []
        for layer, features in enumerate(self.features):
            parts = (x[:, layer].split(list(of_image)) for x in (masks, embeddings))
            of_images = [
                _KnownProduct.apply(*part, of_one, self.module, names, *parameters)
                for *part, of_one in zip(*parts, features.split(1))
            ]
            of_layers.append(torch.cat(of_images))
        return torch.stack(of_layers, dim=1)


class _KnownProduct(torch.autograd.Function):
    """Masks (n,h,w) that are known, as products of (n,C) with what ``module`` makes of one image's features."""

    @staticmethod
    def forward(
        ctx: Any,
        masks: Tensor,
        embeddings: Tensor,
        features: Tensor,
        module: nn.Module,
        names: Sequence[str],
        *parameters: Tensor,
    ) -> Tensor:
        device = masks.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.module, ctx.names = module, names
        ctx.save_for_backward(embeddings, features, *parameters)
        return masks.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        embeddings, *inputs = ctx.saved_tensors
        features, *parameters = inputs = [x.detach().requires_grad_() for x in inputs]
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            pixels = functional_call(ctx.module, dict(zip(ctx.names, parameters)), (features,))
        rows = pixels.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (h w, C), as they lie in memory on a CPU
        of_masks = gradient.flatten(1)
        of_embeddings = of_masks @ rows.to(of_masks.dtype)
        of_rows = (of_masks.mT @ embeddings.to(of_masks.dtype)).to(pixels.dtype)
        of_pixels = of_rows.view(1, *pixels.shape[2:], -1).permute(0, 3, 1, 2)
        of_features, *of_parameters = torch.autograd.grad(pixels, inputs, of_pixels)
        return None, of_embeddings.to(embeddings.dtype), of_features, None, None, *of_parameters


def _multiply_by_image(embeddings: Tensor, pixel_embeddings: Tensor, of_image: Sequence[int]) -> Tensor:
    """Products (N,...,h w) of (N,...,C), where so many of N belong to each image, with (B,C,h,w).

    Gradients lie in memory as ``pixel_embeddings`` do.
    """
    pixels = pixel_embeddings.flatten(2)
    if pixel_embeddings.is_contiguous(memory_format=torch.channels_last):  # as on a CPU
        of_images = [image.mT for image in pixels.mT.unbind()]
    else:
        of_images = list(pixels.unbind())
    return torch.cat([masks @ of_pixels for masks, of_pixels in zip(embeddings.split(list(of_image)), of_images)])


@dataclass(frozen=True)
class Targets:
    """The ground-truth segments of one image.

    Attributes:
        labels: (G,) int64, classes 0..K-1.
        masks: (G,H,W) bool, padded with False to the network input.
    """

    labels: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Match:
    """Which query answers for which target, in one image and one layer; all other queries say "no object".

    Attributes:
        query_indices: (min(Q,G),) int64, ascending.
        target_indices: (min(Q,G),) int64, the target of each of those queries.
        has_finite_costs: whether it is the cheapest; else there is none, and the pairs stand for nothing.
    """

    query_indices: Tensor
    target_indices: Tensor
    has_finite_costs: bool = True


@dataclass(frozen=True)
class PanopticResult:
    """A panoptic segmentation of one image.

    Attributes:
        segment_map: (height, width) int32; 0 is void, other values are the ``id`` of a segment.
        segments_info: one dict a segment: ``id`` (from 1), ``isthing``, ``category_id`` (0..K-1).
        scores: the class probability of each segment; () where nobody knows.
    """

    segment_map: Tensor
    segments_info: list[dict[str, Any]]
    scores: Sequence[float] = ()


class SegmentMasks:
    """G binary masks, stored as one id map, or as few as overlapping masks need, and expanded only where needed.

    A map takes one or two bytes a pixel from the data worker to the device, however many segments there are. It stands
    where Detectron2 has ``BitMasks`` (``Instances.gt_masks``): ``len``, ``to``, ``tensor``, indexing by segment.

    Args:
        segment_map: (H,W) or (layers,H,W) integers; 0 is no segment, g + 1 belongs to segment g.
        num_segments: G.
    """

    def __init__(self, segment_map: Tensor, num_segments: int):
        self.segment_map = segment_map
        self._segment_ids = torch.arange(1, num_segments + 1, device=segment_map.device)

    def _like(self, segment_map: Tensor, segment_ids: Tensor) -> SegmentMasks:
        masks = SegmentMasks(segment_map, 0)
        masks._segment_ids = segment_ids
        return masks

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.segment_map.shape[-2:]
        return height, width

    @property
    def device(self) -> torch.device:
        """Where the id map lives."""
        return self.segment_map.device

    @property
    def tensor(self) -> Tensor:
        """(G,H,W) bool: the expanded masks, made anew at each call."""
        ids = self._segment_ids.to(self.segment_map.dtype)[:, None, None]
        first, *others = self.segment_map.unbind() if self.segment_map.ndim == 3 else [self.segment_map]
        masks = first == ids
        for layer in others:
            masks |= layer == ids
        return masks

    def to(self, *args: Any, **kwargs: Any) -> SegmentMasks:
        """The same masks on another device; arguments as in ``Tensor.to``."""
        return self._like(self.segment_map.to(*args, **kwargs), self._segment_ids.to(*args, **kwargs))

    def pin_memory(self) -> SegmentMasks:
        """The same masks in memory that a device can read by itself."""
        return self._like(self.segment_map.pin_memory(), self._segment_ids.pin_memory())

    def pad(self, padding: tuple[int, int, int, int]) -> SegmentMasks:
        """The same masks on a larger image: (left, right, top, bottom) pixels that belong to no segment."""
        return self._like(F.pad(self.segment_map, padding), self._segment_ids)

    def nonempty(self) -> Tensor:
        """(G,) bool: which segments have a pixel."""
        return torch.isin(self._segment_ids, self.segment_map.unique().to(self._segment_ids))

    def __getitem__(self, index: Any) -> SegmentMasks:
        """Some of the segments, by integer, slice, boolean (G,) or index tensor."""
        return self._like(self.segment_map, self._segment_ids[index].reshape(-1))

    def __len__(self) -> int:
        return len(self._segment_ids)
