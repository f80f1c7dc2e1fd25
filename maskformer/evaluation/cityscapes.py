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
from collections.abc import Collection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from maskformer.data.datasets.classes import require
from maskformer.data.files.reading import check_same_size, read_class_map
from maskformer.structures import InputError

from .evaluator import ImageEvaluator, Records
from .semantic import read_labels

_IMAGE_END = "_leftImg8bit.png"
_INSTANCES_PER_LABEL = 1000  # an instance id is label id x 1000 + number; below 1000 it is a group, or no thing


class CityscapesEvaluator(ImageEvaluator):
    """What both measures share: the truth of whole splits in ``gt_dir`` of the metadata. No predictions are written."""

    entry_key = "file_name"
    id_table: ClassVar[str]  # in the metadata

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        if importlib.util.find_spec("cityscapesscripts") is None:
            raise InputError(
                f"Measuring {dataset_name} needs the package cityscapesscripts: pip install cityscapesscripts"
            )
        super().__init__(dataset_name, output_folder)
        for key in ("gt_dir", self.id_table):
            require(self.metadata, key)

    def check(self, records: Records) -> None:
        """Raise an ``InputError`` unless the dataset has an image for each label: whole splits are measured."""
        self._check_all({_name_image(record["file_name"]) for record in records}, "entry in the dataset")

    def _check_all(self, names: Collection[str], what: str) -> None:
        expected = {path.name for path in Path(self.metadata.gt_dir).glob("*/*_gtFine_instanceIds.png")}
        missing = sorted(expected - {f"{name}_gtFine_instanceIds.png" for name in names})
        if missing or not names:
            raise InputError(
                f"{len(missing)} images of {self.name} have a label but no {what}, first {missing[:1]}; expected "
                "one for each: cityscapesScripts measures whole splits."
            )

    def _ground_truth(self, name: str, kind: str) -> Path:
        return Path(self.metadata.gt_dir, name.split("_")[0], f"{name}_gtFine_{kind}.png")

    def _read_truth(self, image_file: str, kind: str, predicted: np.ndarray) -> tuple[str, np.ndarray]:
        """The image's name and its label (height,width); raises where the prediction's size is another."""
        name = _name_image(image_file)
        label_file = str(self._ground_truth(name, kind))
        label = read_class_map(label_file)
        check_same_size(predicted, image_file, label, label_file)
        return name, label


def _name_image(image_file: str) -> str:
    """The part of a file's name that images and labels share."""
    return Path(image_file).name.removesuffix(_IMAGE_END)


class CityscapesSemanticEvaluator(CityscapesEvaluator):
    """IoU and iIoU of classes and of categories ("sup"), in percent."""

    switch = "SEMANTIC_ON"
    id_table = "stuff_dataset_id_to_contiguous_id"
    num_classes: int

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        super().__init__(dataset_name, output_folder)
        self.num_classes = len(self.metadata.stuff_dataset_id_to_contiguous_id)

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> tuple[str, str]:
        """The name of one image, and the PNG of its label ids as text; ``sem_seg`` is scores or labels."""
        contiguous_ids = self.metadata.stuff_dataset_id_to_contiguous_id
        label_of_class = np.zeros(self.num_classes, dtype=np.uint8)
        label_of_class[list(contiguous_ids.values())] = list(contiguous_ids)
        labels = read_labels(output["sem_seg"], self.num_classes)
        name, _ = self._read_truth(example["file_name"], "labelIds", labels)
        content = io.BytesIO()
        Image.fromarray(label_of_class[labels]).save(content, format="PNG")
        return name, base64.b64encode(content.getvalue()).decode("ascii")

    def score(self, measured: list[Any]) -> dict[str, dict[str, float]]:
        """The four means."""
        predictions = dict(measured)
        self._check_all(predictions, "prediction")
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

    switch = "INSTANCE_ON"
    id_table = "thing_dataset_id_to_contiguous_id"

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The name of one image, and its matches; ``instances`` has contiguous ``pred_classes``."""
        table = {index: label for label, index in self.metadata.thing_dataset_id_to_contiguous_id.items()}
        found = output["instances"].to("cpu")
        labels = self._ids_of_things(found, table)
        name, id_map = self._read_truth(example["file_name"], "instanceIds", np.empty(found.image_size))
        return name, _match_instances(id_map, labels, found.scores.tolist(), found.pred_masks.numpy())

    def score(self, measured: list[Any]) -> dict[str, dict[str, float]]:
        """Both means."""
        matches = dict(measured)
        self._check_all(matches, "prediction")
        scripts = load_scripts("evalInstanceLevelSemanticLabeling")
        scripts.setInstanceLabels(scripts.args)
        averages = scripts.computeAverages(scripts.evaluateMatches(matches, scripts.args), scripts.args)
        return {"segm": {"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"])}}


def _match_instances(
    id_map: np.ndarray, labels: list[int], scores: list[float], masks: np.ndarray
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Annotated and predicted instances by label, each with those of the other side that it meets.

    That is what ``evaluateMatches`` reads; cityscapesScripts' own function for it reads a file for each mask.
    """
    labels_of_scripts = importlib.import_module("cityscapesscripts.helpers.labels").labels
    table = {label.id: label for label in labels_of_scripts if label.id >= 0}
    areas = np.bincount(id_map.ravel(), minlength=max(table) + 1)
    truth: dict[str, list[dict[str, Any]]] = {label.name: [] for label in table.values()}
    for instance_id in np.flatnonzero(areas).tolist():
        label = table[instance_id // _INSTANCES_PER_LABEL or instance_id]
        if label.hasInstances and not label.ignoreInEval:
            # Its distance is unknown: -1, as cityscapesScripts has it.
            annotated = {"instID": instance_id, "pixelCount": int(areas[instance_id]), "medDist": -1, "distConf": 0.0}
            truth[label.name].append({**annotated, "matchedPred": []})
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
