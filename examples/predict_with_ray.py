"""Segment a folder of pictures, or Parquet files of their bytes, on all machines of a Ray cluster, into Parquet files.

    pip install 'maskformer[scale]'
    python examples/predict_with_ray.py --model output/shapes --input pictures/ --output segments/
    python examples/predict_with_ray.py --model output/shapes --input s3://bucket/pictures/ --image-column image \
        --output s3://bucket/segments/ --address auto --workers 64 --gpus 1

A row of the output is a picture: ``name``, ``height``, ``width``, ``segments`` and, where it is no picture, ``error``.
A segment has the fields of COCO's results: ``category_id``, ``category_name``, ``score``, ``area``, ``bbox`` (x, y,
width, height) and ``segmentation`` (run lengths, which ``pycocotools.mask.decode`` takes). Rows come in no order.

A worker that is lost is started again, with the pictures that it had. After the loss of the whole job, the same command
does the rest, if it had ``--checkpoint``.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported: nothing is sent anywhere

import pyarrow as pa
import ray
import ray.data
from PIL import Image
from ray.data.checkpoint import CheckpointConfig

import maskformer
from maskformer.structures import BadImageError

ENDINGS = ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "ppm"]
RUN_LENGTHS = pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()})
SEGMENT = pa.struct(
    {"category_id": pa.int64(), "category_name": pa.string(), "score": pa.float32(), "area": pa.int64()}
    | {"bbox": pa.list_(pa.int32()), "segmentation": RUN_LENGTHS}
)
ROW = pa.schema(
    {"name": pa.string(), "height": pa.int32(), "width": pa.int32()}
    | {"segments": pa.list_(SEGMENT), "error": pa.string()}
)


class Segmenter:
    """A model, loaded once in each worker, that makes rows of segments of rows of bytes."""

    def __init__(self, model: str, weights: str | None, keys: dict[str, str]):
        self.predictor = maskformer.load(model, weights, **keys)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row for each; the schema is stated, because a block without any error or segment has no types."""
        return pa.Table.from_pylist([self._segment(**row) for row in batch.to_pylist()], schema=ROW)

    def _segment(self, name: str, image: Any) -> dict[str, Any]:
        content = image["bytes"] if isinstance(image, dict) else image  # Hugging Face's column has a path too
        try:
            result = self.predictor(_open(content))
        except BadImageError as error:  # one of a billion must not end the rest
            return {"name": name, "segments": [], "error": str(error)}
        height, width = result.image_size
        return {"name": name, "height": height, "width": width, "segments": result.to_coco()}


def _open(content: bytes | None) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content or b""))
    except Exception as error:  # of whichever decoder the bytes look like
        raise BadImageError(f"{len(content or b'')} bytes are no picture that Pillow reads.") from error


def read_pictures(args: argparse.Namespace) -> ray.data.Dataset:
    """Rows of ``name`` and ``image`` (bytes), read as they are asked for."""
    if args.image_column is None:
        files = ray.data.read_binary_files(args.input, include_paths=True, file_extensions=ENDINGS)
        return files.rename_columns({"path": "name", "bytes": "image"})
    columns = [args.name_column, args.image_column]
    rows = ray.data.read_parquet(args.input, columns=columns)
    return rows.rename_columns({args.name_column: "name", args.image_column: "image"})


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="configuration file, or folder of a model or a training")
    parser.add_argument("--weights", help="by default those of the folder, or the configuration's MODEL.WEIGHTS")
    parser.add_argument("--input", required=True, nargs="+", help="folders or files, local or of a cloud's storage")
    parser.add_argument("--output", required=True, help="folder for Parquet files")
    parser.add_argument("--image-column", help="the inputs are Parquet files; their bytes are in this column")
    parser.add_argument("--name-column", default="name", help="of Parquet files: what tells pictures apart")
    parser.add_argument(
        "--workers", type=int, default=1, help="how many load the model; leave reading and writing a core"
    )
    parser.add_argument("--cpus", type=float, default=1, help="of each worker, which has as many threads")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker; 0.5: two share one")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures that are handed over, and lost, together")
    parser.add_argument("--checkpoint", help="folder that notes which pictures are done; removed at the end")
    parser.add_argument("--address", help='of a cluster, or "auto"; without it, this machine alone')
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    if args.address is None:
        # One core, if only in name, for reading and writing: workers that take all of them would wait for ever.
        cores = max(os.cpu_count() or 1, math.ceil(args.workers * args.cpus) + 1)
        ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=args.address, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    if args.checkpoint is not None:
        context.checkpoint_config = CheckpointConfig("name", os.path.abspath(args.checkpoint))
    keys = {key.replace(".", "__"): value for key, value in zip(args.opts[::2], args.opts[1::2])}
    weights = args.weights and os.path.abspath(args.weights)
    segments = read_pictures(args).map_batches(
        Segmenter,
        fn_constructor_args=(os.path.abspath(args.model), weights, keys),
        # Two batches at each worker at most, and reading waits for them: a million pictures take no more memory.
        compute=ray.data.ActorPoolStrategy(size=args.workers, max_tasks_in_flight_per_actor=2),
        batch_size=args.batch_size,
        batch_format="pyarrow",
        num_cpus=args.cpus,
        num_gpus=args.gpus,
    )
    segments.write_parquet(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
