"""``maskformer.load`` and what it gives, as Python code and notebooks use it."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image
from pycocotools import mask as rle_codec
from tiny_model import SHAPES_CONFIG, TINY

import maskformer
from maskformer.checkpoint import read_weights
from maskformer.predictor import Predictor, load
from maskformer.structures import BadImageError, InputError

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 80), (64, 80), (90, 64), (64, 80))]
KEYS = {key.replace(".", "__"): value for key, value in TINY.items()}


@pytest.fixture(scope="module")
def predictor(tiny_weights: str) -> Predictor:
    return load(SHAPES_CONFIG, tiny_weights, **KEYS)


def assert_same_results(one, other) -> None:
    assert one.keys() == other.keys()
    assert torch.equal(one["sem_seg"], other["sem_seg"])
    assert torch.equal(one["panoptic_seg"][0], other["panoptic_seg"][0])
    assert one["panoptic_seg"][1] == other["panoptic_seg"][1]
    assert torch.equal(one["instances"].pred_masks, other["instances"].pred_masks)


def test_the_package_itself_has_the_door():
    assert maskformer.load is load and maskformer.Predictor is Predictor
    with pytest.raises(AttributeError, match="no_such_name"):
        maskformer.no_such_name  # noqa: B018


def test_segments_are_those_of_detectron2s_dictionary(predictor: Predictor):
    result = predictor(PICTURES[0])
    segment_map, infos = result["panoptic_seg"]
    assert result.task == "panoptic" and len(infos) > 1
    assert len(result.segments) == len(infos)
    for segment, info in zip(result.segments, infos):
        assert np.array_equal(segment.mask, segment_map.numpy() == info["id"])
        assert (segment.class_id, segment.is_thing) == (info["category_id"], info["isthing"])
        assert segment.label == result.classes[info["category_id"]]
        assert 0 < segment.score == info["score"] <= 1
        rows, columns = np.nonzero(segment.mask)
        assert segment.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert segment.area == len(rows)
        assert (result.label_map[segment.mask] == segment.class_id).all()
    assert (result.label_map[segment_map.numpy() == 0] == -1).all()


def test_panoptic_scores_are_the_probabilities_of_the_queries(predictor: Predictor):
    result = predictor(PICTURES[0], task="panoptic")
    example = predictor.example(PICTURES[0])
    with torch.no_grad():
        class_logits, _, _ = predictor.model.predict([example])[0]
    probs, classes = class_logits.softmax(-1)[:, :-1].max(-1)
    for segment in result.segments:
        of_class = probs[classes == segment.class_id]
        assert any(segment.score == pytest.approx(prob, abs=1e-6) for prob in of_class.tolist())


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_a_task_of_one_call_gives_what_the_configuration_would(predictor: Predictor, tiny_weights: str, task: str):
    result = predictor(PICTURES[0], task=task)
    everything = predictor(PICTURES[0])
    key = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}[task]
    assert list(result) == [key] and result.task == task
    if task == "semantic":
        assert torch.equal(result[key], everything[key])
        assert {segment.class_id for segment in result.segments} == set(np.unique(result[key]).tolist())
        assert all(segment.score is None for segment in result.segments)
        assert np.array_equal(result.label_map, result[key].numpy())
    elif task == "instance":
        assert torch.equal(result[key].pred_masks, everything[key].pred_masks)
    else:
        assert torch.equal(result[key][0], everything[key][0])


def test_thresholds_of_one_call(predictor: Predictor):
    scores = predictor(PICTURES[0])["instances"].scores
    middle = float(scores.sort().values[len(scores) // 2])
    shown = predictor(PICTURES[0], task="instance", threshold=middle)
    assert [segment.score for segment in shown.segments] == sorted(
        (score for score in scores.tolist() if score > middle), reverse=True
    )
    panoptic = predictor(PICTURES[0], task="panoptic")
    limit = sorted(segment.score for segment in panoptic.segments)[0]
    fewer = predictor(PICTURES[0], task="panoptic", threshold=limit)
    assert all(segment.score > limit for segment in fewer.segments)
    assert len(predictor(PICTURES[0], task="panoptic").segments) == len(panoptic.segments)  # of that call alone


def test_semantic_pixels_below_a_threshold_have_no_class(predictor: Predictor):
    result = predictor(PICTURES[0], task="semantic", threshold=0.3)
    scores = result["sem_seg"]
    probs = (scores.amax(0) / scores.sum(0).clamp(min=1)).numpy()
    assert ((result.label_map == -1) == (probs <= 0.3)).all() and 0 < (result.label_map == -1).mean() < 1


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"task": "depth"}, "depth"),
        ({"threshold": 2}, "2"),
        ({"threshold": "high"}, "high"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "2"}, "batch_size"),
        ({"output_size": 64}, "output_size"),
        ({"output_size": (64,)}, "output_size"),
    ],
)
def test_what_makes_no_sense_is_named(predictor: Predictor, asked: dict, named: str):
    with pytest.raises(InputError, match=named):
        predictor([PICTURES[0]], **asked)


def test_an_address_is_no_picture(predictor: Predictor):
    with pytest.raises(BadImageError, match=r"https://example\.org/a\.jpg"):
        predictor("https://example.org/a.jpg")


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_list_gives_a_list_in_its_order(predictor: Predictor, batch_size: int):
    results = predictor([Image.fromarray(picture) for picture in PICTURES], batch_size=batch_size)
    assert predictor([], batch_size=batch_size) == []
    for picture, result in zip(PICTURES, results, strict=True):
        assert result.image_size == picture.shape[:2]
        agreement = (result["sem_seg"] == predictor(picture)["sem_seg"]).float().mean()
        assert agreement > 0.999  # a batch rounds otherwise


@pytest.mark.parametrize(
    "as_batch", [np.stack, lambda pair: torch.from_numpy(np.stack(pair)).permute(0, 3, 1, 2), tuple]
)
def test_a_batch_is_a_list_of_pictures(predictor: Predictor, as_batch):
    pair = [PICTURES[0], PICTURES[1]]
    for result, picture in zip(predictor(as_batch(pair)), pair, strict=True):
        assert_same_results(result, predictor(picture))
    assert predictor(np.zeros((0, 8, 8, 3), np.uint8)) == []


def test_an_iterator_is_read_as_far_as_results_are_asked_for(predictor: Predictor):
    read = []
    results = predictor((read.append(index) or picture for index, picture in enumerate(PICTURES)), batch_size=1)
    assert read == []
    assert_same_results(next(results), predictor(PICTURES[0]))
    assert len(read) <= 2 and len(list(results)) == len(PICTURES) - 1


@pytest.mark.parametrize(
    "wrong", ["nowhere.jpg", np.zeros((4, 0, 3), np.uint8), None, np.zeros((1, 4000, 3), np.uint8)]
)
def test_the_picture_of_a_list_that_is_none_is_named(predictor: Predictor, wrong):
    with pytest.raises(BadImageError, match=r"Picture 2 .*(nowhere|\(4, 0, 3\)|NoneType|1 x 4000)"):
        predictor([PICTURES[0], PICTURES[1], wrong], batch_size=2)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_windows_give_no_segments_and_say_so(tiny_weights: str, task: str):
    keys = {**KEYS, **SEMANTIC, "MODEL__MASK_FORMER__TEST__SLIDING_WINDOW": (48, 48)}
    del keys["INPUT__DATASET_MAPPER_NAME"]
    predictor = load(SHAPES_CONFIG, tiny_weights, **keys)
    assert predictor(PICTURES[0]).task == "semantic"
    with pytest.raises(InputError, match=rf"{task}.*SLIDING_WINDOW"):
        predictor(PICTURES[0], task=task)


def test_pickled_and_from_threads(predictor: Predictor):
    expected = [predictor(picture) for picture in PICTURES]
    restored = pickle.loads(pickle.dumps(predictor))
    copied = copy.deepcopy(predictor)
    with ThreadPoolExecutor(4) as threads:
        tasks = ["semantic", "instance", "panoptic"] * 4
        jobs = [threads.submit(predictor, PICTURES[0], task=task) for task in tasks]
        results = list(threads.map(predictor, PICTURES))
        assert [job.result().task for job in jobs] == tasks
    for result, other in zip(expected, results, strict=True):
        assert_same_results(result, other)
    assert_same_results(expected[0], restored(PICTURES[0]))
    assert_same_results(expected[0], copied(PICTURES[0]))


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_coco_annotations_are_plain_and_whole(predictor: Predictor, task: str):
    result = predictor(PICTURES[0], task=task, **({} if task == "semantic" else {"threshold": 0.0}))
    annotations = json.loads(json.dumps(result.to_coco(image_id=7)))
    assert len(annotations) == len(result.segments) > 0
    for annotation, segment in zip(annotations, result.segments):
        assert np.array_equal(rle_codec.decode(annotation["segmentation"]).astype(bool), segment.mask)
        assert annotation["area"] == segment.area and annotation["image_id"] == 7
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == segment.box
        assert ("score" in annotation) == (task != "semantic")


def test_drawn_and_saved(predictor: Predictor, tmp_path: Path):
    path = tmp_path / "träumt.v2.png"
    Image.fromarray(PICTURES[0]).save(path)
    result = predictor(path, output_size=(128, 160))
    drawn = result.draw()
    assert drawn.size == (160, 128) and drawn.mode == "RGB"
    assert result.save(tmp_path / "out") == tmp_path / "out" / "träumt.v2.jpg"
    content = json.loads((tmp_path / "out" / "träumt.v2_ids.json").read_text())
    assert [segment["category_name"] for segment in content["segments_info"]] == [s.label for s in result.segments]
    assert Image.open(tmp_path / "out" / "träumt.v2_ids.png").size == (160, 128)
    assert predictor(PICTURES[0]).save(tmp_path).name == "picture.jpg"
    for name in ("../elsewhere", "", 3):
        with pytest.raises(InputError, match="name"):
            result.save(tmp_path, name)
    for options in ({"opacity": 3}, {"scale": 0}):
        with pytest.raises(InputError, match=r"scale.*opacity"):
            result.draw(**options)


def test_no_picture_takes_the_place_of_another_ones_result(predictor: Predictor, tmp_path: Path):
    files = [tmp_path / "a" / "same.png", tmp_path / "b" / "same.png"]
    for file, picture in zip(files, PICTURES):
        file.parent.mkdir()
        Image.fromarray(picture).save(file)
    for _ in range(2):  # once more, each takes its own place
        names = [result.save(tmp_path / "out").name for result in predictor(files)]
        assert names == ["same.jpg", "same_2.jpg"]
    arrays = [result.save(tmp_path / "out").name for result in predictor(PICTURES[:2])]
    assert arrays == ["picture.jpg", "picture_2.jpg"]


@pytest.mark.parametrize("max_shard_bytes", [5 * 2**30, 20_000])
def test_a_saved_folder_is_loaded_as_it_was(predictor: Predictor, tmp_path: Path, max_shard_bytes: int):
    folder = tmp_path / "my model"
    predictor.save_pretrained(folder, licence="cc-by-4.0", max_shard_bytes=max_shard_bytes)
    assert len(list(folder.glob("*.safetensors"))) == (1 if max_shard_bytes > 10**6 else len(set(weight_files(folder))))
    restored = Predictor.from_pretrained(folder)
    assert restored.classes.to_plain() == predictor.classes.to_plain()
    assert_same_results(predictor(PICTURES[0]), restored(PICTURES[0]))
    card = (folder / "README.md").read_text()
    assert "license: cc-by-4.0" in card and all(name in card for name in predictor.classes.names)
    assert str(tmp_path) not in (folder / "config.yaml").read_text() + card


def weight_files(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    return list(json.loads(index.read_text())["weight_map"].values())


def test_a_smaller_model_in_the_place_of_a_divided_one_is_what_is_read(predictor: Predictor, tmp_path: Path):
    predictor.save_pretrained(tmp_path, max_shard_bytes=20_000)
    predictor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.index.json")) and len(list(tmp_path.glob("*.safetensors"))) == 1
    with pytest.raises(InputError, match=r"config\.yaml"):
        predictor.save_pretrained(tmp_path, layout="hugging-face")


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, "model.safetensors"),
        ({"weight_map": {"a": 3}}, "weight_map"),
        ({"weight_map": {"a": "model.safetensors.index.json"}}, "index"),
        ({}, "weight_map"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors"),
    ],
)
def test_an_index_that_leads_astray_is_refused(tmp_path: Path, index: dict, named: str):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=named):
        read_weights(str(tmp_path / "model.safetensors.index.json"))


def test_the_output_folder_of_a_training_is_a_model(predictor: Predictor, tiny_weights: str, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(predictor.cfg.dump())
    with pytest.raises(InputError, match=r"model_final\.pth"):
        load(tmp_path)
    (tmp_path / "model_0000009.pth").write_bytes(Path(tiny_weights).read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    (tmp_path / "model_final.pth").write_bytes(b"of an earlier training, which this one goes on with")
    home = {"HOME": str(tmp_path.parent)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*home.popitem())
        beginnings = [(tmp_path,), (tmp_path / "model_0000009.pth",), (f"~/{tmp_path.name}",)]
        for arguments in [*beginnings, (SHAPES_CONFIG, f"~/{tmp_path.name}")]:
            restored = load(*arguments, **(KEYS if len(arguments) == 2 else {}))
            assert_same_results(predictor(PICTURES[0]), restored(PICTURES[0]))
            assert str(tmp_path / "model_0000009.pth") == restored.cfg.MODEL.WEIGHTS


def test_what_is_no_model_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"facebook/maskformer-swin-tiny-ade.*hf download"):
        load("facebook/maskformer-swin-tiny-ade")
    with pytest.raises(InputError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    with pytest.raises(InputError, match="segformer"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("INPUT__MIN_SIZE_TEST", None, r"INPUT\.MIN_SIZE_TEST"),
        ("MODEL__DEVICE", "gpu", "gpu"),  # and is not passed over for device="auto"
        ("MODEL__WEIGHTS", Path("nowhere.pth"), r"nowhere\.pth"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(tiny_weights: str, key: str, value, named: str):
    with pytest.raises(InputError, match=named):
        load(SHAPES_CONFIG, **{**KEYS, "MODEL__WEIGHTS": tiny_weights, key: value})


def test_a_key_that_does_not_exist_is_named(tiny_weights: str):
    with pytest.raises(InputError, match=r"INPUT\.MIN_SIZE_TSET.*MIN_SIZE_TEST"):
        load(SHAPES_CONFIG, tiny_weights, INPUT__MIN_SIZE_TSET=64)


# Training and evaluation

DATA = """
_BASE_: nowhere.yaml
DATASETS:
  OWN:
    garden:
      classes: [grass, path]
      train: {images: images, labels: labels}
      val: {images: images, labels: labels}
  TRAIN: [garden_train]
  TEST: [garden_val]
