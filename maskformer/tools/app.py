"""A page in the browser to drop a picture on, for whoever does not program: what a trained model finds in it.

    python -m maskformer.tools.app --weights output/shapes/model_final.pth

The page is at http://127.0.0.1:7860 and for this machine alone, unless --host says otherwise. It needs no network.
"""

from __future__ import annotations

import argparse
import html
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from maskformer.predictor import Predictor, load
from maskformer.reports import media
from maskformer.reports.tasks import INSTANCE_THRESHOLD, OPACITY, TASKS
from maskformer.results import Result
from maskformer.runs.failures import EXIT_INPUT_ERROR, is_out_of_memory
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import BadImageError, Bands, InputError, printable

try:
    import gradio as gr
except ImportError:  # the extra "app"
    gr = None

TITLE = "MaskFormer"
TASK_NAMES = {
    "panoptic": "Everything: objects one by one, and what is around them",
    "instance": "Objects, with scores",
    "semantic": "The class of each pixel",
}
HEADINGS = ("class", "pixels", "of the picture")
THRESHOLD_NAMES = {
    "panoptic": "Least probability of a segment",
    "instance": "Least score of an object",
    "semantic": "Least probability of a pixel's class",
}
NOTHING = (None, None, {"headers": list(HEADINGS), "data": []})  # result, picture, table
SIDE = 560  # pixels, of the result on the page
LARGEST_FILE = "200mb"
KEPT_FOR = 3600  # seconds, of what the browser sent and got; the folder is Gradio's, $GRADIO_TEMP_DIR
FONTS = ("system-ui", "sans-serif")  # those of the machine


def segment(predictor: Predictor, picture: np.ndarray, task: str, threshold: float) -> Result:
    """The result of a task for a picture (height,width,3), RGB.

    Raises:
        BadImageError: the picture cannot be segmented, or memory does not suffice.
    """
    try:
        return predictor(picture, task=task, threshold=threshold)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BadImageError("The picture needs more memory than there is: make it smaller.") from error


