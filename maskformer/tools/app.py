"""A page in the browser to drop a picture on, for whoever does not program: what a trained model finds in it.

    python -m maskformer.tools.app --weights output/shapes/model_final.pth

The page is at http://127.0.0.1:7860 and for this machine alone, unless --host says otherwise. It needs no network.
"""

from __future__ import annotations

import argparse
import html
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskformer.config import load_config
from maskformer.engine.accelerator import resolve_device
from maskformer.engine.setup import register_datasets
from maskformer.engine.test_time import inference_options
from maskformer.predictor import Predictor
from maskformer.reports import media
from maskformer.reports.tasks import INSTANCE_THRESHOLD, OPACITY, TASKS, ClassTable, choose_task, read_instances
from maskformer.runs.failures import EXIT_INPUT_ERROR, is_out_of_memory
from maskformer.structures import BadImageError, InputError, printable

try:
    import gradio as gr
except ImportError:  # the extra "app"
    gr = None  # type: ignore[assignment]

TITLE = "MaskFormer"
TASK_NAMES = {
    "panoptic": "Everything: objects one by one, and what is around them",
    "instance": "Objects, with scores",
    "semantic": "The class of each pixel",
}
HEADINGS = ("class", "pixels", "of the picture")
NOTHING = (None, None, {"headers": list(HEADINGS), "data": []})  # result, picture, table
SIDE = 560  # pixels, of the result on the page
LARGEST_FILE = "200mb"
KEPT_FOR = 3600  # seconds, of what the browser sent and got; the folder is Gradio's, $GRADIO_TEMP_DIR
FONTS = ("system-ui", "sans-serif")  # those of the machine


@dataclass(frozen=True)
class Segmenter:
    """A model and what it can be asked for.

    Attributes:
        predictor: with the model.
        classes: K names and colours.
        thresholds: of each task that the model has: where its slider begins; None: it has no threshold.
    """

    predictor: Predictor
    classes: ClassTable
    thresholds: dict[str, float | None]

    def segment(self, picture: np.ndarray, task: str, threshold: float) -> Any:
        """The result of a task for a picture (height,width,3), RGB.

        Raises:
            BadImageError: the picture cannot be segmented, or memory does not suffice.
        """
        model = self.predictor.model
        options = {f"{name}_on": name == task for name in TASKS}
        try:
            # With other tasks switched off, the masks of semantic results are still restored first.
            with inference_options(model, **options, restore_masks_first=True, object_mask_threshold=threshold):
                output = self.predictor(picture)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise BadImageError("The picture needs more memory than there is: make it smaller.") from error
        return read_instances(output, threshold) if task == "instance" else TASKS[task].read(output)

    def draw(self, picture: np.ndarray, result: Any, task: str, transparency: float) -> np.ndarray:
        """The picture with the result over it, small ones enlarged; transparency is 0..100."""
        scale = max(1, SIDE // max(picture.shape))
        return TASKS[task].draw(picture, result, self.classes, scale=scale, opacity=1 - transparency / 100)

    def list_found(self, result: Any, task: str) -> dict[str, list[Any]]:
        """A table with a row for each segment or class, the largest first."""
        if task == "semantic":
            indices, areas = np.unique(result, return_counts=True)
            found = [{"category_name": self.classes.names[i], "area": n} for i, n in zip(indices, areas, strict=True)]
            size = result.size
        else:
            ids = TASKS[task].encode(result, self.classes)
            found, size = ids.meaning["segments_info"], ids.image.shape[0] * ids.image.shape[1]
        rows = []
        for each in sorted(found, key=lambda each: -each["area"]):
            scores = [f"{100 * each['score']:.0f} %"] if "score" in each else []
            rows.append([each["category_name"], *scores, f"{each['area']:,}", f"{100 * each['area'] / size:.1f} %"])
        scores = ["score"] if task == "instance" else []
        return {"headers": [HEADINGS[0], *scores, *HEADINGS[1:]], "data": rows}

    def look(self, picture: np.ndarray | None, task: str, threshold: float, transparency: float) -> tuple[Any, ...]:
        """Result, picture and table for the page; a picture that cannot be segmented is told there."""
        if picture is None:
            return NOTHING
        with _told_on_the_page():
            result = self.segment(picture, task, threshold)
        return result, self.draw(picture, result, task, transparency), self.list_found(result, task)

    def redraw(self, picture: np.ndarray | None, result: Any, task: str, transparency: float) -> np.ndarray | None:
        """The picture for the page, with another transparency."""
        return None if picture is None or result is None else self.draw(picture, result, task, transparency)


def read_picture(path: str | None) -> np.ndarray | None:
    """A picture that was dropped on the page; what is wrong with it is told there."""
    with _told_on_the_page(path or ""):
        return None if path is None else media.read_picture(path)


@contextmanager
def _told_on_the_page(path: str = "") -> Iterator[None]:
    """Show mistakes on the page, without the folder that Gradio has put the file in."""
    try:
        yield
    except InputError as error:
        sentence = str(error).replace(path, os.path.basename(path)) if path else str(error)
        raise gr.Error(html.escape(sentence), duration=None, print_exception=False) from error


def build_segmenter(config_file: str, weights: str, device: str, options: Sequence[str]) -> Segmenter:
    """Load the model and what is known about its classes.

    Raises:
        InputError: a mistake in the configuration or the weights.
    """
    cfg = load_config(config_file, options)
    cfg.MODEL.WEIGHTS = weights
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE if device == "auto" else device)
    choose_task(cfg)
    register_datasets(cfg)
    test = cfg.MODEL.MASK_FORMER.TEST
    begin = {"panoptic": test.OBJECT_MASK_THRESHOLD, "instance": INSTANCE_THRESHOLD, "semantic": None}
    thresholds = {name: begin[name] for name, task in TASKS.items() if test[task.switch]}
    predictor = Predictor.from_config(cfg)
    return Segmenter(predictor, ClassTable.of(predictor.classes, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES), thresholds)


