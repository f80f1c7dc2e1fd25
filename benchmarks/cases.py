"""The table of cases: a function for each group, with the settings and targets that the project has set itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.structures import MEMORY, SECONDS, Case, Contender, Target, check_cases

_WORKLOADS = "benchmarks.workloads."
_R50 = "ade20k-150/maskformer_R50_bs16_160k.yaml"
_SWIN_T = "ade20k-150/swin/maskformer_swin_tiny_bs16_160k.yaml"
_COCO_R50 = "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml"
_COCO_SWIN_T = "coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k.yaml"
_COCO_INSTANCE = "coco-instance/maskformer_instance_R50_bs64_554k.yaml"
_CITYSCAPES = "cityscapes-19-panoptic/maskformer_panoptic_R50_bs16_90k.yaml"
_MAPILLARY = "mapillary-vistas-65/maskformer_R50_bs16_300k.yaml"
_ADE20K_FULL = "ade20k-full-847/maskformer_R50_bs16_200k.yaml"
_SECOND_SWIN_T = "mask2former/ade20k/semantic-segmentation/swin/maskformer2_swin_tiny_bs16_160k.yaml"
_EOMT_S = "eomt/coco_panoptic_small_640.yaml"
_SECOND_COCO_R50 = "mask2former/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"

OURS, DEFINITION, HUGGING_FACE, PLAIN = "maskformer", "definition", "hugging face", "plain"
FLOAT32 = "maskformer float32"
DECODING, DETECTRON2 = "decoding", "detectron2"
GB = 1_000_000_000
_QUICK_SIZE = (64, 64)


def build_cases(quick: bool = False) -> list[Case]:
    """All cases.

    Args:
        quick: tiny networks and images; they show that everything runs, and no number of theirs means anything.
    """
    cases = [case for build in GROUPS for case in build(quick)]
    check_cases(cases)
    return cases


# --- training ---


def _step(name: str, function: str, quick: bool, **options: Any) -> Contender:
    options = {"recipe": _R50, **options}
    if quick:
        options = {**options, "size": _QUICK_SIZE, "queries": 12, "masks": 3, "tiny": True}
    return Contender(name, f"{_WORKLOADS}training:{function}", options)


def _all_steps(quick: bool, **options: Any) -> tuple[Contender, ...]:
    return (
        _step(OURS, "set_up_ours", quick, **options),
        _step(HUGGING_FACE, "set_up_hugging_face", quick, **options),
        _step(DEFINITION, "set_up_definition", quick, **options),
    )


def _training(quick: bool) -> list[Case]:
    breakdown = Contender(
        OURS,
        f"{_WORKLOADS}breakdown:set_up",
        {"recipe": _R50, **({"size": _QUICK_SIZE, "queries": 12, "tiny": True, "peak_size": 64} if quick else {})},
    )
    bf16 = {"precision": "bfloat16"}
    return [
        Case(
            "training step R50 512 x 512, 10 masks",
            "training",
            _all_steps(quick),
            (Target(SECONDS, 0.68, HUGGING_FACE), Target(MEMORY, 0.5, HUGGING_FACE)),
        ),
        Case(
            "training step R50 640 x 640, 25 masks",
            "training",
            _all_steps(quick, size=(640, 640), masks=25),
            (Target(SECONDS, 0.40, HUGGING_FACE), Target(MEMORY, 0.40, HUGGING_FACE)),
            rounds=3,
        ),
        Case(
            "training step R50 512 x 512 BF16",
            "training",
            (
                _step(OURS, "set_up_ours", quick, **bf16),
                _step(FLOAT32, "set_up_ours", quick),
                _step(HUGGING_FACE, "set_up_hugging_face", quick, **bf16),
            ),
            (Target(SECONDS, 0.6, FLOAT32), Target(SECONDS, 0.62, HUGGING_FACE)),
        ),
        Case("training step Swin-T 512 x 512, 10 masks", "training", _all_steps(quick, recipe=_SWIN_T)),
        Case(
            "parts of the training step R50 512 x 512",
            "breakdown",
            (breakdown,),
            (Target("share outside products", 0.10),),
            rounds=3,
        ),
        Case(
            "parts of the training step R50 512 x 512 BF16",
            "breakdown",
            (Contender(OURS, breakdown.setup, {**breakdown.options, **bf16}),),
            rounds=3,
        ),
    ]


def _second_generation(quick: bool) -> list[Case]:
    encoder = {"length": 64, "layers": 1} if quick else {"length": 1024, "layers": 6}
    return [
        Case(
            "Mask2Former: training step Swin-T 512 x 512, 10 masks",
            "mask2former",
            _all_steps(quick, recipe=_SECOND_SWIN_T, precision="float32"),
            (Target(SECONDS, 0.75, HUGGING_FACE), Target(MEMORY, 0.6, HUGGING_FACE)),
        ),
        Case(
            "Mask2Former: panoptic inference R50 800 x 1216, 20 segments",
            "mask2former",
            _whole(quick, (PLAIN,), recipe=_SECOND_COCO_R50, task="panoptic", size=(800, 1216)),
            (Target(SECONDS, 0.7, PLAIN), Target(MEMORY, 0.5, PLAIN)),
        ),
        Case(
            "Mask2Former: deformable encoder 1024 x 1024",
            "mask2former",
            tuple(
                Contender(name, f"{_WORKLOADS}deformable:set_up", {"implementation": name, **encoder})
                for name in (OURS, DEFINITION)
            ),
            (Target(SECONDS, 0.6, DEFINITION),),
        ),
    ]


def _eomt(quick: bool) -> list[Case]:
    step = {"recipe": _EOMT_S, "precision": "float32", "size": (640, 640), "queries": 200, "classes": 133}
    image = {"recipe": _EOMT_S, "task": "panoptic", "size": _QUICK_SIZE if quick else (640, 640), "tiny": quick}
    set_ups = {OURS: "set_up_ours", HUGGING_FACE: "set_up_hugging_face_eomt"}

    def inference(name: str, limit: float, **options: Any) -> Case:
        contenders = tuple(
            Contender(contender, f"{_WORKLOADS}inference:{function}", {**image, **options})
            for contender, function in set_ups.items()
        )
        return Case(
            f"EoMT: panoptic inference ViT-S {name}", "eomt", contenders, (Target(SECONDS, limit, HUGGING_FACE),)
        )

    return [
        inference("640 x 640, 20 segments", 0.9),
        inference("640 x 640, 20 segments, BF16", 0.5, half=True),
        Case(
            "EoMT: training step ViT-S 640 x 640, 10 masks",
            "eomt",
            (_step(OURS, "set_up_ours", quick, **step), _step(HUGGING_FACE, "set_up_hugging_face", quick, **step)),
            (Target(SECONDS, 0.8, HUGGING_FACE), Target(MEMORY, 0.6, HUGGING_FACE)),
        ),
    ]


def _ways(quick: bool) -> list[Case]:
    """One model run in all ways that there are on a CPU: which is the fastest is what docs/export.md recommends."""

    def case(name: str, **image: Any) -> Case:
        options = {**image, "tiny": quick, "size": _QUICK_SIZE if quick else image["size"]}
        keys = {OURS: [], "compiled": ["MODEL.COMPILE", "default"]}
        eager = [
            Contender(way, f"{_WORKLOADS}inference:set_up_ours", {**options, "keys": words})
            for way, words in keys.items()
        ]
        files = [
            Contender(runtime, f"{_WORKLOADS}inference:set_up_file", {**options, "runtime": runtime})
            for runtime in ("onnxruntime", "openvino")
        ]
        return Case(f"ways: {name}", "ways", (*eager, *files))

    return [
        case("R50 512 x 683 labels", recipe=_R50, task="labels", size=(512, 683)),
        case("Swin-T 512 x 683 labels", recipe=_SWIN_T, task="labels", size=(512, 683)),
        case("Mask2Former R50 512 x 683 panoptic", recipe=_SECOND_COCO_R50, task="panoptic", size=(512, 683)),
        case("EoMT-S 640 x 640 panoptic", recipe=_EOMT_S, task="panoptic", size=(640, 640)),
    ]


def _large_batch(quick: bool) -> list[Case]:
    """The batch that the recipes train with; steps are short where these run, so there are more rounds."""

    def case(name: str, **options: Any) -> Case:
        return Case(
            f"training step R50, batch 16, {name}",
            "large batch",
            _all_steps(quick, **{**options, "batch": 2 if quick else 16}),
            rounds=1 if quick else 15,
            warm_ups=1 if quick else 4,
            on_accelerators=True,
        )

    return [
        case("512 x 512, 10 masks"),
        case("512 x 512, 10 masks, BF16", precision="bfloat16"),
        case("640 x 640, 25 masks, BF16", size=(640, 640), masks=25, precision="bfloat16"),
    ]


# --- losses ---


def _two_losses(quick: bool, **options: Any) -> tuple[Contender, ...]:
    if quick:
        options = {**options, "size": _QUICK_SIZE, "layers": 2}
    return tuple(
        Contender(name, f"{_WORKLOADS}losses:set_up", {"implementation": name, **options})
        for name in (OURS, DEFINITION)
    )


def _losses(quick: bool) -> list[Case]:
    target = (Target(SECONDS, 0.25, DEFINITION),)
    large = _two_losses(quick, size=(640, 640), masks=25)
    return [
        Case("matcher and losses 512 x 512, 10 masks", "losses", _two_losses(quick), target),
        Case("matcher and losses 640 x 640, 25 masks", "losses", large, target),
    ]


def _optimizer(quick: bool) -> list[Case]:
    contenders = tuple(
        Contender(name, f"{_WORKLOADS}optimizer:set_up", {"implementation": name, "recipe": _R50, "tiny": quick})
        for name in (OURS, DEFINITION)
    )
    name = "optimizer and clipping, 41 M parameters"
    return [Case(name, "optimizer", contenders, (Target(SECONDS, 0.5, DEFINITION),), rounds=15, warm_ups=2)]


# --- inference ---


def _post_processing(quick: bool, **options: Any) -> tuple[Contender, ...]:
    options = {**options, "size": _QUICK_SIZE} if quick else options
    return tuple(
        Contender(name, f"{_WORKLOADS}inference:set_up_post_processing", {"implementation": name, **options})
        for name in (OURS, DEFINITION)
    )


def _whole(quick: bool, others: Sequence[str], **options: Any) -> tuple[Contender, ...]:
    options = {**options, "size": _QUICK_SIZE, "tiny": True} if quick else options
    return tuple(Contender(name, f"{_WORKLOADS}inference:{_WHOLE_SET_UPS[name]}", options) for name in (OURS, *others))


_WHOLE_SET_UPS = {
    OURS: "set_up_ours",
    DEFINITION: "set_up_definition",
    PLAIN: "set_up_plain",
    HUGGING_FACE: "set_up_hugging_face",
}


def _inference(quick: bool) -> list[Case]:
    panoptic = {"task": "panoptic", "size": (800, 1216)}
    semantic = {"task": "semantic", "size": (512, 683)}
    labels = {"task": "labels", "size": (512, 683)}
    instance = {"task": "instance", "size": (800, 1216)}
    return [
        Case(
            "panoptic post-processing 800 x 1216, 20 segments",
            "inference",
            _post_processing(quick, **panoptic),
            (Target(SECONDS, 0.15, DEFINITION),),
        ),
        Case(
            "panoptic inference R50 800 x 1216, 20 segments",
            "inference",
            _whole(quick, (PLAIN, DEFINITION), recipe=_COCO_R50, **panoptic),
            (Target(SECONDS, 0.62, PLAIN),),
        ),
        Case(
            "semantic post-processing 512 x 683, 150 classes",
            "inference",
            _post_processing(quick, classes=150, **semantic),
            (Target(SECONDS, 0.3, DEFINITION),),
        ),
        Case(
            "semantic label map 512 x 683, 150 classes",
            "inference",
            _post_processing(quick, classes=150, **labels),
            (Target(SECONDS, 0.3, DEFINITION),),
        ),
        Case(
            "semantic label map R50 512 x 683, from the image",
            "inference",
            _whole(quick, (PLAIN,), recipe=_R50, **labels),
            (Target(SECONDS, 0.7, PLAIN),),
        ),
        Case(
            "semantic inference R50 512 x 683",
            "inference",
            _whole(quick, (PLAIN, DEFINITION, HUGGING_FACE), recipe=_R50, **semantic),
            (Target(SECONDS, 0.7, PLAIN),),
        ),
        Case(
            "instance post-processing 800 x 1216",
            "inference",
            _post_processing(quick, classes=80, **instance),
        ),
        Case(
            "instance inference R50 800 x 1216",
            "inference",
            _whole(quick, (PLAIN, DEFINITION), recipe=_COCO_INSTANCE, **instance),
        ),
        Case(
            "panoptic inference Swin-T 800 x 1216, 20 segments",
            "inference",
            _whole(quick, (HUGGING_FACE, DEFINITION), recipe=_COCO_SWIN_T, **panoptic),
            (Target(SECONDS, 1.0, HUGGING_FACE),),
        ),
    ]


def _memory(quick: bool) -> list[Case]:
    settings = {
        "memory: Cityscapes panoptic 1024 x 2048": (_CITYSCAPES, "panoptic", (1024, 2048)),
        "memory: Mapillary semantic 2048 x 2731": (_MAPILLARY, "labels", (2048, 2731)),
        "memory: 847 classes semantic 512 x 683": (_ADE20K_FULL, "labels", (512, 683)),
    }
    return [
        Case(
            name,
            "memory",
            _whole(quick, (), recipe=recipe, task=task, size=size),
            (Target(MEMORY, 1.0 * GB),),
            rounds=2,
            warm_ups=0,
        )
        for name, (recipe, task, size) in settings.items()
    ]


# --- data, evaluation, start ---

# Recipe, and whether it has a definition: a crop of a fixed size.
_DATA = {
    "ADE20K semantic": ("ade20k_semantic", True),
    "ADE20K panoptic, 79 segments": ("ade20k_panoptic", True),
    "COCO panoptic": ("coco_panoptic", False),
    "Mapillary semantic 3984 x 2988": ("mapillary_semantic", True),
    "COCO panoptic, large-scale jitter": ("coco_panoptic_lsj", False),
    "COCO instance": ("coco_instance", False),
}


def _data(quick: bool) -> list[Case]:
    def contenders(recipe: str, has_definition: bool) -> tuple[Contender, ...]:
        functions = {OURS: "map_image", DECODING: "decode_files"}
        if has_definition:
            functions[DEFINITION] = "resize_then_crop"
        return tuple(
            Contender(name, f"{_WORKLOADS}data:{function}", {"recipe": recipe}) for name, function in functions.items()
        )

    return [
        Case(
            f"data loading: {name}",
            "data",
            contenders(recipe, has_definition),
            (Target(SECONDS, 1.6, DECODING), Target("bytes_per_pixel", 6)),
            environment={"OMP_NUM_THREADS": "1"},
            rounds=3 if quick else 25,
        )
        for name, (recipe, has_definition) in _DATA.items()
        if not quick or recipe == "ade20k_semantic"
    ]


def _evaluation(quick: bool) -> list[Case]:
    def contenders(function: str, **sizes: Any) -> tuple[Contender, ...]:
        return tuple(
            Contender(name, f"{_WORKLOADS}evaluation:{function}", {"evaluator": name, **sizes})
            for name in (OURS, DETECTRON2)
        )

    semantic: dict[str, Any] = {"num_images": 4, "size": _QUICK_SIZE} if quick else {"num_images": 2000}
    panoptic: dict[str, Any] = {"num_images": 4, "size": _QUICK_SIZE} if quick else {"num_images": 500}
    target = (Target(SECONDS, 0.4, DETECTRON2),)
    return [
        Case(
            "evaluation of 2,000 semantic predictions",
            "evaluation",
            contenders("semantic_evaluation", **semantic),
            target,
            rounds=1,
            warm_ups=0,
        ),
        Case(
            "evaluation of 500 panoptic predictions",
            "evaluation",
            contenders("panoptic_evaluation", **panoptic),
            target,
            rounds=1,
            warm_ups=0,
        ),
    ]


def _start(quick: bool) -> list[Case]:
    return [
        Case(
            name,
            "start",
            tuple(
                Contender(program, f"{_WORKLOADS}start_up:start", {"command": program, "to": end})
                for program in (OURS, DETECTRON2)
            ),
            (Target(SECONDS, 1.2, DETECTRON2),),
            rounds=1 if quick else 7,
        )
        for name, end in {"import": "import", "start of train_net.py to the first step": "first_step"}.items()
    ]


# --- how cost grows ---


def _scaling(quick: bool) -> list[Case]:
    def losses(**options: Any) -> tuple[Contender, ...]:
        return _two_losses(quick, **options)

    def post_processing(**options: Any) -> tuple[Contender, ...]:
        return _post_processing(quick, **{"task": "panoptic", "size": (512, 512), **options})

    def semantic(**options: Any) -> tuple[Contender, ...]:
        return _post_processing(quick, **{"task": "semantic", "size": (512, 512), **options})

    def step(**options: Any) -> tuple[Contender, ...]:
        ours, _, definition = _all_steps(quick, **options)
        return ours, definition

    def square(length: int) -> dict[str, Any]:
        return {"size": (length, length)}

    def value(name: str) -> Callable[[int], dict[str, Any]]:
        return lambda amount: {name: amount}

    curves: tuple[tuple[str, Callable[..., tuple[Contender, ...]], Callable[[int], dict[str, Any]], Sequence[int]], ...]
    curves = (
        ("losses by image size", losses, square, (256, 512, 768, 1024)),
        ("losses by masks", losses, value("masks"), (10, 25, 50, 100, 200)),
        ("losses by queries", losses, value("queries"), (100, 200, 400, 800)),
        ("losses by classes", losses, value("classes"), (19, 150, 847)),
        ("losses by batch", losses, value("batch"), (1, 2, 4)),
        ("panoptic post-processing by image size", post_processing, square, (512, 1024, 1536)),
        ("panoptic post-processing by queries", post_processing, value("queries"), (100, 200, 400, 800)),
        ("panoptic post-processing by classes", post_processing, value("classes"), (19, 150, 847)),
        ("semantic post-processing by image size", semantic, square, (256, 512, 1024)),
        ("semantic post-processing by classes", semantic, value("classes"), (19, 150, 847)),
        ("training step by image size", step, square, (256, 384, 512)),
        ("training step by batch", step, value("batch"), (1, 2, 4)),
    )
    return [
        Case(f"{curve}: {position}", "scaling", build(**make(position)), rounds=3, curve=curve, position=position)
        for curve, build, make, positions in curves
        for position in positions
    ]


GROUPS: tuple[Callable[[bool], list[Case]], ...] = (
    _training,
    _second_generation,
    _eomt,
    _ways,
    _large_batch,
    _losses,
    _optimizer,
    _inference,
    _memory,
    _data,
    _evaluation,
    _start,
    _scaling,
)