def draw(result: Result | None, transparency: float) -> np.ndarray | None:
    """The picture with the result over it, small ones enlarged; transparency is 0..100."""
    if result is None:
        return None
    scale = max(1, SIDE // max(result.image.shape))
    return np.asarray(result.draw(scale=scale, opacity=1 - transparency / 100))


def list_found(result: Result) -> dict[str, list[Any]]:
    """A table with a row for each segment or class, the largest first."""
    pixels, with_scores = result.label_map.size, result.task != "semantic"
    rows = []
    for found in sorted(result.segments, key=lambda found: -found.area):
        score = [f"{100 * found.score:.0f} %"] if found.score is not None else []
        rows.append([found.label, *score, f"{found.area:,}", f"{100 * found.area / pixels:.1f} %"])
    return {"headers": [HEADINGS[0], *(["score"] if with_scores else []), *HEADINGS[1:]], "data": rows}


def look(
    predictor: Predictor, picture: np.ndarray | None, task: str, threshold: float, transparency: float
) -> tuple[Any, ...]:
    """Result, picture and table for the page; a picture that cannot be segmented is told there."""
    if picture is None:
        return NOTHING
    with _told_on_the_page():
        result = segment(predictor, picture, task, threshold)
    return result, draw(result, transparency), list_found(result)


def read_picture(bands: Bands | None, path: str | None) -> np.ndarray | None:
    """A picture that was dropped on the page; what is wrong with it is told there."""
    with _told_on_the_page(path or ""):
        return None if path is None else media.read_picture(path, bands)


@contextmanager
def _told_on_the_page(path: str = "") -> Iterator[None]:
    """Show mistakes on the page, without the folder that Gradio has put the file in."""
    try:
        yield
    except InputError as error:
        sentence = str(error).replace(path, os.path.basename(path)) if path else str(error)
        raise gr.Error(html.escape(sentence), duration=None, print_exception=False) from error


def thresholds_of(predictor: Predictor) -> dict[str, float]:
    """The tasks that a model has switched on, and where the slider of each begins."""
    assert predictor.cfg is not None
    test = predictor.cfg.MODEL.MASK_FORMER.TEST
    begin = {"panoptic": test.OBJECT_MASK_THRESHOLD, "instance": INSTANCE_THRESHOLD, "semantic": 0.0}
    return {name: begin[name] for name, task in TASKS.items() if test[task.switch]}


def build_page(predictor: Predictor) -> Any:
    """The page, as Gradio's blocks."""
    thresholds = thresholds_of(predictor)
    tasks = list(thresholds)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_FOR, KEPT_FOR)) as page:
        gr.Markdown(f"# {TITLE}\nDrop a picture, and see what the model finds in it.")
        picture, result = gr.State(), gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                file = gr.File(label="Picture", type="filepath", height=140, elem_id="picture")
                choices = [(TASK_NAMES[name], name) for name in tasks]
                task = gr.Radio(choices, value=tasks[0], label="Look for", elem_id="task")
                threshold = gr.Slider(0, 1, step=0.01, elem_id="threshold", **_begin(thresholds, tasks[0]))
                beginning = round(100 * (1 - OPACITY))
                transparency = gr.Slider(0, 100, beginning, step=1, label="Transparency in %", elem_id="transparency")
            with gr.Column(scale=2, min_width=320):
                drawn = gr.Image(
                    label="Result", format="png", height=SIDE, buttons=["download", "fullscreen"], elem_id="result"
                )
                listed = gr.Dataframe(NOTHING[2], label="Found", interactive=False, elem_id="found")
        show: dict[str, Any] = {
            "fn": partial(look, predictor),
            "inputs": [picture, task, threshold, transparency],
            "outputs": [result, drawn, listed],
            "concurrency_id": "model",  # one at a time
        }
        # A broken picture must not leave the last one's result under its own name.
        cleared = file.change(lambda: (None, *NOTHING), None, [picture, result, drawn, listed], show_progress="hidden")
        cleared.then(partial(read_picture, predictor.bands), file, picture).success(**show)
        task.input(lambda name: gr.Slider(**_begin(thresholds, name)), task, threshold).then(**show)
        threshold.input(**show, trigger_mode="always_last", show_progress="hidden")
        transparency.input(draw, [result, transparency], drawn, trigger_mode="always_last", show_progress="hidden")
    return page


def _begin(thresholds: Mapping[str, float], task: str) -> dict[str, Any]:
    """What the slider of the threshold is like for a task."""
    return {"value": thresholds[task], "label": THRESHOLD_NAMES[task]}


def serve(page: Any, host: str, port: int) -> None:
    """Give the page to browsers until Ctrl-C.

    Raises:
        InputError: the address cannot be had.
    """
    try:
        launch(page, host, port)
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be had ({error}): choose another --port, or --host.") from error
    print(f"The page is at http://{host}:{port} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def launch(page: Any, host: str, port: int) -> None:
    """Start to serve and come back."""
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=[],
        max_file_size=LARGEST_FILE,
        theme=gr.themes.Default(font=FONTS, font_mono=FONTS),
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m maskformer.tools.app",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="KEY VALUE pairs, which change the configuration, come last.",
    )
    parser.add_argument("--weights", required=True, metavar="PATH", help="the trained model, or a folder with one")
    beside = "the model's configuration; by default config.yaml beside the weights, where a training wrote it"
    parser.add_argument("--config-file", metavar="FILE", help=beside)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets everybody in the network in (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    parser.add_argument("--device", default="auto", help='cpu, cuda, ...; "auto": an accelerator, else the CPU')
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change")
    return parser


def load_model(args: argparse.Namespace) -> Predictor:
    """The model that the command line names; see ``maskformer.load``."""
    if len(args.opts) % 2:
        raise InputError(f"Options come as KEY VALUE pairs; {' '.join(args.opts)!r} has {len(args.opts)} words.")
    keys = dict(zip(args.opts[::2], args.opts[1::2]))
    return load(args.config_file or args.weights, args.weights, device=args.device, **keys)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake ends in one line on standard error."""
    args = build_parser().parse_args(argv)
    try:
        if gr is None:
            raise InputError("The page needs the package gradio: pip install 'maskformer[app]', or pip install gradio.")
        serve(build_page(load_model(args)), args.host, args.port)
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
