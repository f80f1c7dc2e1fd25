"""Prints, as one JSON line, how models on the emulated device compare with the same on the CPU.

By "MODEL, batch, mode": the largest difference of a loss, a gradient or a result, over the largest value on the CPU; or
the error.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
import torch_sdaa  # noqa: F401 registers the device
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from maskformer.config import load_config
from maskformer.structures import Classes

CLASSES = 5
COMMON = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
}
DECODERS = {
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
}
RESNET = {**DECODERS, "MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
SWIN = {
    **DECODERS,
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM": 24,
    "MODEL.SWIN.DEPTHS": (2, 1, 1, 1),
    "MODEL.SWIN.WINDOW_SIZE": 4,
    "MODEL.SWIN.DROP_PATH_RATE": 0.0,
}
ENCODED = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
}
MASK2FORMER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.DEC_LAYERS": 4,  # one for each level
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
}
EOMT = {
    "MODEL.META_ARCHITECTURE": "EoMT",
    "MODEL.EOMT.IMAGE_SIZE": 96,
    "MODEL.EOMT.EMBED_DIM": 32,
    "MODEL.EOMT.DEPTH": 3,
    "MODEL.EOMT.NUM_HEADS": 2,
    "MODEL.EOMT.NUM_BLOCKS": 2,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
}
SEGMENTS = {"MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True, "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True}
PER_PIXEL = {"MODEL.META_ARCHITECTURE": "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselineHead"}
PLUS = {**PER_PIXEL, "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselinePlusHead"}
MODELS = {
    "BasePixelDecoder": {**RESNET, **SEGMENTS},
    "TransformerEncoderPixelDecoder": {**RESNET, **ENCODED, **SEGMENTS},
    "TransformerEncoderPixelDecoder without a norm": {
        **{**RESNET, **ENCODED, **SEGMENTS},
        "MODEL.SEM_SEG_HEAD.NORM": "",
    },
    "Swin and TransformerEncoderPixelDecoder": {**SWIN, **ENCODED, **SEGMENTS},
    "Mask2Former": {**RESNET, **MASK2FORMER, **SEGMENTS},
    "EoMT": {**EOMT, **SEGMENTS},
    "EoMT with DINOv3's blocks": {**EOMT, **SEGMENTS, "MODEL.EOMT.ROTARY": True},
    "Swin and PerPixelBaseline": {**SWIN, **PER_PIXEL},
    "PerPixelBaselinePlus and TransformerEncoderPixelDecoder": {**RESNET, **PLUS, **ENCODED},
}


def build(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    words = [str(word) for pair in {**COMMON, **options}.items() for word in pair]
    model = build_model(load_config("configs/base/common.yaml", words))
    for name, parameter in model.named_parameters():
        if name.endswith("sampling_offsets.bias"):  # from the middle of cells, where the gradient jumps
            parameter.data += 0.3
    if "MODEL.EOMT.ROTARY" in options:
        model.backbone.rescale = 1.0  # else the host draws a number, and shares its generator with points or not
    model.classes = Classes("this test", tuple(map(str, range(CLASSES))), things=frozenset({0, 1}))
    return model


def draw_batch(size: int) -> list[dict[str, Any]]:
    """Pictures whose sides are no multiples of a stride, with two segments each."""
    random = torch.Generator().manual_seed(size)
    batch = []
    for _ in range(size):
        instances = Instances((70, 93))
        instances.gt_classes = torch.tensor([1, 3])
        instances.gt_masks = torch.stack([torch.arange(93) < 40, torch.arange(93) > 60])[:, None].expand(2, 70, 93)
        labels = torch.randint(0, CLASSES, (70, 93), generator=random)
        image = torch.randint(0, 256, (3, 70, 93), generator=random, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "sem_seg": labels, "height": 70, "width": 93})
    return batch


def numbers_of(model: nn.Module, batch: list[dict[str, Any]], *, training: bool) -> Iterator[tuple[str, Tensor]]:
    """Losses and gradients, or results, by name."""
    if training:
        torch.manual_seed(0)  # of sampled points
        losses = model.train()(batch)
        sum(losses.values()).backward()
        yield from losses.items()
        yield from ((name, parameter.grad) for name, parameter in model.named_parameters())
        return
    with torch.no_grad():
        for index, result in enumerate(model.eval()(batch)):
            yield f"sem_seg {index}", result["sem_seg"]
            if "panoptic_seg" in result:
                yield f"panoptic_seg {index}", result["panoptic_seg"][0].float()
                yield f"scores {index}", result["instances"].scores


def compare(options: dict[str, Any], batch: list[dict[str, Any]], *, training: bool) -> float | str:
    on_host = build(options)
    on_device = copy.deepcopy(on_host).to("sdaa")
    expected = dict(numbers_of(on_host, batch, training=training))
    try:
        actual = {name: value.cpu() for name, value in numbers_of(on_device, batch, training=training)}
    except (RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    scale = max(value.abs().max().item() for value in expected.values())
    return max((actual[name] - value).abs().max().item() for name, value in expected.items()) / scale


def main() -> None:
    report = {}
    for name, options in MODELS.items():
        for size in (1, 2):
            batch = draw_batch(size)
            report[f"{name}, {size}, training"] = compare(options, batch, training=True)
            report[f"{name}, {size}, evaluation"] = compare(options, batch, training=False)
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
