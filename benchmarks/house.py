"""Figures of the code's size and shape: ``python -m benchmarks.house`` (``make house``) prints them with their limits.

Lines of the package, files that one training step enters, private attributes of other libraries, ContextVars, and
functions that no screen shows whole.
"""

from __future__ import annotations

import ast
import functools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "maskformer"
BESIDE_THE_PRODUCT = ("tools", "demo", "sdaa", "reports", "exporting")
LONGEST_FUNCTION = 60
_PUBLIC = {"_exit", "_replace"}  # os._exit and namedtuple's, which are documented

# "file: attribute" -> why no public name does it. It only shrinks.
FOREIGN_PRIVATE_ATTRIBUTES: dict[str, str] = {
    "maskformer/runs/failures.py: _on_queue_feeder_error": "without it a full /dev/shm lets a training wait for ever",
}

_TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.CROP.SIZE": "(64, 64)",
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.NUM_WORKERS": 0,
}


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """The parsed sources of the package, by path."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def count_lines(*, product_only: bool) -> int:
    """Lines of the package's sources, comments and empty ones too.

    Args:
        product_only: leave out tools, demo, sdaa, reports and exporting.
    """
    beside = {PACKAGE / name for name in BESIDE_THE_PRODUCT} if product_only else set()
    paths = [path for path in PACKAGE.rglob("*.py") if not beside & set(path.parents)]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def find_foreign_private_attributes() -> set[str]:
    """Every private name that a file uses and that is not its own, as "file: attribute".

    Its own are those that it defines, and of ``self`` those that a class of the package defines.
    """
    found = set()
    sources = trees()
    inherited = {f"self.{name}" for tree in sources.values() for name in _defined(tree)}
    for path, tree in sources.items():
        own = {*_PUBLIC, *_defined(tree)}
        private = {use for use in _used(tree) if re.search(r"(^|\.)_[^_]", use)} - inherited
        names = {use.rpartition(".")[2] for use in private} - own
        names |= {"__class__"} if _sets_class(tree) else set()
        found |= {f"{path.relative_to(REPOSITORY)}: {name}" for name in names}
    return found


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.For)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        yield part.id
                    elif isinstance(part, ast.Attribute) and ast.unparse(part.value) in ("self", "cls"):
                        yield part.attr


def _used(tree: ast.Module) -> Iterator[str]:  # of self with it: self._name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield f"self.{node.attr}" if ast.unparse(node.value) == "self" else node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from [*(alias.name for alias in node.names), *(node.module or "").split(".")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def _sets_class(tree: ast.Module) -> bool:
    targets = (target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets)
    return any(isinstance(target, ast.Attribute) and target.attr == "__class__" for target in targets)


def find_context_variables() -> list[str]:
    """The files that make a ContextVar."""
    return [str(path.relative_to(REPOSITORY)) for path in PACKAGE.rglob("*.py") if "ContextVar(" in path.read_text()]


def find_long_functions() -> list[str]:
    """The functions over ``LONGEST_FUNCTION`` lines, as "file:line name"."""
    return [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]


def files_of_a_step() -> list[str]:
    """The files of the package that one ``run_step`` enters: a second step of a small panoptic model on a CPU."""
    from maskformer.config import load_config
    from maskformer.demo.shapes import generate_shapes
    from maskformer.engine import Trainer
    from maskformer.engine.setup import register_datasets

    logging.disable(logging.WARNING)  # the model is of no interest here
    with tempfile.TemporaryDirectory() as folder:
        generate_shapes(folder, num_train=4, num_val=1, seed=0)
        os.environ["DETECTRON2_DATASETS"] = folder
        options = [str(word) for pair in {**_TINY, "OUTPUT_DIR": folder}.items() for word in pair]
        cfg = load_config(str(REPOSITORY / "configs/shapes/maskformer_panoptic.yaml"), options)
        register_datasets(cfg)
        return sorted(_enter(Trainer(cfg)))


def _enter(trainer: Any) -> set[str]:
    from detectron2.utils.events import EventStorage

    entered: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            entered.add(str(Path(frame.f_code.co_filename).relative_to(PACKAGE)))

    with EventStorage() as storage:
        trainer.storage = storage
        trainer.iter = 0
        trainer.run_step()
        sys.setprofile(note)
        try:
            trainer.run_step()
        finally:
            sys.setprofile(None)
    return entered


def main() -> int:
    """Print every figure with its limit; 1 where one is over it."""
    step, foreign, long = files_of_a_step(), find_foreign_private_attributes(), find_long_functions()
    figures = [
        ("lines of the package", count_lines(product_only=False), 18_500),
        (f"lines without {', '.join(BESIDE_THE_PRODUCT)}", count_lines(product_only=True), 14_000),
        ("files that one run_step enters", len(step), 26),
        ("foreign private attributes", len(foreign), 8),
        ("ContextVars", len(find_context_variables()), 0),
        (f"functions over {LONGEST_FUNCTION} lines", len(long), 0),
    ]
    for name, seen, limit in figures:
        print(f"{name}: {seen} (at most {limit}){'' if seen <= limit else '  OVER'}")
    for title, found in (("entered", step), ("foreign", sorted(foreign)), ("long", long)):
        print(f"\n{title}:", *found, sep="\n  ")
    return int(any(seen > limit for _, seen, limit in figures))


if __name__ == "__main__":
    raise SystemExit(main())
