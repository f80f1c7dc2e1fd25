"""Cityscapes' own measures, computed by cityscapesScripts.

Detectron2 has evaluators for them too, which in newer versions import a module that is not public, and which fail on
NumPy 2.4. These give the same numbers under the same names, and also work across machines: what a process
predicts is gathered, instead of written to a folder that all share.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image

from maskformer.data.datasets.classes import require
from maskformer.data.files.reading import read_class_map
from maskformer.structures import BadImageError, InputError

from .label_map import read_labels

_IMAGE_END = "_leftImg8bit.png"
_INSTANCES_PER_LABEL = 1000  # an instance id is label id x 1000 + number; below 1000 it is a group, or no thing


class CityscapesEvaluator(DatasetEvaluator):
    """What both measures share: finding the ground truth and gathering what each process saw.

    Args:
        dataset_name: registered, with ``gt_dir`` and the id tables in its metadata.
    """

    id_table: str

    def __init__(self, dataset_name: str):
        if importlib.util.find_spec("cityscapesscripts") is None:
            raise InputError(
                f"Measuring {dataset_name} needs the package cityscapesscripts: pip install cityscapesscripts"
            )
        self._name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        for key in ("gt_dir", self.id_table):
            require(self._metadata, key)
        self._seen: dict[str, Any] = {}

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Raise an ``InputError`` unless the dataset has an image for each label: whole splits are measured."""
        self._check_all({image_name(record["file_name"]) for record in records}, "entry in the dataset")

    def reset(self) -> None:
        """Forget all images."""
        self._seen = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take some images.

        Args:
            inputs: entries of the dataset; ``file_name`` is read.
            outputs: what ``measure`` reads, one for each.
        """
        for example, output in zip(inputs, outputs, strict=True):
            self.add(self.measure(example, output))

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> tuple[str, Any]:
        """The name of one image, and what is kept of it; see ``ImageEvaluator``."""
        raise NotImplementedError

    def add(self, measured: tuple[str, Any]) -> None:
        """Take an image; see ``ImageEvaluator``."""
        name, content = measured
        self._seen[name] = content

    def _gather(self) -> dict[str, Any] | None:
        """All that the processes saw, on the main process; None on the others."""
        parts = comm.gather(self._seen)
        if not comm.is_main_process():
            return None
        seen = {name: value for part in parts for name, value in part.items()}
        self._check_all(seen.keys(), "prediction")
        return seen

    def _check_all(self, names: Collection[str], what: str) -> None:
        expected = {path.name for path in Path(self._metadata.gt_dir).glob("*/*_gtFine_instanceIds.png")}
        missing = sorted(expected - {f"{name}_gtFine_instanceIds.png" for name in names})
        if missing or not names:
            raise InputError(
                f"{len(missing)} images of {self._name} have a label but no {what}, first {missing[:1]}; expected "
                "one for each: cityscapesScripts measures whole splits."
            )

    def _ground_truth(self, name: str, kind: str) -> Path:
        return Path(self._metadata.gt_dir, name.split("_")[0], f"{name}_gtFine_{kind}.png")

    def _read_truth(self, image_file: str, kind: str, size: tuple[int, int]) -> tuple[str, np.ndarray]:
        """The image's name and its label (height,width); raises where the prediction's size is another."""
        name = image_name(image_file)
        label_file = self._ground_truth(name, kind)
        label = read_class_map(str(label_file))
        if label.shape != size:
            raise BadImageError(
                f"The prediction for {image_file} is {size[1]} x {size[0]} pixels (width x height) but its label "
                f"{label_file} is {label.shape[1]} x {label.shape[0]}; expected equal sizes: restore the image."
            )
        return name, label


def image_name(image_file: str) -> str:
    """The part of a file's name that images and labels share."""
    return Path(image_file).name.removesuffix(_IMAGE_END)


