"""Inference: post-processing alone, on made-up predictions, and whole, from an image to its results.

"plain" is an independent network of the same sizes (Hugging Face's) with the definitions after it: nothing in it was
made fast here. "definition" has our network before the definitions. "hugging face" ends in that library's own
post-processing, whose maps have a quarter of the image's resolution unless it is given sizes.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from benchmarks import definitions
from maskformer.engine.accelerator import Accelerator
from maskformer.exporting.program import INPUT_NAME, export_program, write
from maskformer.inference import Geometry, instance_inference, panoptic_inference, semantic_inference, semantic_labels
from maskformer.predictor import CHANNEL_ORDERS

from .models import (
    build_hugging_face,
    build_ours,
    draw_image,
    draw_segment_map,
    import_transformers,
    load_recipe,
    normalise,
)

Unit = Callable[[], Any]
PANOPTIC = {"object_mask_threshold": 0.8, "overlap_threshold": 0.8}  # as the COCO recipes
MASK_STRIDE = 4
DIVISIBILITY = 32
CERTAIN = 12.0  # logit of a class that takes nearly all probability
SEED = 0


def draw_class_logits(queries: int, classes: int, kept: int) -> Tensor:
    """(Q,K+1): the first ``kept`` queries are sure of a class, the others that there is no object."""
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn(queries, classes + 1, generator=generator)
    wanted = torch.full((queries,), classes)
    wanted[:kept] = torch.arange(kept) % classes
    logits[torch.arange(queries), wanted] += CERTAIN
    return logits


def draw_mask_logits(queries: int, kept: int, grid: tuple[int, int]) -> Tensor:
    """(Q,h,w): smooth blobs that divide the image among the first ``kept`` queries; the others are noise."""
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn(queries, *grid, generator=generator)
    regions = draw_segment_map(max(kept, 1), grid, SEED)
    for query in range(kept):
        inside = (regions == query + 1).float()[None, None]
        logits[query] += 10 * torch.nn.functional.avg_pool2d(inside, 5, stride=1, padding=2)[0, 0] - 5
    return logits


def set_up_post_processing(
    *,
    implementation: str,
    task: str,
    size: Sequence[int],
    queries: int = 100,
    classes: int = 133,
    kept: int = 20,
    device: str = "cpu",
) -> Unit:
    """From the predictions of one image to its results, at the image's size.

    Args:
        implementation: "maskformer" or "definition".
        task: "panoptic", "semantic" (scores), "labels" (semantic, the arg-max) or "instance".
        size: (height,width) of the image; the network input is padded to a multiple of 32.
        queries: Q.
        classes: K; the first half are things.
        kept: queries that find something.
        device: see ``Accelerator``.
    """
    padded = _pad(size)
    class_logits = draw_class_logits(queries, classes, kept).to(device)
    grid = (padded[0] // MASK_STRIDE, padded[1] // MASK_STRIDE)
    mask_logits = draw_mask_logits(queries, kept, grid).to(device)
    geometry = Geometry(padded_size=padded, image_size=(size[0], size[1]), output_size=(size[0], size[1]))
    process = POST_PROCESSING[implementation, task](classes)

    @torch.inference_mode()
    def unit() -> None:
        process(class_logits, mask_logits, geometry)

    return unit


def _pad(size: Sequence[int]) -> tuple[int, int]:
    height, width = (-(-length // DIVISIBILITY) * DIVISIBILITY for length in size)
    return height, width


def _ours_panoptic(classes: int) -> Callable[..., Any]:
    options: dict[str, Any] = {"thing_class_ids": frozenset(range(classes // 2)), **PANOPTIC}
    return lambda *predicted: panoptic_inference(*predicted, **options)


def _ours_semantic(_classes: int) -> Callable[..., Any]:
    return lambda *predicted: semantic_inference(*predicted, restore_masks_first=False)


def _ours_labels(_classes: int) -> Callable[..., Any]:
    return lambda *predicted: semantic_labels(*predicted, restore_masks_first=False)


def _ours_instance(classes: int) -> Callable[..., Any]:
    options: dict[str, Any] = {"thing_class_ids": frozenset(range(classes // 2)), "max_instances": 100}
    return lambda *predicted: instance_inference(*predicted, **options)


def _plain(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A definition that takes sizes as one ``Geometry``."""

    def process(class_logits: Tensor, mask_logits: Tensor, geometry: Geometry) -> Any:
        sizes = (geometry.padded_size, geometry.image_size, geometry.output_size)
        return function(class_logits, mask_logits, *sizes, **options)

    return process