def find_config(weights: str) -> str:
    """The configuration that a training wrote beside its weights.

    Raises:
        InputError: there is none.
    """
    path = Path(weights).parent / "config.yaml"
    if not path.is_file():
        raise InputError(f"There is no {path} beside the weights; expected --config-file, the model's configuration.")
    return str(path)


def build_page(segmenter: Segmenter) -> Any:
    """The page, as Gradio's blocks."""
    tasks = list(segmenter.thresholds)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_FOR, KEPT_FOR)) as page:
        gr.Markdown(f"# {TITLE}\nDrop a picture, and see what the model finds in it.")
        picture, result = gr.State(), gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                file = gr.File(label="Picture", type="filepath", height=140, elem_id="picture")
                choices = [(TASK_NAMES[name], name) for name in tasks]
                task = gr.Radio(choices, value=tasks[0], label="Look for", elem_id="task")
                threshold = gr.Slider(0, 1, step=0.01, elem_id="threshold", **_begin(segmenter, tasks[0]))
                beginning = round(100 * (1 - OPACITY))
                transparency = gr.Slider(0, 100, beginning, step=1, label="Transparency in %", elem_id="transparency")
            with gr.Column(scale=2, min_width=320):
                drawn = gr.Image(
                    label="Result", format="png", height=SIDE, buttons=["download", "fullscreen"], elem_id="result"
                )
                listed = gr.Dataframe(NOTHING[2], label="Found", interactive=False, elem_id="found")
        look: dict[str, Any] = {
            "fn": segmenter.look,
            "inputs": [picture, task, threshold, transparency],
            "outputs": [result, drawn, listed],
            "concurrency_id": "model",  # one at a time
        }
        # A broken picture must not leave the last one's result under its own name.
        cleared = file.change(lambda: (None, *NOTHING), None, [picture, result, drawn, listed], show_progress="hidden")
        cleared.then(read_picture, file, picture).success(**look)
        task.input(lambda name: gr.Slider(**_begin(segmenter, name)), task, threshold).then(**look)
        threshold.input(**look, trigger_mode="always_last", show_progress="hidden")
        seen = [picture, result, task, transparency]
        transparency.input(segmenter.redraw, seen, drawn, trigger_mode="always_last", show_progress="hidden")
    return page


def _begin(segmenter: Segmenter, task: str) -> dict[str, Any]:
    """What the slider of the threshold is like for a task."""
    value = segmenter.thresholds[task]
    label = "Least score of an object" if task == "instance" else "Least probability of a segment"
    return {"value": value or 0.0, "label": label, "visible": value is not None}


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
    parser.add_argument("--weights", required=True, metavar="FILE", help="the trained model")
    beside = "the model's configuration; by default config.yaml beside the weights, where a training wrote it"
    parser.add_argument("--config-file", metavar="FILE", help=beside)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets everybody in the network in (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    parser.add_argument("--device", default="auto", help='cpu, cuda, ...; "auto": an accelerator, else the CPU')
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake ends in one line on standard error."""
    args = build_parser().parse_args(argv)
    try:
        if gr is None:
            raise InputError("The page needs the package gradio: pip install 'maskformer[app]', or pip install gradio.")
        config_file = args.config_file or find_config(args.weights)
        serve(build_page(build_segmenter(config_file, args.weights, args.device, args.opts)), args.host, args.port)
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