class CityscapesSemanticEvaluator(CityscapesEvaluator):
    """IoU and iIoU of classes and of categories ("sup"), in percent."""

    id_table = "stuff_dataset_id_to_contiguous_id"

    @property
    def num_classes(self) -> int:
        """K of the dataset."""
        return len(self._metadata.stuff_dataset_id_to_contiguous_id)

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> tuple[str, str]:
        """The name of one image, and the PNG of its label ids as text.

        Args:
            example: entry of the dataset; ``file_name`` is read.
            output: with ``sem_seg``: (K,height,width) scores or (height,width) labels.
        """
        contiguous_ids = self._metadata.stuff_dataset_id_to_contiguous_id
        label_of_class = np.zeros(self.num_classes, dtype=np.uint8)
        label_of_class[list(contiguous_ids.values())] = list(contiguous_ids)
        labels = read_labels(output["sem_seg"], self.num_classes)
        name, _ = self._read_truth(example["file_name"], "labelIds", labels.shape)
        return name, base64.b64encode(encode_png(label_of_class[labels])).decode("ascii")

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The four means, on the main process only."""
        predictions = self._gather()
        if predictions is None:
            return None
        scripts = load_scripts("evalPixelLevelSemanticLabeling")
        with tempfile.TemporaryDirectory(prefix="cityscapes_") as folder:
            for name, content in predictions.items():
                Path(folder, f"{name}.png").write_bytes(base64.b64decode(content))
            files = [str(Path(folder, f"{name}.png")) for name in predictions]
            truth = [str(self._ground_truth(name, "labelIds")) for name in predictions]
            scores = scripts.evaluateImgLists(files, truth, scripts.args)
        names = {"IoU": "Classes", "iIoU": "InstClasses", "IoU_sup": "Categories", "iIoU_sup": "InstCategories"}
        return {"sem_seg": {name: 100 * float(scores[f"averageScore{key}"]) for name, key in names.items()}}


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """AP over overlaps .5, .55, .. .95, and AP50, in percent."""

    id_table = "thing_dataset_id_to_contiguous_id"

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The name of one image, and its matches.

        Args:
            example: entry of the dataset; ``file_name`` is read.
            output: with ``instances``: contiguous ``pred_classes``, ``scores`` and ``pred_masks``.
        """
        contiguous_ids = self._metadata.thing_dataset_id_to_contiguous_id
        label_of_class = {contiguous: label for label, contiguous in contiguous_ids.items()}
        found = output["instances"].to("cpu")
        foreign = sorted(set(found.pred_classes.tolist()) - label_of_class.keys())
        if foreign:
            raise InputError(
                f"The model predicts an instance of class {foreign[0]}, which is none of the {len(label_of_class)} "
                f"things of {self._name}: check MODEL.SEM_SEG_HEAD.NUM_CLASSES and DATASETS.TEST."
            )
        name, id_map = self._read_truth(example["file_name"], "instanceIds", found.image_size)
        labels = [label_of_class[index] for index in found.pred_classes.tolist()]
        return name, match_instances(id_map, labels, found.scores.tolist(), found.pred_masks.numpy())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Both means, on the main process only."""
        matches = self._gather()
        if matches is None:
            return None
        scripts = load_scripts("evalInstanceLevelSemanticLabeling")
        scripts.setInstanceLabels(scripts.args)
        averages = scripts.computeAverages(scripts.evaluateMatches(matches, scripts.args), scripts.args)
        return {"segm": {"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"])}}


def match_instances(
    id_map: np.ndarray, labels: list[int], scores: list[float], masks: np.ndarray
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Intersect predicted with annotated instances of the same label, in the form ``evaluateMatches`` reads.

    Args:
        id_map: (height,width) of ``_instanceIds.png``.
        labels: label id of each of N predictions.
        scores: their confidences.
        masks: (N,height,width) bool.

    Returns:
        "groundTruth" and "prediction": for each label's name, its instances; each lists those of the other side that it
        meets, with the pixels they share.
    """
    table = {label.id: label for label in load_labels() if label.id >= 0}
    areas = np.bincount(id_map.ravel(), minlength=max(table) + 1)
    truth = annotated_instances(areas, table)
    predicted: dict[str, list[dict[str, Any]]] = {label.name: [] for label in table.values()}
    void_ids = [label.id for label in table.values() if label.ignoreInEval]
    for label_id, score, mask in zip(labels, scores, masks, strict=True):
        covered = np.bincount(id_map[mask != 0], minlength=len(areas))
        if not covered.any():
            continue
        prediction = {"pixelCount": int(covered.sum()), "confidence": score}
        met = []
        for instance in truth[table[label_id].name]:
            shared = int(covered[instance["instID"]])
            if shared:
                met.append({**instance, "intersection": shared})
                instance["matchedPred"].append({**prediction, "intersection": shared})
        overlaps = {"matchedGt": met, "voidIntersection": int(covered[void_ids].sum())}
        predicted[table[label_id].name].append({**prediction, **overlaps})
    return {"groundTruth": truth, "prediction": predicted}


def annotated_instances(areas: np.ndarray, table: dict[int, Any]) -> dict[str, list[dict[str, Any]]]:
    """List the things of an image.

    Args:
        areas: pixels of each instance id.
        table: label id -> label of cityscapesScripts.

    Returns:
        For each label's name, its instances and groups. Their distance is unknown: -1, as cityscapesScripts has it.
    """
    truth: dict[str, list[dict[str, Any]]] = {label.name: [] for label in table.values()}
    for instance_id in np.flatnonzero(areas).tolist():
        label = table[instance_id // _INSTANCES_PER_LABEL or instance_id]
        if label.hasInstances and not label.ignoreInEval:
            instance = {"instID": instance_id, "pixelCount": int(areas[instance_id]), "medDist": -1, "distConf": 0.0}
            truth[label.name].append({**instance, "matchedPred": []})
    return truth


def encode_png(label_map: np.ndarray) -> bytes:
    """Make the bytes of a one-channel PNG from (height,width) uint8."""
    with io.BytesIO() as content:
        Image.fromarray(label_map).save(content, format="PNG")
        return content.getvalue()


def load_labels() -> Any:
    """The label table of cityscapesScripts, which also knows the labels that are not evaluated."""
    return importlib.import_module("cityscapesscripts.helpers.labels").labels


def load_scripts(name: str) -> ModuleType:
    """Import one of cityscapesScripts' evaluations and tell it neither to print nor to write.

    Args:
        name: in ``cityscapesscripts.evaluation``.
    """
    scripts = importlib.import_module(f"cityscapesscripts.evaluation.{name}")
    if not hasattr(np, "in1d"):  # NumPy 2.4 dropped the name that the scripts call
        vars(scripts)["np"] = SimpleNamespace(**{**vars(np), "in1d": np.isin})
    scripts.args.quiet = True
    scripts.args.JSONOutput = False
    return scripts
