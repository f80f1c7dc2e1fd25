"""No code out of a file is run, and no name in a file leads out of its folder."""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from maskformer.data.checks.verification import load_dataset
from maskformer.data.datasets.registration import load_panoptic
from maskformer.data.files.json_files import is_inside, join_inside
from maskformer.structures import ESCAPING, BadImageError, InputError, RunError, printable

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = [
    *sorted((REPOSITORY / "maskformer").rglob("*.py")),
    *sorted((REPOSITORY / "datasets").glob("*.py")),
    *sorted((REPOSITORY / "install").glob("*.py")),
    REPOSITORY / "train_net.py",
    REPOSITORY / "setup.py",
]

# Calls that run what a file or a user says, by the last parts of their names; and why the few that stand may.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "pty.spawn"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load"),
    *("dill.loads", "joblib.load", "shelve.open", "marshal.load", "marshal.loads", "runpy.run_path", "torch.hub.load"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "imp.load_source"),
    "shutil.unpack_archive",
}
# Detectron2 reads YAML with the unsafe loader, and tarfile and zipfile write where an archive says.
FORBIDDEN_METHODS = {"merge_from_file", "load_yaml_with_base", "load_cfg", "extractall"}
ALLOWED = {
    # A file that its user named in MASKFORMER_TRUSTED_WEIGHTS, and no other: see tests/checkpoint/test_safe_reading.py.
    ("maskformer/checkpoint/reading.py", "_read_trusted", "pickle.Unpickler"),
    ("maskformer/checkpoint/reading.py", "_read_trusted", "torch.load without weights_only=True"),
    # zipfile's takes "..", drives and leading slashes out of names and makes no links: see test_import_dataset.py.
    ("maskformer/data/importing/archive.py", "_unpack", "extractall"),
}


class _Calls(ast.NodeVisitor):
    """Collects (function, what it does that is forbidden)."""

    def __init__(self, tree: ast.Module):
        self.found: list[tuple[str, str]] = []
        self._function = ""
        self._full_name = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self._function = self._function, node.name
        self.generic_visit(node)
        self._function = outer

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        name = self._full_name.get(name, name)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in FORBIDDEN:
            self.found.append((self._function, name))
        if name.rpartition(".")[2] in FORBIDDEN_METHODS:
            self.found.append((self._function, name.rpartition(".")[2]))
        if name == "torch.load" and keywords.get("weights_only") != "True":
            self.found.append((self._function, "torch.load without weights_only=True"))
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
            self.found.append((self._function, "np.load with pickles"))
        if keywords.get("shell", "False") != "False":
            self.found.append((self._function, "a shell"))
        self.generic_visit(node)


def find_calls(source: str) -> list[tuple[str, str]]:
    return _Calls(ast.parse(source)).found


def test_nothing_in_the_repository_runs_what_a_file_says():
    found = {
        (path.relative_to(REPOSITORY).as_posix(), *call)
        for path in SOURCES
        for call in find_calls(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        *("eval('1')", "os.system('x')", "yaml.load(f, Loader=yaml.Loader)", "pickle.loads(b)", "torch.load(f)"),
        *("torch.load(f, weights_only=False)", "subprocess.run('x', shell=True)", "cfg.merge_from_file('x.yaml')"),
        *("np.load(f, allow_pickle=True)", "from pickle import loads\nloads(b)", "from os import system as s\ns('x')"),
        *("CfgNode.load_yaml_with_base('x')", "archive.extractall()", "exec(open('x').read())"),
    ],
)
def test_forbidden_calls_are_seen(line: str):
    assert find_calls(line)


@pytest.mark.parametrize(
    "line", ["model.eval()", "torch.load(f, weights_only=True)", "re.compile('x')", "json.loads(s)"]
)
def test_harmless_calls_are_not(line: str):
    assert find_calls(line) == []


# --- names that lead out of a folder ---

ESCAPES = ["../a.png", "/etc/passwd", "x/../../a.png", "x/../a.png", ".."]


@pytest.mark.parametrize("name", ESCAPES)
def test_name_that_leads_out_of_its_folder_is_refused(name: str):
    with pytest.raises(InputError, match=r"p\.json names the file .*, which is not in data/masks"):
        join_inside("data/masks", name, "p.json")


@pytest.mark.parametrize("name", ["a.png", "x/a.png", "..a.png", "./a.png", "é/a b.png", "a..b/c.png"])
def test_name_below_its_folder_is_taken(name: str):
    assert join_inside("data/masks", name, "p.json") == f"data/masks/{name}"


@pytest.mark.parametrize(
    ("path", "folder", "inside"),
    [
        ("../data/a.png", "../data", True),
        ("../data/../a.png", "../data", False),
        ("/data/images/a.png", "/data/images", True),
        ("/data/images2/a.png", "/data/images", False),
        ("data/a.png", ".", True),
        ("./data/a.png", "data", True),
        ("/etc/passwd", "data", False),
    ],
)
def test_place_of_a_file(path: str, folder: str, inside: bool):
    assert is_inside(path, folder) is inside


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("key", ["images", "annotations"])
def test_panoptic_json_reads_nothing_outside(tmp_path: Path, key: str, name: str):
    content: dict[str, Any] = {
        "images": [{"id": "a", "file_name": "a.jpg", "height": 2, "width": 2}],
        "annotations": [{"image_id": "a", "file_name": "a.png", "segments_info": []}],
    }
    content[key][0]["file_name"] = name
    (tmp_path / "p.json").write_text(json.dumps(content))
    folders = {key: str(tmp_path / key) for key in ("image_root", "sem_seg_root", "panoptic_root")}
    with pytest.raises(InputError, match="which is not in"):
        load_panoptic(**folders, categories=[], panoptic_json=str(tmp_path / "p.json"))


