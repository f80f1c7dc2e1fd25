from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_dataset
from detectron2.data import MetadataCatalog
from PIL import Image
from tiny_dataset import INPUTS, NAME, perfect_output

from maskformer.config import load_config
from maskformer.evaluation import MEASURES, build_evaluator
from maskformer.evaluation.panoptic import PanopticEvaluator
from maskformer.structures import InputError

SWITCHES = ("SEMANTIC_ON", "PANOPTIC_ON", "INSTANCE_ON")


def config(*on: str):
    cfg = load_config("", ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"])
    for switch in SWITCHES:
        cfg.MODEL.MASK_FORMER.TEST[switch] = switch in on
    return cfg


def measured(*on: str) -> set[str]:
    evaluator = build_evaluator(config(*on), NAME)
    evaluator.reset()
    evaluator.process(INPUTS, [perfect_output()])
    return set(evaluator.evaluate())


@pytest.mark.parametrize("evaluator_type", ["coco_panoptic_seg", "ade20k_panoptic_seg"])
def test_panoptic_dataset_measures_what_is_switched_on(tmp_path: Path, evaluator_type: str):
    tiny_dataset.register(tmp_path, evaluator_type=evaluator_type)
    assert measured("SEMANTIC_ON") == {"sem_seg"}
    assert measured("PANOPTIC_ON") == {"panoptic_seg"}
    assert measured("INSTANCE_ON") == {"segm"}
    assert measured(*SWITCHES) == {"sem_seg", "panoptic_seg", "segm"}


def test_what_the_dataset_cannot_judge_is_left_out_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tiny_dataset.register(tmp_path, with_instances=False)
    for _ in range(2):
        assert measured(*SWITCHES) == {"sem_seg", "panoptic_seg"}
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all(fact in warning for fact in ("MODEL.MASK_FORMER.TEST.INSTANCE_ON", NAME, "json_file"))


@pytest.mark.parametrize(("evaluator_type", "task"), [("sem_seg", "sem_seg"), ("coco", "segm")])
def test_dataset_of_one_task_measures_that(tmp_path: Path, evaluator_type: str, task: str):
    tiny_dataset.register(tmp_path, evaluator_type=evaluator_type)
    assert measured(*SWITCHES) == {task}


def test_nothing_to_measure_names_the_switch(tmp_path: Path):
    tiny_dataset.register(tmp_path, evaluator_type="sem_seg")
    with pytest.raises(InputError, match=r"set MODEL.MASK_FORMER.TEST.SEMANTIC_ON to True"):
        build_evaluator(config("INSTANCE_ON"), NAME)


def test_dataset_without_labels_is_refused(tmp_path: Path):
    tiny_dataset.register(tmp_path, evaluator_type="coco", with_instances=False)
    with pytest.raises(InputError, match=r"holds no labels to compare with; change DATASETS.TEST"):
        build_evaluator(config(*SWITCHES), NAME)


def test_unknown_type_lists_the_valid_ones(tmp_path: Path):
    tiny_dataset.register(tmp_path, evaluator_type="lvis")
    with pytest.raises(InputError, match=r"evaluator_type 'lvis'.*sem_seg, coco, coco_panoptic_seg"):
        build_evaluator(config(*SWITCHES), NAME)


@pytest.mark.parametrize("evaluator_type", [name for name in MEASURES if name.startswith("cityscapes")])
def test_cityscapes_without_its_scripts_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluator_type: str
):
    tiny_dataset.register(tmp_path, evaluator_type=evaluator_type)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install cityscapesscripts"):
        build_evaluator(config(*SWITCHES), NAME)


def test_model_of_another_number_of_classes_is_refused_before_it_runs(tmp_path: Path):
    tiny_dataset.register(tmp_path)
    cfg = config("SEMANTIC_ON")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    with pytest.raises(InputError, match=r"predicts 4 classes but the dataset has 3: set MODEL.SEM_SEG_HEAD.NUM"):
        build_evaluator(cfg, NAME)
    build_evaluator(config("PANOPTIC_ON"), NAME)


