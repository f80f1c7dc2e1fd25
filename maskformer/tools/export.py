"""Write a trained model as a file that another program runs, and prove that it gives what the model gives.

    python -m maskformer.tools.export --config-file FILE --weights FILE --output model.onnx

Any size and batch of pictures, unless --size fixes the size. Beside the file lies a JSON that says what it needs and
gives; the same stands in the file. It is run on a picture in three sizes before it has its name.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from maskformer.exporting.commands import PRECISIONS, ExportOptions, load_plainly, write_export
from maskformer.exporting.graph import OUTPUTS
from maskformer.runs.failures import EXIT_INPUT_ERROR, EXIT_INTERRUPTED
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError, printable


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m maskformer.tools.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="KEY VALUE pairs, which change the configuration, come last.\n"
        "Exit code: 0 written, 2 a mistake in the arguments, or the file is not the model and was not kept.",
    )
    text = "the model's configuration, or a folder that a training or save_pretrained wrote"
    parser.add_argument("--config-file", required=True, metavar="FILE", help=text)
    parser.add_argument("--weights", metavar="FILE", help="the trained model; else the configuration's MODEL.WEIGHTS")
    parser.add_argument("--output", required=True, metavar="FILE", help=".onnx, or .pt2 for torch.export.load")
    text = "by default the first of panoptic, instance, semantic that the model has switched on; queries: logits"
    parser.add_argument("--task", choices=OUTPUTS, help=text)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", metavar="HEIGHTxWIDTH", help="of all pictures, such as 512x512")
    sizes.add_argument("--dynamic", action="store_true", help="pictures and batches of any size (the default)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="(default: %(default)s)")
    parser.add_argument("--calibration", metavar="FOLDER", help="of pictures that show int8 the range of values")
    text = "that the file is proven on (default: a photograph that comes with Matplotlib)"
    parser.add_argument("--picture", metavar="FILE", help=text)
    parser.add_argument("--licence", default="", metavar="TEXT", help="of the weights, for the file's metadata")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change")
    return parser


def export(args: argparse.Namespace) -> None:
    """Do what the arguments say; mistakes in them are found before the model is loaded.

    Raises:
        InputError: see ``maskformer.export``.
    """
    output = Path(args.output).expanduser()
    size = None if args.size is None else _read_size(args.size)
    if len(args.opts) % 2:
        raise InputError(f"{' '.join(args.opts)} is no list of KEY VALUE pairs: a value is missing.")
    options = ExportOptions(args.task, size, args.precision, args.calibration, args.picture, args.licence)
    options.check(output)
    predictor = load_plainly(args.config_file, args.weights, dict(zip(args.opts[::2], args.opts[1::2])))
    write_export(predictor, output, options, lambda line: print(printable(line), flush=True))


def _read_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise InputError(f"--size is {text}; expected HEIGHTxWIDTH in pixels, such as 512x512, each from 1 to 99999.")
    return int(match[1]), int(match[2])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake ends in one line on standard error."""
    args = build_parser().parse_args(argv)
    try:
        export(args)
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
