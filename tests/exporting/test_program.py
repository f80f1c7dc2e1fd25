"""Files that other programs run: trained models of each architecture, from pictures of any size to the same results."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling import SemanticSegmentor, build_model
from detectron2.structures import BitMasks, Instances
from tiny_model import EOMT_CONFIG, MASK2FORMER_CONFIG, REPOSITORY, SHAPES_CONFIG
from torch import Tensor, nn
from toy_dataset import draw

from maskformer.config import load_config
from maskformer.exporting.program import export_program, write
from maskformer.structures import Classes, InputError

SHARED = {
    "MODEL.DEVICE": "cpu",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
    "DATASETS.TRAIN": "()",
    "DATASETS.TEST": "()",
}
SMALL = {
    **SHARED,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 2,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 1,
}
PADDED = {**SMALL, "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32, "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.5}
SWIN = {
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
    "MODEL.SWIN.EMBED_DIM": 12,
    "MODEL.SWIN.DEPTHS": "(2, 1)",
    "MODEL.SWIN.NUM_HEADS": "(1, 2)",
    "MODEL.SWIN.OUT_FEATURES": "('res2', 'res3')",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": "('res2', 'res3')",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res3",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 16,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
}
MASK2FORMER = {
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 400,
}
EOMT = {
    **SHARED,
    "MODEL.EOMT.IMAGE_SIZE": 64,
    "MODEL.EOMT.EMBED_DIM": 24,
    "MODEL.EOMT.NUM_HEADS": 2,
    "MODEL.EOMT.DEPTH": 4,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "TEST.DETECTIONS_PER_IMAGE": 10,
}
PER_PIXEL = {
    **SMALL,
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselinePlusHead",
}
SWIN_CONFIG = str(REPOSITORY / "configs" / "ade20k-150" / "swin" / "maskformer_swin_tiny_bs16_160k.yaml")
# Task, configuration and size of pictures; None: all sizes, for which exporting takes twice as long.
ARCHITECTURES = {
    "MaskFormer": ("semantic", None, SHAPES_CONFIG, PADDED),
    "Swin, base pixel decoder": ("instance", (70, 101), SWIN_CONFIG, {**SMALL, **SWIN}),
    "Mask2Former": ("panoptic", (70, 101), MASK2FORMER_CONFIG, {**PADDED, **MASK2FORMER}),
    "EoMT": ("panoptic", None, EOMT_CONFIG, EOMT),
    "EoMT of DINOv3": ("queries", (70, 101), EOMT_CONFIG, {**EOMT, "MODEL.EOMT.ROTARY": True}),
    "per-pixel baseline": ("semantic", (70, 101), SHAPES_CONFIG, PER_PIXEL),
}


def build(config: str, options: dict[str, object]) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(load_config(config, [str(word) for pair in options.items() for word in pair])).eval()
    model.classes = Classes("toy", ("water", "box", "ball"), things=frozenset({1, 2}))
    return model


def draw_example(rng: np.random.Generator, height: int = 64, width: int = 80) -> dict:
    picture, objects, classes = draw(rng, height, width)
    masks = torch.from_numpy(np.stack([objects == number for number in range(len(classes))]))
    instances = Instances((height, width), gt_masks=BitMasks(masks), gt_classes=torch.tensor(classes))
    semantic = torch.from_numpy(np.array(classes)[objects])
    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    return {"image": image, "instances": instances, "sem_seg": semantic}


def fit(model: nn.Module, steps: int = 20) -> None:
    """Until it knows the colours: with random weights, classes are all but tied."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        losses = model([draw_example(rng) for _ in range(3)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model.eval()


def predict(model: nn.Module, image: Tensor, task: str) -> dict[str, np.ndarray]:
    """What the model itself says of one picture, named as the graph's outputs."""
    example = {"image": image}
    if isinstance(model, SemanticSegmentor):
        return {"labels": model([example])[0]["sem_seg"].argmax(0).numpy()}
    if task == "queries":
        return dict(
            zip(("class_logits", "mask_logits"), (logits.numpy() for logits in model.predict([example])[0][:2]))
        )
    switches = {f"{other}_on": other == task for other in ("semantic", "panoptic", "instance")}
    options, model.inference = model.inference, replace(model.inference, semantic_as_labels=True, **switches)
    (result,) = model([example])
    model.inference = options
    if task == "semantic":
        return {"labels": result["sem_seg"].numpy()}
    if task == "panoptic":
        segment_map, segments = result["panoptic_seg"]
        return {"segment_map": segment_map.numpy(), "segment_classes": np.array([s["category_id"] for s in segments])}
    found = result["instances"]
    return {"scores": found.scores.numpy(), "labels": found.pred_classes.numpy(), "masks": found.pred_masks.numpy()}


