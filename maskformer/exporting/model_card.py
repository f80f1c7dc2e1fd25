"""The README.md of a folder with a model: what it is, what it scores, what it knows, and where it came from."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from maskformer.structures import Classes, printable

from .hugging_face_keys import name_model

_MOST_BYTES = 10 * 2**20  # of a file that a training left
_USE = {
    "maskformer": """    import maskformer

    predictor = maskformer.load("FOLDER")
    predictor("photo.jpg").draw().save("drawn.jpg")
""",
    "hugging-face": """    from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

    processor = AutoImageProcessor.from_pretrained("FOLDER")
    model = AutoModelForUniversalSegmentation.from_pretrained("FOLDER")

`maskformer.load("FOLDER")` reads it too.
""",
}


def write_card(cfg: CfgNode, classes: Classes | None, *, layout: str, licence: str) -> str:
    """The text of the card.

    Scores and the command are those that a training or an evaluation left beside MODEL.WEIGHTS, where it did.

    Args:
        cfg: of the model.
        classes: the model's; None: not known.
        layout: of the folder, "maskformer" or "hugging-face".
        licence: of the weights; "": not stated.
    """
    run_folder = Path(cfg.MODEL.WEIGHTS).parent
    head = {"library_name": "transformers" if layout == "hugging-face" else "maskformer", "tags": ["maskformer"]}
    head |= {"pipeline_tag": "image-segmentation", **({"license": licence} if licence else {})}
    command = _read(run_folder / "run.json").get("command")
    data = ", ".join(map(str, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))) or "not stated"
    node, backbone = cfg.MODEL.EOMT, f"the backbone {cfg.MODEL.BACKBONE.NAME}"
    name, paper = cfg.MODEL.META_ARCHITECTURE, "2107.06278"
    if name_model(cfg) == "EoMT":
        paper, backbone = "2503.19108", f"a vision transformer of {node.DEPTH} blocks and {node.EMBED_DIM} channels"
    elif name_model(cfg) == "Mask2Former":
        name, paper = "Mask2Former", "2112.01527"
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=True)}---",
        f"# {name}",
        f"{'An' if name == 'EoMT' else 'A'} {name} with {backbone} (method: arXiv {paper}), of "
        f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} classes.",
        "## Use\n\n" + _USE[layout].rstrip("\n"),
        "## Scores\n\n" + (_scores(run_folder) or "Not measured where the weights lay."),
        f"## Data\n\n{data}",
        "## Classes\n\n" + ("Not known." if classes is None else _code(", ".join(classes.names))),
        "## Licence of the weights\n\n"
        + (licence or "Not stated. Weights that were trained from others, or on data, under conditions keep these."),
        "## Command\n\n"
        + (_code(_without_places(command)) if isinstance(command, list) else "Not recorded beside the weights."),
    ]
    return "\n\n".join(sections) + "\n"


def _scores(run_folder: Path) -> str:
    """A table of the scores of each dataset, in percent."""
    rows = []
    for file in sorted(run_folder.glob("inference/*/evaluation.json")):
        content = _read(file)
        for kind, scores in content.get("scores", {}).items():
            rows += [
                f"| {content.get('dataset', file.parent.name)} | {kind} | {metric} | {score:.2f} |"
                for metric, score in scores.items()
                if isinstance(score, (int, float))
            ]
    if not rows:
        return ""
    return "\n".join(["| dataset | result | metric | percent |", "|---|---|---|---|", *map(printable, rows)])


def _without_places(command: list[Any]) -> str:
    """A command as one types it; of absolute paths, which are of one machine, the last part."""
    return shlex.join(re.sub(r"(^|[\s=,'\"(\[])/(?:[^/'\",]+/)*(?=[^/])", r"\1", str(word)) for word in command)


def _code(text: str) -> str:
    """Text as it is, whatever it holds: an indented block."""
    return f"    {printable(text)}"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object that a run left; {} where there is none."""
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