"""
SEMANTIC = {
    "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False,
    "MODEL__MASK_FORMER__TEST__INSTANCE_ON": False,
    "INPUT__DATASET_MAPPER_NAME": "mask_former_semantic",
}


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("garden")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(4):
        labels = np.zeros((48, 64), np.uint8)
        labels[:, 16 * index :] = 1
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
        Image.fromarray(np.stack([labels * 200] * 3, -1)).save(folder / "images" / f"{index}.jpg")
    (folder / "garden.yaml").write_text(DATA)
    return folder / "garden.yaml"


@pytest.mark.slow
def test_trained_and_evaluated_twice_in_one_process(garden: Path, tmp_path: Path):
    keys = {**KEYS, **SEMANTIC, "SOLVER__IMS_PER_BATCH": 2, "TEST__EVAL_PERIOD": 0}
    del keys["MODEL__DEVICE"]
    outcomes = [
        maskformer.train(SHAPES_CONFIG, garden, output=tmp_path / name, device="cpu", SOLVER__MAX_ITER=number, **keys)
        for name, number in (("one", 2), ("two", 3))
    ]
    for outcome, number in zip(outcomes, (2, 3)):
        assert outcome.report == outcome.output / "report.html" and outcome.report.is_file()
        assert 0 <= outcome.scores["sem_seg"]["mIoU"] <= 100
        log = (outcome.output / "log.txt").read_text()
        assert str(outcome.output) in log and str(outcomes[number == 2].output) not in log
        run = json.loads((outcome.output / "run.json").read_text())
        assert run["command"][:2] == ["train_net.py", "--config-file"] and run["iterations"] == number
    weights = outcomes[1].output / "model_final.pth"
    again = maskformer.evaluate(SHAPES_CONFIG, weights, garden, output=tmp_path / "three", device="cpu", **keys)
    assert again.scores == outcomes[1].scores
    result = maskformer.load(outcomes[1].output)(garden.parent / "images" / "1.jpg")
    assert result.classes == ("grass", "path") and result.task == "semantic"


def test_a_model_does_not_need_the_pictures_that_it_was_trained_on(predictor: Predictor, garden: Path, tmp_path: Path):
    content = {"images": str(garden.parent / "gone"), "labels": str(tmp_path / "gone.zip" / "labels")}
    cfg = predictor.cfg.clone()
    cfg.defrost()
    names = [f"class {index}" for index in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    cfg.DATASETS.OWN = CfgNode({"lost": {"classes": names, "train": content}})
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("gone_train",), ()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load(tmp_path / "config.yaml")(PICTURES[0], task="semantic").classes == tuple(names)


def changed_by_runs() -> dict:
    """What a run may not leave changed in the process."""
    loggers = {name: logging.getLogger(name) for name in ("maskformer", "detectron2", "fvcore", "py.warnings")}
    return {
        **{name: (each.level, each.propagate, list(each.handlers)) for name, each in loggers.items()},
        "filters": list(logging.getLogger("detectron2.engine.train_loop").filters),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "environment": dict(os.environ),
        "torch": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "folder": os.getcwd(),
    }


@pytest.mark.slow
def test_interrupted_and_resumed_and_the_process_is_as_it_was(garden: Path, tmp_path: Path):
    keys = {**KEYS, **SEMANTIC, "SOLVER__IMS_PER_BATCH": 2, "DATALOADER__NUM_WORKERS": 0, "SOLVER__DETERMINISTIC": True}
    before = changed_by_runs()

    def interrupt() -> None:
        while not (tmp_path / "metrics.json").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    impatient = threading.Thread(target=interrupt, daemon=True)
    impatient.start()
    with pytest.raises(KeyboardInterrupt, match="resume"):
        maskformer.train(SHAPES_CONFIG, garden, output=tmp_path, SOLVER__MAX_ITER=5000, **keys)
    assert changed_by_runs() == before
    done = int((tmp_path / "last_checkpoint").read_text()[len("model_") : -len(".pth")]) + 1
    assert load(tmp_path)(PICTURES[0]).classes == ("grass", "path")
    outcome = maskformer.train(SHAPES_CONFIG, garden, output=tmp_path, resume=True, SOLVER__MAX_ITER=done + 2, **keys)
    assert type(outcome.scores) is dict and type(outcome.scores["sem_seg"]["mIoU"]) is float
    assert json.loads((tmp_path / "run.json").read_text())["iterations"] == done + 2
    assert changed_by_runs() == before
    load(tmp_path).save_pretrained(tmp_path / "kept")
    texts = [path.read_text() for path in (tmp_path / "kept").iterdir() if path.suffix != ".safetensors"]
    assert len(texts) == 3 and not any(str(folder) in text for text in texts for folder in (tmp_path, garden.parent))
    assert any("--config-file maskformer_panoptic.yaml --data garden.yaml" in text for text in texts)


def test_a_mistake_is_an_error_and_not_an_exit(garden: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"SOLVER\.MAX_ITR"):
        maskformer.train(SHAPES_CONFIG, garden, output=tmp_path / "out", SOLVER__MAX_ITR=1)