def test_output_folder_receives_the_predictions(tmp_path: Path):
    tiny_dataset.register(tmp_path)
    evaluator = build_evaluator(config(*SWITCHES), NAME, str(tmp_path / "out"))
    evaluator.reset()
    evaluator.process(INPUTS, [perfect_output()])
    evaluator.evaluate()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"sem_seg_evaluation.pth", "predictions.json", "coco_instances_results.json"} <= written


def test_a_dataset_can_be_measured_again_after_it_moved(tmp_path: Path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        tiny_dataset.register(tmp_path / folder)
        assert measured("INSTANCE_ON") == {"segm"}
        (tmp_path / folder / "instances.json").unlink()  # nobody reads it again


@pytest.mark.parametrize(
    ("switch", "key"),
    [
        ("SEMANTIC_ON", "stuff_classes"),
        ("PANOPTIC_ON", "panoptic_root"),
    ],
)
def test_metadata_that_are_needed_are_named_when_the_evaluator_is_built(tmp_path: Path, switch: str, key: str):
    tiny_dataset.register(tmp_path)
    delattr(MetadataCatalog.get(NAME), key)
    with pytest.raises(InputError, match=f"{NAME} has no {key} in its metadata"):
        build_evaluator(config(switch), NAME)


def test_metadata_that_have_a_default_are_not_needed(tmp_path: Path):
    """Pixels of 255 are ignored; ids of classes are their numbers."""
    tiny_dataset.register(tmp_path, evaluator_type="sem_seg")
    for key in ("ignore_label", "stuff_dataset_id_to_contiguous_id", "thing_dataset_id_to_contiguous_id"):
        delattr(MetadataCatalog.get(NAME), key)
    label = np.asarray(Image.open(tmp_path / "label.png")).copy()
    label[0] = 255
    Image.fromarray(label).save(tmp_path / "label.png")
    evaluator = build_evaluator(config("SEMANTIC_ON"), NAME, str(tmp_path))
    evaluator.reset()
    evaluator.process(INPUTS, [perfect_output()])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
    written = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    assert {entry["category_id"] for entry in written} == {0, 1, 2}


def test_ids_of_things_are_written_where_the_table_of_stuff_holds_stuff_alone(tmp_path: Path):
    """As Detectron2 registers panoptic COCO."""
    tiny_dataset.register(tmp_path, evaluator_type="sem_seg")
    del MetadataCatalog.get(NAME).stuff_dataset_id_to_contiguous_id[9]
    evaluator = build_evaluator(config("SEMANTIC_ON"), NAME, str(tmp_path))
    evaluator.reset()
    evaluator.process(INPUTS, [perfect_output()])
    evaluator.evaluate()
    written = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    assert {entry["category_id"] for entry in written} == {3, 5, 9}


@pytest.mark.parametrize("name", ["sky", "heaven"])
def test_a_class_that_no_table_of_ids_has_is_found_by_name_or_named_before_the_first_image(tmp_path: Path, name: str):
    tiny_dataset.register(tmp_path)
    del MetadataCatalog.get(NAME).stuff_dataset_id_to_contiguous_id
    content = json.loads((tmp_path / "panoptic.json").read_text())
    content["categories"][1]["name"] = name
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    evaluator = PanopticEvaluator(NAME)
    evaluator.reset()
    if name == "sky":
        evaluator.check(INPUTS)
        evaluator.process(INPUTS, [perfect_output()])
        assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100
    else:
        with pytest.raises(InputError, match=r"the categories grass, heaven, cat .* grass, sky, cat"):
            evaluator.check(INPUTS)


def test_instances_without_a_table_of_ids_have_the_classes_for_ids(tmp_path: Path):
    """As Detectron2's evaluator has it: here the JSON calls the cats 2, which is their class."""
    tiny_dataset.register(tmp_path, evaluator_type="coco")
    content = json.loads((tmp_path / "instances.json").read_text())
    for entry in content["annotations"]:
        entry["category_id"] = 2
    content["categories"] = [{"id": index, "name": name} for index, name in enumerate(("grass", "sky", "cat"))]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    del MetadataCatalog.get(NAME).thing_dataset_id_to_contiguous_id
    evaluator = build_evaluator(config("INSTANCE_ON"), NAME)
    evaluator.reset()
    evaluator.process(INPUTS, [perfect_output()])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)