def _plain_panoptic(classes: int) -> Callable[..., Any]:
    things = frozenset(range(classes // 2))
    return _plain(definitions.panoptic_inference, thing_class_ids=things, **PANOPTIC)


def _plain_semantic(_classes: int) -> Callable[..., Any]:
    return _plain(definitions.semantic_inference)


def _plain_labels(_classes: int) -> Callable[..., Any]:
    scores = _plain(definitions.semantic_inference)
    return lambda *predicted: scores(*predicted).argmax(0)


def _plain_instance(classes: int) -> Callable[..., Any]:
    things = frozenset(range(classes // 2))
    return _plain(definitions.instance_inference, thing_class_ids=things, max_instances=100)


POST_PROCESSING: dict[tuple[str, str], Callable[[int], Callable[..., Any]]] = {
    ("maskformer", "panoptic"): _ours_panoptic,
    ("maskformer", "semantic"): _ours_semantic,
    ("maskformer", "labels"): _ours_labels,
    ("maskformer", "instance"): _ours_instance,
    ("definition", "panoptic"): _plain_panoptic,
    ("definition", "semantic"): _plain_semantic,
    ("definition", "labels"): _plain_labels,
    ("definition", "instance"): _plain_instance,
}


# --- whole ---


# The COCO recipes have one with ResNets; the peer has none.
NO_ENCODER = [
    *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "0"),
    *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"),
]


def load_inference_config(recipe: str, task: str, device: str, *, tiny: bool, keys: Sequence[str] = ()) -> CfgNode:
    """A recipe, without a pixel decoder's encoder, whose model gives the results of one task alone."""
    test = "MODEL.MASK_FORMER.TEST."
    result = "semantic" if task == "labels" else task
    switches = [
        word
        for name in ("semantic", "panoptic", "instance")
        for word in (f"{test}{name.upper()}_ON", str(name == result))
    ] + [f"{test}SEM_SEG_LABELS", str(task == "labels")]
    thresholds = [word for name, value in PANOPTIC.items() for word in (f"{test}{name.upper()}", str(value))]
    without_encoder = [] if recipe.startswith(("mask2former/", "eomt/")) else NO_ENCODER
    options = [*without_encoder, *switches, *(thresholds if task == "panoptic" else []), *keys]
    return load_recipe(recipe, device, tiny=tiny, options=options)


def keep_queries(class_predictor: nn.Module, queries: int, classes: int, kept: int, device: str) -> None:
    """Have a random model find ``kept`` objects: their logits are added to what its class predictor gives."""
    shift = draw_class_logits(queries, classes, kept).to(device)
    class_predictor.register_forward_hook(lambda _module, _inputs, logits: logits + shift)


def _build(
    kind: str,
    *,
    recipe: str,
    task: str,
    kept: int,
    device: str,
    tiny: bool,
    half: bool = False,
    keys: Sequence[str] = (),
) -> tuple[CfgNode, nn.Module]:
    """Ours or Hugging Face's model of a recipe, in evaluation mode, that finds ``kept`` objects."""
    cfg = load_inference_config(recipe, task, device, tiny=tiny, keys=keys)
    model: Any = (build_ours if kind == "maskformer" else build_hugging_face)(cfg).eval()
    is_eomt = recipe.startswith("eomt/")
    if kind == "maskformer":
        predictor = model.network.class_head if is_eomt else model.sem_seg_head.predictor.class_embed
    else:
        predictor = model.class_predictor
        if is_eomt:
            model.attn_mask_probs.zero_()  # as in released weights: a new model masks attention in evaluation too
    queries, classes = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    keep_queries(predictor, queries, classes, kept, device)
    return cfg, model.bfloat16() if half else model


def set_up_ours(
    *,
    recipe: str,
    task: str,
    size: Sequence[int],
    kept: int = 20,
    device: str = "cpu",
    tiny: bool = False,
    half: bool = False,
    keys: Sequence[str] = (),
) -> Unit:
    """From an image to its results; ``train_net.py --eval-only`` asks for "labels" where it is semantic.

    Args:
        recipe: a file under ``configs/``.
        task: as above.
        size: (height,width) of the image and of its results.
        kept: queries that find something.
        device: see ``Accelerator``.
        tiny: make the network small.
        half: in bfloat16, weights and all.
        keys: KEY VALUE KEY VALUE ..., of the configuration.
    """
    options: dict[str, Any] = {"kept": kept, "device": device, "tiny": tiny, "half": half, "keys": keys}
    _, model = _build("maskformer", recipe=recipe, task=task, **options)
    batch = [{"image": draw_image((size[0], size[1]), SEED), "height": size[0], "width": size[1]}]

    @torch.inference_mode()
    def unit() -> None:
        model(batch)

    return unit


def set_up_file(
    *, runtime: str, recipe: str, task: str, size: Sequence[int], kept: int = 20, tiny: bool = False
) -> Unit:
    """The exported model in a runtime, "onnxruntime" or "openvino", for images of one size; arguments as above."""
    cfg, model = _build("maskformer", recipe=recipe, task=task, kept=kept, device="cpu", tiny=tiny)
    height, width = size
    exported_task = "semantic" if task == "labels" else task
    program = export_program(model, exported_task, size=(height, width), channel_order=CHANNEL_ORDERS[cfg.INPUT.FORMAT])
    pixels = draw_image((height, width), SEED)[None].numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write(program, path)
        if runtime == "openvino":
            run: Callable[[], Any] = partial(importlib.import_module(runtime).compile_model(path, "CPU"), pixels)
        else:
            options = importlib.import_module(runtime).SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = importlib.import_module(runtime).InferenceSession(path, options)
            run = partial(session.run, None, {INPUT_NAME: pixels})

    def unit() -> None:
        run()

    return unit


def set_up_definition(
    *, recipe: str, task: str, size: Sequence[int], kept: int = 20, device: str = "cpu", tiny: bool = False
) -> Unit:
    """Our network, then the definition; arguments as above."""
    cfg, model = _build("maskformer", recipe=recipe, task=task, kept=kept, device=device, tiny=tiny)
    process = POST_PROCESSING["definition", task](cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    batch = [{"image": draw_image((size[0], size[1]), SEED), "height": size[0], "width": size[1]}]
    predict: Any = model.predict

    @torch.inference_mode()
    def unit() -> None:
        for prediction in predict(batch):
            process(*prediction)

    return unit


def _peer_inputs(cfg: CfgNode, size: Sequence[int], device: str) -> dict[str, Tensor]:
    """An image as Hugging Face's processor gives it: normalised, padded."""
    height, width = _pad(size)
    pixels = normalise([draw_image((size[0], size[1]), SEED)], cfg)
    padding = (0, width - size[1], 0, height - size[0])
    mask = torch.ones(1, *size, dtype=torch.int64, device=device)
    return {
        "pixel_values": torch.nn.functional.pad(pixels, padding),
        "pixel_mask": torch.nn.functional.pad(mask, padding),
    }


def set_up_plain(
    *, recipe: str, task: str, size: Sequence[int], kept: int = 20, device: str = "cpu", tiny: bool = False
) -> Unit:
    """Hugging Face's network, then the definition; arguments as above."""
    cfg, model = _build("hugging face", recipe=recipe, task=task, kept=kept, device=device, tiny=tiny)
    process = POST_PROCESSING["definition", task](cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    inputs = _peer_inputs(cfg, size, device)
    geometry = Geometry(padded_size=_pad(size), image_size=(size[0], size[1]), output_size=(size[0], size[1]))

    @torch.inference_mode()
    def unit() -> None:
        outputs = model(**inputs)
        process(outputs.class_queries_logits[0], outputs.masks_queries_logits[0], geometry)

    return unit


def set_up_hugging_face_eomt(
    *, recipe: str, size: Sequence[int], device: str = "cpu", tiny: bool = False, half: bool = False, **options: Any
) -> Unit:
    """Hugging Face's network and panoptic post-processing, at full resolution; arguments as above."""
    cfg, model = _build("hugging face", recipe=recipe, kept=20, device=device, tiny=tiny, half=half, **options)
    pixels = normalise([draw_image((size[0], size[1]), SEED)], cfg).to(next(model.parameters()).dtype)
    edges = {"shortest_edge": size[0], "longest_edge": size[1]}
    process = import_transformers().EomtImageProcessor(size=edges).post_process_panoptic_segmentation
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names = dict(zip(("threshold", "overlap_mask_area_threshold"), PANOPTIC.values(), strict=True))
    stuff = list(range(classes // 2, classes))

    @torch.inference_mode()
    def unit() -> None:
        process(model(pixels), target_sizes=[tuple(size)], stuff_classes=stuff, **names)

    return unit


def set_up_hugging_face(
    *,
    recipe: str,
    task: str,
    size: Sequence[int],
    kept: int = 20,
    device: str = "cpu",
    tiny: bool = False,
    half: bool = False,
) -> Unit:
    """Hugging Face's network and post-processing, the latter at its own, lower resolution; arguments as above."""
    cfg, model = _build("hugging face", recipe=recipe, task=task, kept=kept, device=device, tiny=tiny)
    inputs = _peer_inputs(cfg, size, device)
    accelerator, dtype = Accelerator(device), torch.bfloat16 if half else None  # with weights of BF16 it fails
    processor = import_transformers().MaskFormerImageProcessor()
    options: dict[str, Any] = {}
    if task == "panoptic":
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        options = {
            "threshold": PANOPTIC["object_mask_threshold"],
            "label_ids_to_fuse": set(range(classes // 2, classes)),
        }
    process = getattr(processor, f"post_process_{'semantic' if task == 'labels' else task}_segmentation")

    @torch.inference_mode()
    def unit() -> None:
        with accelerator.autocast(dtype):
            process(model(**inputs), **options)

    return unit
