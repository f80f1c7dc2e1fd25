"""What an evaluator asks of a dataset's truth before it measures: that ids of images and categories fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from maskformer.structures import InputError


def check_image_ids(records: Sequence[Mapping[str, Any]], known: Collection[Any], json_file: str) -> None:
    """Compare the images of a dataset with those of the JSON that they are measured by.

    Args:
        records: Detectron2's dataset dicts; ``image_id`` is read.
        known: ids of the images of the JSON.
        json_file: its path.

    Raises:
        InputError: an image has no id, or none of the JSON's.
    """
    for record in records:
        if record.get("image_id") not in known:
            seen = f"image_id {record['image_id']!r}" if "image_id" in record else "no image_id"
            raise InputError(
                f"{json_file} has no annotation of image {record.get('image_id')!r} ({record['file_name']}), which has "
                f"{seen}; expected one of its ids, such as {next(iter(known), None)!r}, for each image of "
                "DATASETS.TEST."
            )


def image_id_of(example: Mapping[str, Any], content: Mapping[str, Any]) -> Any:
    """The id that an image has in the truth.

    Args:
        example: entry of the dataset.
        content: of the truth; where an entry of a Python function has no ``image_id``, the name of its file decides.
    """
    if "image_id" in example:
        return example["image_id"]
    return next((image["id"] for image in content["images"] if image["file_name"] == example["file_name"]), None)


def match_ids(
    contiguous_ids: Mapping[int, int] | None,
    names: Sequence[str] | None,
    categories: Sequence[Mapping[str, Any]],
    json_file: str,
) -> dict[int, int]:
    """The category id that a JSON has for each class of a dataset.

    Args:
        contiguous_ids: category id -> class, as metadata has it; None: there is no such table, and names decide.
        names: of the classes.
        categories: of the JSON.
        json_file: its path.

    Raises:
        InputError: there is neither a table nor a category of each name.
    """
    if contiguous_ids is not None:
        return {index: category_id for category_id, index in contiguous_ids.items()}
    id_of_name = {category.get("name"): category["id"] for category in categories}
    missing = [name for name in names or () if name not in id_of_name]
    if not names or missing or len(id_of_name) < len(categories):
        raise InputError(
            f"{json_file} has the categories {', '.join(map(str, id_of_name))} but the dataset has the classes "
            f"{', '.join(names or ['(not named)'])} and no table of ids; expected the same names, or "
            "thing_dataset_id_to_contiguous_id (stuff_dataset_id_to_contiguous_id) in its metadata."
        )
    return {index: id_of_name[name] for index, name in enumerate(names)}
