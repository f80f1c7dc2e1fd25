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
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image

from maskformer.data.datasets.classes import require
from maskformer.data.files.reading import check_same_size, read_class_map
from maskformer.structures import InputError

from .confusion import (
    ObjectRow,
    count_pixels,
    describe_confusion,
    score_objects,
    score_pixels,
    sum_pixels,
    tabulate_classes,
)
from .evaluator import ImageEvaluator, Records
from .instance import CERTAIN
from .semantic import read_labels

_IMAGE_END = "_leftImg8bit.png"
Matches = dict[str, dict[str, list[dict[str, Any]]]]  # of one image, by side and label: see ``_match_instances``
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

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> tuple[str, str, list[list[int]]]:
        """The name of one image, the PNG of its label ids as text, and its pixels by class.

        ``sem_seg`` is scores or labels.
        """
        contiguous_ids = self.metadata.stuff_dataset_id_to_contiguous_id
        label_of_class = np.zeros(self.num_classes, dtype=np.uint8)
        label_of_class[list(contiguous_ids.values())] = list(contiguous_ids)
        labels = read_labels(output["sem_seg"], self.num_classes)
        name, label_ids = self._read_truth(example["file_name"], "labelIds", labels)
        content = io.BytesIO()
        Image.fromarray(label_of_class[labels]).save(content, format="PNG")
        pixels = count_pixels(labels, self._classes_of(label_ids), self.num_classes)
        return name, base64.b64encode(content.getvalue()).decode("ascii"), pixels

    def _classes_of(self, label_ids: np.ndarray) -> np.ndarray:
        """The class of each pixel, K where Cityscapes does not measure it."""
        class_of_label = np.full(256, self.num_classes, dtype=np.uint8)
        for label_id, index in self.metadata.stuff_dataset_id_to_contiguous_id.items():
            class_of_label[label_id] = index
        return class_of_label[label_ids]

    def score_image(self, measured: Any) -> dict[str, dict[str, float]]:
        """Mean IoU over the classes that label or prediction have, and pixel accuracy."""
        return {"sem_seg": score_pixels(sum_pixels([measured[2]], self.num_classes))}

    def truth(self, example: dict[str, Any]) -> dict[str, Any]:
        """The classes of the label, K where it has none."""
        label_ids = read_class_map(str(self._ground_truth(_name_image(example["file_name"]), "labelIds")))
        return {"sem_seg": torch.as_tensor(self._classes_of(label_ids))}

    def score(self, measured: list[Any]) -> dict[str, dict[str, float]]:
        """The four means."""
        predictions = {name: content for name, content, _ in measured}
        pixels = sum_pixels((each[2] for each in measured), self.num_classes)
        names = require(self.metadata, "stuff_classes")
        self.details = {
            "per_class": {"sem_seg": tabulate_classes(pixels, names)},
            "confusion": describe_confusion(pixels, names),
        }
        self._check_all(predictions, "prediction")
        scripts = load_scripts("evalPixelLevelSemanticLabeling")
        with tempfile.TemporaryDirectory(prefix="cityscapes_") as folder:
            for name, content in predictions.items():
                Path(folder, f"{name}.png").write_bytes(base64.b64decode(content))
            files = [str(Path(folder, f"{name}.png")) for name in predictions]
            truth = [str(self._ground_truth(name, "labelIds")) for name in predictions]
            scores = scripts.evaluateImgLists(files, truth, scripts.args)
        means = {"IoU": "Classes", "iIoU": "InstClasses", "IoU_sup": "Categories", "iIoU_sup": "InstCategories"}
        return {"sem_seg": {name: 100 * float(scores[f"averageScore{key}"]) for name, key in means.items()}}


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
        self.details = {"per_class": {"segm": _tabulate(averages["classes"], matches.values())}}
        return {"segm": {"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"])}}

    def score_image(self, measured: Any) -> dict[str, dict[str, float]]:
        """Panoptic quality of the objects of one image, of predictions that score above 1/2."""
        return {"segm": {"InstancePQ": score_objects(_pair_instances(measured[1]))}}

    def truth(self, example: dict[str, Any]) -> dict[str, Any]:
        """The annotated objects, with contiguous classes and a score of 1."""
        table = self.metadata.thing_dataset_id_to_contiguous_id
        id_map = read_class_map(str(self._ground_truth(_name_image(example["file_name"]), "instanceIds")))
        ids = [id_ for id_ in np.unique(id_map).tolist() if id_ // _INSTANCES_PER_LABEL in table]
        objects = Instances(id_map.shape, pred_masks=torch.as_tensor(id_map == np.reshape(ids, (-1, 1, 1))))
        objects.scores = torch.ones(len(ids))
        objects.pred_classes = torch.tensor([table[id_ // _INSTANCES_PER_LABEL] for id_ in ids], dtype=torch.int64)
        return {"instances": objects}


def _tabulate(averages: Mapping[str, Mapping[str, float]], matches: Iterable[Matches]) -> list[dict[str, Any]]:
    """AP, AP50 and objects of each class of cityscapesScripts' averages."""
    objects: Counter[str] = Counter()
    for of_image in matches:
        for name, instances in of_image["groundTruth"].items():
            objects[name] += sum(each["instID"] >= _INSTANCES_PER_LABEL for each in instances)
    return [
        {"class": name, "AP": 100 * scores["ap"], "AP50": 100 * scores["ap50%"], "objects": objects[name]}
        for name, scores in averages.items()
    ]


def _pair_instances(matches: Matches) -> list[ObjectRow]:
    """A row of each instance, and of each certain prediction that covers none, unless it is mostly void or a group."""
    rows: list[ObjectRow] = []
    for name, predictions in matches["prediction"].items():
        instances = [each for each in matches["groundTruth"][name] if each["instID"] >= _INSTANCES_PER_LABEL]
        missed = {instance["instID"]: instance["pixelCount"] for instance in instances}
        for prediction in sorted(predictions, key=lambda each: -each["confidence"]):
            if prediction["confidence"] <= CERTAIN:
                continue
            area = prediction["pixelCount"]
            overlaps = {
                met["instID"]: met["intersection"] / (met["pixelCount"] + area - met["intersection"])
                for met in prediction["matchedGt"]
                if met["instID"] in missed
            }
            best = max(overlaps, key=overlaps.__getitem__, default=None)
            if best is not None and overlaps[best] > 0.5:
                rows.append((name, name, missed.pop(best), overlaps[best]))
                continue
            groups = [met["intersection"] for met in prediction["matchedGt"] if met["instID"] < _INSTANCES_PER_LABEL]
            if 2 * (prediction["voidIntersection"] + sum(groups)) <= area:
                rows.append((None, name, None, None))
        rows += [(name, None, area, None) for area in missed.values()]
    return rows


def _match_instances(id_map: np.ndarray, labels: list[int], scores: list[float], masks: np.ndarray) -> Matches:
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
