"""What the pages name exists: links, files, keys, configurations, commands, imports; and their examples run."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from maskformer.config import load_config
from maskformer.config.keys import default_config
from maskformer.engine import build_argument_parser
from maskformer.tools.analyze import analyze

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "tests"
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in (
        *(REPOSITORY / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md")),
        *sorted(REPOSITORY.glob("README*.md")),
        *sorted((REPOSITORY / "docs").glob("*.md")),
    )
}
NOW = {page: text for page, text in PAGES.items() if page != "CHANGELOG.md"}  # which names what is gone, too
PYTHON = [(page, code) for page, text in PAGES.items() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
# Configuration -> parameters and multiply-adds, in the words of the table.
TABLE = dict(re.findall(r"^\| `([\w/-]+\.yaml)` \|(.+?\|.+?)\|.+\|$", PAGES["docs/train.md"], re.MULTILINE))


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each shell command in an indented or fenced block that runs Python."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE) + re.findall(
        r"^    (.*)$",
        re.sub(r"^```.*?^```", "", text.replace("\\\n", " "), flags=re.DOTALL | re.MULTILINE),
        re.MULTILINE,
    )
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if re.match(r"(python|torchrun) ", line):
            yield shlex.split(line, comments=True)


COMMANDS = [(page, words) for page, text in NOW.items() for words in commands(text)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, titles), link


@pytest.mark.parametrize("page", NOW)
def test_named_files_exist(page: str):
    roots = "|".join(("tests", "maskformer", "benchmarks", "configs", "docs", "install", r"\.ci"))
    for path in re.findall(rf"`((?:{roots})/[\w./-]*)`", NOW[page]):
        assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize("page", NOW)
def test_named_configurations_load(page: str):
    for name in set(re.findall(r"(?:configs/)?\b((?:[\w-]+/)+[\w-]+\.yaml)", NOW[page].replace("configs/", ""))):
        if not name.endswith("/dataset.yaml"):  # which commands write
            assert load_config(str(REPOSITORY / "configs" / name)).INPUT.FORMAT == "RGB"


@pytest.mark.parametrize("page", NOW)
def test_named_keys_exist(page: str):
    cfg = default_config()
    for key in re.findall(r"\b((?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER|LOG)(?:\.[A-Z0-9_]+)+)\b", NOW[page]):
        try:
            functools.reduce(CfgNode.__getitem__, key.split("."), cfg)
        except KeyError:
            pytest.fail(f"{page} names {key}")


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_command_is_understood(page: str, words: list[str]):
    starts = [words.index(each) for each in ("train_net.py", "-m") if each in words]  # after torchrun and its options
    words = words[starts[0] if starts else 1 :]
    if words[0] == "-m":
        main = importlib.import_module(f"{words[1]}.__main__" if words[1] == "benchmarks" else words[1]).main
        parser = sys.modules[main.__module__].build_parser()
        parser.parse_args(words[2:])
    elif words[0] in ("train_net.py", "my_train.py"):
        build_argument_parser().parse_args(words[1:])
    else:
        assert words[0] == "-c" or (REPOSITORY / words[0]).is_file()


def test_named_commands_exist():
    for page, text in NOW.items():
        for module in re.findall(r"python -m ((?:maskformer|benchmarks)[\w.]*)", text):
            path = REPOSITORY.joinpath(*module.rstrip(".").split("."))
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (page, module)


def test_commands_of_the_makefile_are_its_targets():
    targets = set(re.findall(r"^([a-z_]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    for page, text in NOW.items():
        assert set(re.findall(r"(?:`|^    )make ([a-z_]+)", text, flags=re.MULTILINE)) <= targets, page


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=lambda value: value if value.endswith(".md") else "")
def test_python_compiles_and_what_it_imports_of_ours_is_there(page: str, code: str):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("maskformer", "detectron2"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_tests_that_the_page_on_reliability_names_are_there():
    rows = re.findall(r"^\|.+\|.+\| (.*\.py.*) \|$", PAGES["docs/reliability.md"], re.MULTILINE)
    assert len(rows) > 30
    for path, _, name in (place.partition("::") for row in rows for place in row.split(", ")):
        assert f"def {name}" in (TESTS / path).read_text(encoding="utf-8"), (path, name)


@pytest.mark.parametrize("name", TABLE)
def test_table_of_models_holds_what_analyze_prints(name: str):
    (whole,) = analyze(load_config(str(REPOSITORY / "configs" / name)), (512, 512), depth=0)
    assert f" {whole.parameters / 1e6:.1f} M | {whole.multiply_adds / 1e9:.1f} G " == TABLE[name]


@pytest.mark.slow
def test_examples_of_extending_run(tmp_path: Path):
    """Each under the name in its first line; those named test_*.py are tests."""
    examples = [code for page, code in PYTHON if page == "docs/extending.md"]
    for code in examples:
        (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    folders = [tmp_path, REPOSITORY, *(TESTS / name for name in ("modeling", "evaluation", "data/datasets"))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


def test_what_is_looked_for_is_found():
    assert len(COMMANDS) >= 20 and len(PYTHON) >= 10 and len(TABLE) == 22