def compare(outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Maps may differ in one of a thousand pixels, numbers by 1e-3; rows that are over mark themselves."""
    if "masks" in expected:
        compare_instances(outputs, expected)
        return
    for name, values in expected.items():
        actual = outputs[name]
        if name == "segment_classes":
            assert (actual[len(values) :] == -1).all()
            actual = actual[: len(values)]
        if actual.dtype.kind == "f":
            np.testing.assert_allclose(actual, values, atol=1e-3)
        else:
            assert np.mean(actual == values) >= 0.999


def compare_instances(outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Scores in order; each instance that counts is there, maybe beside another of nearly its score."""
    count = len(expected["scores"])
    np.testing.assert_allclose(outputs["scores"][:count], expected["scores"], atol=1e-3)
    assert (outputs["scores"][count:] == 0).all() and (outputs["labels"][count:] == -1).all()
    for score, label, mask in zip(*expected.values()):
        alike = (np.abs(outputs["scores"] - score) < 1e-3) & (outputs["labels"] == label)
        assert score < 0.05 or any(np.mean(outputs["masks"][row] == mask) >= 0.999 for row in np.flatnonzero(alike))


SIZES = [(1, 64, 80), (2, 70, 101), (1, 101, 70), (1, 33, 130)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trained_model_and_its_files_give_the_same(name, tmp_path):
    pytest.importorskip("torch.fx.experimental.dynamic_spec", reason="PyTorch before 2.14 has no ShapesSpec")
    onnxruntime = pytest.importorskip("onnxruntime")
    task, size, *recipe = ARCHITECTURES[name]
    model = build(*recipe)
    fit(model)
    program = export_program(model, task, size=size)
    for suffix in (".pt2", ".onnx"):
        write(program, tmp_path / f"model{suffix}")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert session.get_inputs()[0].shape == ["batch", 3, *(size or ("height", "width"))]
    rng = np.random.default_rng(1)
    for batch, height, width in SIZES if size is None else [(1, *size), (2, *size)]:
        images = torch.stack([draw_example(rng, height, width)["image"] for _ in range(batch)])
        with torch.no_grad():
            expected = [predict(model, image, task) for image in images]
        in_torch = {name: value.numpy() for name, value in exported(images).items()}
        in_onnx = dict(zip(names, session.run(None, {"images": images.numpy()})))
        for outputs in (in_torch, in_onnx):
            for image, of_image in enumerate(expected):
                compare({name: values[image] for name, values in outputs.items()}, of_image)
        assert task == "queries" or len(np.unique(next(iter(expected[0].values())))) > 1  # something was learned


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build(EOMT_CONFIG, {**EOMT, "INPUT.FORMAT": "BGR"})


@pytest.fixture(scope="module")
def program(model) -> torch.export.ExportedProgram:
    return export_program(model, "semantic", size=(50, 70), channel_order=(2, 1, 0))


def test_program_of_one_size_takes_any_number_of_pictures(model, program, tmp_path):
    path = tmp_path / "model.pt2"
    write(program, path, {"note": "seen"})
    texts = {"note": ""}
    exported = torch.export.load(path, extra_files=texts).module()
    assert texts == {"note": "seen"}
    for batch in (1, 3):
        images = torch.randint(0, 256, (batch, 3, 50, 70), dtype=torch.uint8)
        labels = exported(images)["labels"]
        assert labels.dtype == torch.int32 and not labels.requires_grad
        for image, actual in zip(images, labels):
            compare({"labels": actual.numpy()}, predict(model, image.flip(0), "semantic"))
    with pytest.raises((RuntimeError, AssertionError)):
        exported(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_onnx_names_what_goes_in_and_out_and_holds_texts(program, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    write(program, path, {"note": "seen"})
    file = onnx.load(path)
    onnx.checker.check_model(file)
    assert [opset.version for opset in file.opset_import if not opset.domain] == [20]
    assert [(entry.key, entry.value) for entry in file.metadata_props] == [("note", "seen")]
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*file.graph.input, *file.graph.output]
    }
    assert axes == {"images": ["batch", 3, 50, 70], "labels": ["batch", 50, 70]}


@pytest.mark.parametrize("size", [(0, 8), (8,), (-1, 8)])
def test_size_that_is_none_is_refused(model, size):
    with pytest.raises(InputError, match="size"):
        export_program(model, size=size)


def test_what_is_not_installed_is_named(model, program, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"2\.14.*--size"):
        patch.setitem(sys.modules, "torch.fx.experimental.dynamic_spec", None)
        export_program(model)
    for module in ("onnx", "onnxscript"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=f"{module}.*pip install"):
            patch.setitem(sys.modules, module, None)
            write(program, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.pth", "model", "model.ONNX.gz", "none/model.pt2"])
def test_file_that_cannot_be_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"\.pt2.*\.onnx|folder"):
        write(None, tmp_path / name)
