"""Results of prediction as a dataset that training reads: pseudo labels.

    FOLDER/images/     the pictures in which something was found
    FOLDER/labels/     PNGs: label maps (semantic), segment ids (panoptic), instance ids (for the eye alone)
    FOLDER/results/    a JSON for each picture, written last: what a run that resumes passes over
    FOLDER/instances.json or panoptic.json, and dataset.yaml, which ``train_net.py --config-file`` takes

A picture in which nothing exceeds the threshold is left out: training would learn from it that there is nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle

from maskformer.data.files.masks import encode_segments
from maskformer.data.importing import target
from maskformer.structures import Bands, InputError

from .media import explained
from .tasks import ClassTable, IdMap, Task

Record = dict[str, Any]

SPLIT = "train"
FOLDERS = ("images", "labels", "results")


class ResultDataset:
    """Writes the results of pictures, one after the other, and then the files that hold them together.

    Args:
        folder: created; its name is that of the dataset.
        task: whose results they are.
        classes: K names.
        things: numbers of the classes that are counted one by one; of no meaning but for panoptic results.
        bands: how the pictures were read, and are to be read in training.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        classes: ClassTable,
        things: Collection[int] = (),
        bands: Bands | None = None,
    ):
        self.folder, self.task, self.classes, self.things, self.bands = folder, task, classes, things, bands

    def files(self, picture: Path) -> list[Path]:
        """What ``add`` writes of a picture."""
        return [picture, self._label(picture), self._result(picture)]

    def has(self, picture: Path, facts: Record) -> bool:
        """Whether ``add`` completed a picture with these facts."""
        record = self._read(picture)
        complete = [picture, self._label(picture)] if record.get("is_kept") else []
        return all(record.get(key, self) == value for key, value in facts.items()) and all(map(Path.is_file, complete))

    def add(self, source: str, picture: Path, ids: IdMap, facts: Record) -> None:
        """Write the labels of a picture, the picture itself, and last the JSON that says that they are complete.

        Args:
            source: the file that was read.
            picture: where it goes: in ``folder/images``.
            ids: the encoded result.
            facts: task, model and so on.

        Raises:
            BadImageError: the picture cannot be written: its name.
            InputError: no file can be written there.
        """
        label, result = self._label(picture), self._result(picture)
        height, width = ids.image.shape[:2]
        segments = self._segments(ids)
        is_kept = bool(segments) if self.task.name != "semantic" else bool((ids.image != self._ignore_value).any())
        with explained(result):
            result.parent.mkdir(parents=True, exist_ok=True)
            result.unlink(missing_ok=True)
            if is_kept:
                target.write_label_map(label, ids.image)
                target.place_picture(Path(source), picture)
            else:
                label.unlink(missing_ok=True)
                picture.unlink(missing_ok=True)
            record = {**facts, "height": height, "width": width, "is_kept": is_kept, "segments_info": segments}
            target.write_json(result, record)

    def finish(self, pictures: Sequence[Path], base: str, more: Record) -> tuple[Path, int]:
        """Write what holds the pictures together.

        Args:
            pictures: all that were added, now or before.
            base: configuration of the model.
            more: other keys of the new configuration.

        Returns:
            The configuration's path, and how many pictures the dataset has.

        Raises:
            InputError: there is none, or no file can be written there.
        """
        records = {picture: record for picture in pictures if (record := self._read(picture)).get("is_kept")}
        if not records:
            raise InputError(
                f"In none of {len(pictures)} pictures is anything above the threshold, so there is no dataset: lower "
                "--confidence-threshold."
            )
        name = target.plain_name(self.folder.name)
        block: Record = {"classes": list(self.classes.names), **(self.bands.to_plain() if self.bands else {})}
        with explained(self.folder):
            block[SPLIT] = {"images": "images", **self._write_lists(records, block)}
            datasets = {"DATASETS": {"TRAIN": [f"{name}_{SPLIT}"]}}
            path = target.write_configuration(self.folder, name, base=base, block=block, more={**more, **datasets})
        return path, len(records)

    def _write_lists(self, records: dict[Path, Record], block: Record) -> dict[str, str]:
        """Complete the block of the dataset, and write its JSON; the split's paths besides the images."""
        if self.task.name == "semantic":
            block["ignore"] = self._ignore_value
            return {"labels": "labels"}
        block["offset"] = target.FIRST_ID
        coco = target.CocoInstances(self.classes.names)
        panoptic = []
        for picture, record in records.items():
            coco.add_picture(picture.name, (record["height"], record["width"]))
            if self.task.name == "panoptic":
                segments = record["segments_info"]
                image_id = coco.content["images"][-1]["id"]
                panoptic.append({"image_id": image_id, "file_name": f"{picture.stem}.png", "segments_info": segments})
                continue
            for segment in record["segments_info"]:
                index = segment["category_id"] - target.FIRST_ID
                coco.add_object(index, segment["segmentation"], {"score": segment["score"]})
        if self.task.name == "instance":
            target.write_json(self.folder / "instances.json", coco.content)
            return {"instances": "instances.json"}
        block["things"] = [self.classes.names[index] for index in sorted(self.things)]
        categories = [
            {**each, "isthing": int(index in self.things)} for index, each in enumerate(coco.content["categories"])
        ]
        content = {"images": coco.content["images"], "annotations": panoptic, "categories": categories}
        target.write_json(self.folder / "panoptic.json", content)
        return {"panoptic": "panoptic.json", "panoptic_masks": "labels"}

    def _segments(self, ids: IdMap) -> list[Record]:
        """The segments of a picture that have a pixel, as COCO has them; instances with a mask and a score."""
        found = [segment for segment in ids.meaning.get("segments_info", []) if segment["area"]]
        id_map = ids.image if ids.image.ndim == 2 else ids.image.astype(np.int32) @ [1, 256, 65536]
        visible = encode_segments(id_map, [segment["id"] for segment in found if "segmentation" not in segment])
        segments = []
        for segment in found:
            mask = segment.get("segmentation") or visible[segment["id"]]
            box = rle.toBbox(target.to_rle(mask, id_map.shape)).tolist()
            common = {"id": segment["id"], "category_id": segment["category_id"] + target.FIRST_ID}
            common |= {"area": segment["area"], "bbox": box, "iscrowd": 0}
            is_instance = self.task.name == "instance"
            segments.append({**common, "score": segment["score"], "segmentation": mask} if is_instance else common)
        return segments

    @property
    def _ignore_value(self) -> int:
        return target.ignore_value(len(self.classes))

    def _label(self, picture: Path) -> Path:
        return self.folder / "labels" / f"{picture.stem}.png"

    def _result(self, picture: Path) -> Path:
        return self.folder / "results" / f"{picture.stem}.json"

    def _read(self, picture: Path) -> Record:
        try:
            record = json.loads(self._result(picture).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}