@pytest.fixture
def foreign_dataset(tmp_path: Path) -> Iterator[str]:
    """A dataset as Detectron2's own loaders give it, which do not look where names lead."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / folder / "a.png")
    records = [{"file_name": f"{tmp_path}/images/a.png", "pan_seg_file_name": f"{tmp_path}/masks/../../secret.png"}]
    DatasetCatalog.register("foreign", lambda: records)
    roots = {"image_root": f"{tmp_path}/images", "panoptic_root": f"{tmp_path}/masks"}
    MetadataCatalog.get("foreign").set(**roots)
    yield "foreign"
    DatasetCatalog.remove("foreign")
    MetadataCatalog.remove("foreign")


def test_no_dataset_reads_outside_of_its_folders(foreign_dataset: str):
    with pytest.raises(InputError, match=r"names the file .*secret\.png, which is not in .*masks"):
        load_dataset(foreign_dataset, "DATASETS.TRAIN")


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_for_security", REPOSITORY / "install" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["detectron2/../../evil.py", "/detectron2/evil.py", "detectron2/x/../../../evil.py"])
def test_archive_with_a_way_out_is_not_repacked(tmp_path: Path, name: str):
    build_wheels = load_script("build_wheels")
    with zipfile.ZipFile(tmp_path / "sal_detectron2-0.7.2-py3-none-any.whl", "w") as archive:
        archive.writestr("detectron2/__init__.py", "")
        archive.writestr(name, "evil")
    with pytest.raises(build_wheels.BuildError, match="leads out of"):
        build_wheels.read_kept_files(tmp_path / "sal_detectron2-0.7.2-py3-none-any.whl", build_wheels.RECIPES[0])


def test_link_in_an_archive_is_not_repacked(tmp_path: Path):
    build_wheels = load_script("build_wheels")
    link = zipfile.ZipInfo("detectron2/link.py")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "sal_detectron2-0.7.2-py3-none-any.whl", "w") as archive:
        archive.writestr("detectron2/__init__.py", "")
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(build_wheels.BuildError, match="is a link"):
        build_wheels.read_kept_files(tmp_path / "sal_detectron2-0.7.2-py3-none-any.whl", build_wheels.RECIPES[0])


# --- names out of files on a terminal ---

NASTY = "a\x1b[31m\rb\nc\u202ed\u200be\ud800"
SHOWN = r"a\x1b[31m\rb\nc\u202ed\u200be\ud800"


def test_names_are_shown_as_python_would_write_them():
    assert printable(NASTY) == SHOWN
    assert printable("Straße, 道路, a b/c.png") == "Straße, 道路, a b/c.png"
    assert printable("a\nb\t\x07", keep="\n") == "a\nb\\t\\x07"


@pytest.mark.parametrize("kind", [InputError, BadImageError, RunError])
def test_errors_show_names_without_control_characters(kind: type[Exception]):
    assert str(kind(f"File {NASTY} is bad.")) == f"File {SHOWN} is bad."
    assert str(pickle.loads(pickle.dumps(kind(NASTY)))) == SHOWN
    passed_on = str(kind(f"Caught {kind.__name__} in DataLoader worker process 0.\nTraceback\n  x\n"))
    assert passed_on.count("\n") == 3  # of which the command line takes the last line


@pytest.mark.parametrize("logger", ["maskformer.checkpoint.checkpointer", "maskformer"])
def test_logs_show_names_without_control_characters(
    logger: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("maskformer"), "propagate", True)
    logging.getLogger(logger).warning("Not in %s: %s", NASTY, NASTY)
    logging.getLogger(logger).warning("Scores:\n%s", f"cat  1\n{NASTY}")
    # Where an earlier test had set the logger up, pytest listens at it and at the root.
    first, second = dict.fromkeys(caplog.messages)
    assert first == f"Not in {SHOWN}: {SHOWN}"
    assert second == "Scores:\ncat  1\n" + SHOWN.replace(r"\n", "\n")


def test_colours_of_detectron2_are_no_part_of_its_names(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("detectron2.of_a_test")
    logger.addHandler(ESCAPING)
    try:
        logger.warning("Classes:\n" + "\x1b[36m| %s |\x1b[0m", "cat\x07")
    finally:
        logger.removeHandler(ESCAPING)
    assert caplog.messages == ["Classes:\n" + r"| cat\x07 |"]


def test_commands_show_names_without_control_characters(tmp_path: Path):
    """A parameter's name, in the log of a process before it asks for one, and after."""
    torch.save({f"weight{NASTY[:-1]}": torch.ones(1), "bias": torch.ones(2)}, tmp_path / "model.pth")
    script = """
import sys, torch
from maskformer.checkpoint import Checkpointer
from detectron2.utils.logger import setup_logger
Checkpointer(torch.nn.Linear(1, 2)).load(sys.argv[1])
setup_logger(sys.argv[2], name="maskformer")
Checkpointer(torch.nn.Linear(1, 2)).load(sys.argv[1])
"""
    words = [sys.executable, "-c", script, tmp_path / "model.pth", tmp_path]
    process = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    for said in (process.stdout, process.stderr):  # Python itself shows warnings on the latter
        assert r"weighta\x1b[31m" in said and "\x1b[31m\r" not in said
    log = (tmp_path / "log.txt").read_text()
    assert r"weighta\x1b[31m" in log and "\x1b" not in log
