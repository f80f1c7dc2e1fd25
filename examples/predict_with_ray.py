"""Segment a folder of pictures, or Parquet files of their bytes, on all machines of a Ray cluster, into Parquet files.

    pip install 'maskformer[scale]'
    python examples/predict_with_ray.py --config-file FILE --weights FILE --input pictures/ --output segments/
    python examples/predict_with_ray.py ... --input 's3://bucket/pictures/' --image-column image --workers 64 --gpus 1

A row of the output is a picture: ``name``, ``height``, ``width``, ``segments`` and, where it is no picture, ``error``.
A segment has the fields of COCO's results: ``category_id``, ``category_name``, ``score``, ``area``, ``bbox`` (x, y,
width, height) and ``segmentation`` (run lengths). Rows come in no order. A worker that is lost is started again, with
the pictures that it had; after the loss of the whole job, the same command does the rest (``--checkpoint``).
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported: nothing is sent anywhere

import numpy as np
import pyarrow as pa
import ray
import ray.data
from PIL import Image
from pycocotools import mask as rle_codec
from ray.data.checkpoint import CheckpointConfig

from maskformer.config import load_config
from maskformer.engine.setup import register_datasets
from maskformer.predictor import Predictor
from maskformer.reports import tasks
from maskformer.structures import BadImageError

ENDINGS = ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "ppm"]
# Reading and writing wait for disks. If they asked for cores, workers that take all of them would wait for ever.
AT_WORKERS: dict[str, Any] = {"ray_remote_args": {"num_cpus": 0}, "concurrency": 4}
RUN_LENGTHS = pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()})
SEGMENT = pa.struct(
    {"category_id": pa.int32(), "category_name": pa.string(), "score": pa.float32(), "area": pa.int64()}
    | {"bbox": pa.list_(pa.int32()), "segmentation": RUN_LENGTHS}
)
ROW = pa.schema(
    {"name": pa.string(), "height": pa.int32(), "width": pa.int32()}
    | {"segments": pa.list_(SEGMENT), "error": pa.string()}
)


class Segmenter:
    """A model, loaded once in each worker, that makes rows of segments of rows of bytes."""

    def __init__(self, config_file: str, weights: str, options: list[str]):
        cfg = load_config(config_file, [*options, "MODEL.WEIGHTS", weights])
        register_datasets(cfg)
        self.task = tasks.choose_task(cfg)
        tasks.give_only(self.task, cfg)
        self.predictor = Predictor.from_config(cfg)
        self.classes = tasks.ClassTable.of(self.predictor.classes, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row for each; the schema is stated, because a block without any error or segment has no types."""
        return pa.Table.from_pylist([self._segment(**row) for row in batch.to_pylist()], schema=ROW)

    def _segment(self, name: str, image: bytes) -> dict[str, Any]:
        try:
            picture = Image.open(io.BytesIO(image))
            segments = list(self._segments(self.predictor(picture)))
        except (BadImageError, OSError, TypeError) as error:  # one of a billion must not end the rest
            return {"name": name, "segments": [], "error": str(error)}
        height, width = segments[0]["segmentation"]["size"] if segments else picture.size[::-1]
        return {"name": name, "height": height, "width": width, "segments": segments}

    def _segments(self, output: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for category, score, mask in self._masks(self.task.read(output)):
            rle = rle_codec.encode(np.asfortranarray(mask, dtype=np.uint8))
            yield {
                **{"category_id": category, "category_name": self.classes.names[category], "score": score},
                **{"area": int(mask.sum()), "bbox": [int(value) for value in rle_codec.toBbox(rle)]},
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
            }

    def _masks(self, result: Any) -> Iterator[tuple[int, float | None, np.ndarray]]:
        """Class, score and mask."""
        if self.task.name == "panoptic":
            for info in result.segments_info:
                yield info["category_id"], None, result.segment_map.numpy() == info["id"]
        elif self.task.name == "instance":
            masks = result.pred_masks.numpy()
            yield from zip(result.pred_classes.tolist(), result.scores.tolist(), masks, strict=True)
        else:
            for category in np.unique(result).tolist():
                yield category, None, result == category


def read_pictures(args: argparse.Namespace) -> ray.data.Dataset:
    """Rows of ``name`` and ``image`` (bytes), read as they are asked for."""
    if args.image_column is None:
        files = ray.data.read_binary_files(args.input, include_paths=True, file_extensions=ENDINGS, **AT_WORKERS)
        return files.rename_columns({"path": "name", "bytes": "image"})
    columns = [args.name_column, args.image_column]
    rows = ray.data.read_parquet(args.input, columns=columns, **AT_WORKERS).select_columns(columns)
    return rows.rename_columns({args.name_column: "name", args.image_column: "image"})


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--input", required=True, nargs="+", help="folders or files, local or of a cloud's storage")
    parser.add_argument("--output", required=True, help="folder for Parquet files")
    parser.add_argument("--image-column", help="the inputs are Parquet files; their bytes are in this column")
    parser.add_argument("--name-column", default="name", help="of Parquet files: what tells pictures apart")
    parser.add_argument("--workers", type=int, default=1, help="how many load the model")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker; 0.5: two share one")
    parser.add_argument("--cpus", type=float, default=1, help="of each worker")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures that are handed over and lost together")
    parser.add_argument("--checkpoint", help="folder that notes which pictures are done; removed at the end")
    parser.add_argument("--address", help='of a cluster, or "auto"; without it, this machine')
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    ray.init(address=args.address, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    if args.checkpoint is not None:
        context.checkpoint_config = CheckpointConfig("name", os.path.abspath(args.checkpoint))
    segments = read_pictures(args).map_batches(
        Segmenter,
        fn_constructor_args=(os.path.abspath(args.config_file), os.path.abspath(args.weights), args.opts),
        # Two batches wait at each worker, and reading waits for them: memory does not grow with the number of pictures.
        compute=ray.data.ActorPoolStrategy(size=args.workers, max_tasks_in_flight_per_actor=2),
        batch_size=args.batch_size,
        batch_format="pyarrow",
        num_cpus=args.cpus,
        num_gpus=args.gpus,
    )
    segments.write_parquet(args.output, **AT_WORKERS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
