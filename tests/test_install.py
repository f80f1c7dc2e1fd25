"""Installing: the repacked wheels, the virtual environment's script, setup.py and the message without Detectron2."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement

import maskformer

REPOSITORY = Path(__file__).resolve().parent.parent
INFO = "detectron2-0.7.2+repacked.dist-info"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "install" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module


build_wheels = load_script("build_wheels")
python_range = load_script("python_range")
create_environment = load_script("create_environment")
DETECTRON2 = build_wheels.RECIPES[0]


@pytest.fixture
def source_wheel(tmp_path: Path) -> Path:
    """A small wheel with everything that the real one has too much of."""
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    files = {
        "detectron2/__init__.py": "__version__ = '0.7.2'\n",
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "binary",
        "detectron2/model_zoo/configs/a.yaml": "A: 1\n",
        "tools/__init__.py": "",
        "sal_detectron2-0.7.2.dist-info/LICENSE": "the licence\n",
        "sal_detectron2-0.7.2.dist-info/METADATA": "Requires-Dist: numpy<2\nRequires-Dist: black\n",
        "sal_detectron2-0.7.2.dist-info/WHEEL": "Root-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n",
        "sal_detectron2-0.7.2.dist-info/RECORD": "stale\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def repacked(source_wheel: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of the wheel that the small one becomes."""
    wheel = build_wheels.repack(source_wheel, DETECTRON2, tmp_path / "out")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_repacked_wheel_has_the_sources_and_neither_binary_nor_tools(repacked):
    assert set(repacked) == {
        "detectron2/__init__.py",
        "detectron2/model_zoo/configs/a.yaml",
        *(f"{INFO}/{name}" for name in ("LICENSE", "METADATA", "RECORD", "WHEEL", "top_level.txt")),
    }
    assert repacked["detectron2/__init__.py"] == b"__version__ = '0.7.2'\n"
    assert repacked[f"{INFO}/LICENSE"] == b"the licence\n"


def test_repacked_metadata_is_honest(repacked):
    metadata = repacked[f"{INFO}/METADATA"].decode()
    requirements = re.findall("^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    assert "Name: detectron2\nVersion: 0.7.2+repacked\n" in metadata
    assert {"numpy", "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7"} <= set(requirements)
    assert not [requirement for requirement in requirements if requirement.startswith(("black", "numpy<"))]
    assert "Root-Is-Purelib: true\nTag: py3-none-any\n" in repacked[f"{INFO}/WHEEL"].decode()
    assert repacked[f"{INFO}/top_level.txt"] == b"detectron2\n"


def test_repacked_record_lists_every_file_with_its_hash(repacked):
    rows = [line.rsplit(",", 2) for line in repacked[f"{INFO}/RECORD"].decode().splitlines()]
    assert [f"{INFO}/RECORD", "", ""] == rows.pop()
    assert {row[0] for row in rows} == set(repacked) - {f"{INFO}/RECORD"}
    for name, digest, size in rows:
        expected = base64.urlsafe_b64encode(hashlib.sha256(repacked[name]).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={expected}", len(repacked[name]))


def test_repacking_twice_gives_the_same_bytes(source_wheel, tmp_path):
    first = build_wheels.repack(source_wheel, DETECTRON2, tmp_path / "first")
    os.utime(source_wheel, (1, 1))
    second = build_wheels.repack(source_wheel, DETECTRON2, tmp_path / "second")
    assert first.name == second.name == "detectron2-0.7.2+repacked-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()


def test_another_content_is_refused_with_both_sums(source_wheel):
    actual = hashlib.sha256(source_wheel.read_bytes()).hexdigest()
    build_wheels.verify_sha256(source_wheel, actual)
    pinned = build_wheels.read_sources()["sal-detectron2"]
    with pytest.raises(build_wheels.BuildError, match=rf"^{source_wheel.name} has SHA-256 {actual}, but {pinned} is"):
        build_wheels.verify_sha256(source_wheel, pinned)


def test_wheel_without_the_package_is_refused(tmp_path):
    path = tmp_path / "sal_detectron2-0.7.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(build_wheels.BuildError, match="holds no package named detectron2"):
        build_wheels.repack(path, DETECTRON2, tmp_path)


def test_every_recipe_has_a_pinned_source():
    pins = build_wheels.read_sources()
    assert {recipe.source for recipe in build_wheels.RECIPES} == set(pins)
    assert pins["sal-detectron2"] == "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"


def find_top_level_imports(path: Path) -> set[str]:
    """The packages that a module cannot be imported without (what it tries in a `try` is not among them)."""
    source = path.read_text(encoding="utf-8")
    return set(re.findall(r"^(?:from|import) (\w+)(?:\.[\w.]+)?(?: import .*| as .*)?$", source, re.MULTILINE))


def test_detectron2_declares_what_its_modules_import():
    package = Path(importlib.util.find_spec("detectron2").origin).parent
    # export needs onnx and caffe2, tracking SciPy, the zoo pkg_resources: none is imported by the rest.
    parts = ["checkpoint", "config", "data", "engine", "evaluation", "layers", "modeling", "projects", "structures"]
    parts += ["utils", "solver"]
    imported = set().union(*(find_top_level_imports(path) for part in parts for path in (package / part).rglob("*.py")))
    providers = importlib.metadata.packages_distributions()
    # On Python 3.10, packages without a top_level.txt are missing; those are named as what they hold.
    needed = {normalise(providers.get(name, [name])[0]) for name in imported - sys.stdlib_module_names - {"detectron2"}}
    assert needed <= {normalise(requirement) for requirement in DETECTRON2.requires}


def normalise(requirement: str) -> str:
    """`Pillow>=7.1; extra == 'x'` -> pillow."""
    return re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-")


# --- the virtual environment ---


def test_users_pip_settings_change_nothing_but_how_packages_are_reached(monkeypatch):
    dropped = ("PIP_TARGET", "PIP_CONSTRAINT", "PIP_NO_DEPS", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    kept = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_PROXY", "PIP_FIND_LINKS", "HTTPS_PROXY")
    for name in (*dropped, *kept):
        monkeypatch.setenv(name, "value")
    monkeypatch.setenv("PIP_USER", "1")
    environment = create_environment.clean_environment()
    assert not set(dropped) & set(environment)
    assert {environment[name] for name in kept} == {"value"}
    assert environment["PIP_USER"] == "0"


def test_failed_step_says_what_failed_and_what_to_do(tmp_path, capsys):
    command = [sys.executable, "-c", "print('no route to host'); raise SystemExit(1)"]
    step = create_environment.Step("PyTorch", "a minute", command, "check the network.")
    with pytest.raises(create_environment.SetupError) as caught:
        create_environment.run_step(step, "2/6", tmp_path / "log")
    assert re.search(
        r"no route to host\nfailed: PyTorch .*log\)\n.*\nwhat to do: check the network\.$", str(caught.value)
    )
    assert capsys.readouterr().out.startswith("[2/6] PyTorch: a minute\n[2/6] PyTorch: FAILED after 0 s")


def test_progress_tells_the_last_thing_that_pip_does(tmp_path):
    log = tmp_path / "log"
    log.write_text("Collecting torch==2.14.1\n  Downloading https://host/a/torch-2.14.1.whl (530.1 MB)\nWARNING: x\n")
    assert create_environment.last_news(log) == "Downloading torch-2.14.1.whl (530.1 MB)"
    log.write_text("")
    assert create_environment.last_news(log) == "working"


# What pip 23.0 to 26.3 wrote. In its own log, a time stands before each line.
UNREACHED = (
    "Could not fetch URL https://host/simple/my-tiny/: connection error: [Errno 111] Connection refused - skipping\n"
)
UNKNOWN = "Could not fetch URL https://host/simple/my-tiny/: 404 Client Error: Not Found for url: x - skipping\n"
TOO_OLD = "Link requires a different Python (3.10.13 not in: '>=3.11'): https://host/a/my_tiny-1.0.tar.gz (from x)\n"
OTHER_TAGS = "Skipping link: none of the wheel's tags (cp36-cp36m-win32) are compatible (run x): "
OTHER_TAGS += "https://host/my_tiny-1.0-cp36-cp36m-win32.whl (from x)\n"
NO_MATCH = "ERROR: No matching distribution found for my.tiny==1.0\n"
CONFLICT = "ERROR: Cannot install a and b because these package versions have conflicting dependencies.\n"
PINNED = f"{CONFLICT}    The user requested (constraint) my.tiny<=2,==1.0\n"
MISMATCH = "    my.tiny==1.0 from https://host/x.whl:\n"
MISMATCH += "        Expected sha256 ab\n        Expected     or cd\n             Got        ef\n"


@pytest.mark.parametrize(("text", "facts"), [
    (UNREACHED + NO_MATCH, ["network", "https://host/simple/my-tiny/", "Connection refused"]),
    (UNREACHED + PINNED, ["network", "https://host/simple/my-tiny/"]),
    (UNREACHED.replace("connection error: [Errno 111]", "403 Client Error") + NO_MATCH, ["refused", "403"]),
    (UNREACHED.replace("my-tiny", "other") + UNKNOWN + NO_MATCH, ["no matching version", "my.tiny==1.0"]),
    (TOO_OLD + NO_MATCH, ["my.tiny==1.0", "needs Python >=3.11", platform.python_version()]),
    (TOO_OLD + PINNED, ["my.tiny==1.0", "needs Python >=3.11"]),
    ("ERROR: Package 'maskformer' requires a different Python: 3.9.1 not in '>=3.10'", ["maskformer", ">=3.10"]),
    (OTHER_TAGS + NO_MATCH, ["no matching version", "my.tiny==1.0", platform.python_version(), platform.machine()]),
    (f"Found link https://host/my_tiny-1.0-py3-none-any.whl (from x)\n{TOO_OLD}{PINNED}", ["contradict", "a and b"]),
    (MISMATCH, ["hash", "my.tiny==1.0", "ab", "cd", "ef"]),
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", ["disk is full"]),
    ("PermissionError: [Errno 13] Permission denied: '/x/y'", ["Permission denied", "/x/y"]),
    ("WARNING: Retrying after 'Read timed out.'\nERROR: Failed building wheel for my.tiny\n", ["built", "my.tiny"]),
    ("ERROR: HTTP error 503 while getting https://host/x.whl\n", ["download", "503", "https://host/x.whl"]),
])  # fmt: skip
def test_cause_of_a_failed_installation_is_told_by_facts(text, facts):
    cause, _ = create_environment.find_cause(text)
    assert [fact for fact in facts if fact not in cause] == []


def test_unknown_failure_is_not_guessed():
    assert create_environment.find_cause("Segmentation fault\n") is None


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A wheel in a folder, which pip is to look in, and a package index that nothing listens at."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    info = {"METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n", "RECORD": b""}
    info["WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    build_wheels.write_wheel({f"tiny-1.0.dist-info/{name}": content for name, content in info.items()}, wheel)
    return wheel


@pytest.mark.parametrize(("arguments", "fact"), [
    (["tiny==2.0"], "no network, or the package index refused: http://127.0.0.1:9/simple/tiny/"),
    (["--no-index", "tiny==2.0"], "no matching version: the package index has no tiny==2.0"),
    (["--require-hashes", "--no-index", "--requirement", "pins.txt"], f"{'0' * 64} Got {{sha256}}"),
])  # fmt: skip
def test_pip_itself_is_understood(tiny, monkeypatch, arguments, fact):
    monkeypatch.chdir(tiny.parent)
    Path("pins.txt").write_text(f"tiny==1.0 --hash=sha256:{'0' * 64}\n")
    command = [sys.executable, "-m", "pip", "install", "--target", "out", *arguments]
    with pytest.raises(create_environment.SetupError) as caught:
        create_environment.run_step(create_environment.Step("x", "", command, ""), "2/6", Path("x-install.log"))
    sha256 = hashlib.sha256(tiny.read_bytes()).hexdigest()
    cause = re.search(r"^cause: (.*)$", str(caught.value), re.MULTILINE)[1]
    assert fact.format(sha256=sha256) in cause
    assert Path("x-pip-install.log").is_file()


def test_killed_step_names_the_signal(tmp_path):
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(create_environment.SetupError, match="cause: ended by signal 9"):
        create_environment.run_step(create_environment.Step("x", "", command, ""), "2/6", tmp_path / "log")


def test_folder_that_is_no_environment_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(create_environment.SetupError, match="is no virtual environment"):
        create_environment.check_machine(tmp_path)


def run_python_range(version: tuple[int, ...]) -> subprocess.CompletedProcess[str]:
    code = f"import runpy, sys; sys.version_info = {version}; runpy.run_path('python_range.py', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], cwd=create_environment.HERE, capture_output=True, text=True)


def test_too_old_python_is_named_with_the_range():
    result = run_python_range((3, 9, 18))
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert {"3.9.18", "3.10", "3.13"} <= set(re.findall(r"3\.[\d.]*\d", result.stderr))
    assert run_python_range((3, 10, 0)).returncode == 0


def test_old_pythons_can_read_what_they_are_refused_by():
    source = (create_environment.HERE / "python_range.py").read_text()
    tree = ast.parse(source, feature_version=(3, 4))
    hints = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation]
    assert not hints and "__future__" not in source  # Python 2 has neither


def test_python_of_ones_own_choice_has_an_environment_of_its_own():
    def plan(*arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "TORCH")}
        command = ["make", "--dry-run", "--always-make", "test", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True).stdout

    ours = "{}.{}".format(*sys.version_info)
    assert " .venv/bin/python -m pytest" in plan()
    assert f" .venv-python{ours}/bin/python -m pytest" in plan(f"PYTHON={sys.executable}")
    both = plan(f"PYTHON={sys.executable}", "TORCH=2.7.1")
    assert f"{sys.executable} install/create_environment.py .venv-python{ours}-torch2.7.1 --torch 2.7.1" in both
    assert plan("PYTHON=no-such-python") == ""


def test_promised_pythons_are_the_same_everywhere(settings):
    tested = python_range.TESTED
    classifiers = [name.split(" :: ")[-1] for name in settings["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert tuple(classifiers) == tested and settings["python_requires"] == f">={tested[0]}"
    stated = re.findall(r"Python (3\.\d+) to (3\.\d+)", (REPOSITORY / "README.md").read_text())
    assert stated and set(stated) == {(tested[0], tested[-1])}
    oldest = re.search(r'^target-version = "py3(\d+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"3.{oldest[1]}" == tested[0]


def test_full_disk_is_refused_before_anything_is_installed(tmp_path, monkeypatch):
    usage = create_environment.shutil.disk_usage(tmp_path)._replace(free=2**30)
    monkeypatch.setattr(create_environment.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(create_environment.SetupError, match=r"1\.0 GiB are free in .*, about 8 are needed"):
        create_environment.check_machine(tmp_path / "new")


@pytest.mark.parametrize(("installed", "names"), [
    ("", ["detectron2", "panopticapi"]),
    ("detectron2==0.7.2+repacked", ["detectron2", "panopticapi"]),
    ("detectron2==0.6 numpy==2.4.6", ["panopticapi"]),
])  # fmt: skip
def test_official_detectron2_in_the_environment_is_kept(tmp_path, monkeypatch, installed, names):
    for name in ("detectron2-0.7.2+repacked", "panopticapi-0.1+repacked.lite.0.2.0"):
        (tmp_path / f"{name}-py3-none-any.whl").touch()
    answer = subprocess.CompletedProcess([], 0, stdout=installed)
    monkeypatch.setattr(create_environment.subprocess, "run", lambda *_, **__: answer)
    assert [path.name.split("-")[0] for path in create_environment.find_repacked(Path("python"), tmp_path)] == names


# --- setup.py and the package ---


@pytest.fixture
def settings(monkeypatch) -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: given.update(kwargs))
    monkeypatch.chdir(REPOSITORY)
    runpy.run_path("setup.py")
    return given


def test_setup_reads_the_version_of_the_package(settings):
    assert settings["version"] == maskformer.__version__


def test_setup_ships_every_module_and_category_table(settings):
    package = REPOSITORY / "maskformer"
    folders = {str(path.parent.relative_to(REPOSITORY)).replace(os.sep, ".") for path in package.rglob("*.py")}
    assert set(settings["packages"]) == folders
    shipped = {
        path
        for name, patterns in settings["package_data"].items()
        for pattern in patterns
        for path in (REPOSITORY / name.replace(".", "/")).glob(pattern)
    }
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".py"}
    others = {path for path in others if path.parent.name != "__pycache__"}
    assert shipped == others and shipped


def test_every_direct_requirement_has_a_tested_version(settings):
    pinned = {
        normalise(line)
        for line in (REPOSITORY / "install" / "constraints.txt").read_text().splitlines()
        if line[0] != "#"
    }
    extras = [requirement for group in settings["extras_require"].values() for requirement in group]
    required = {normalise(requirement) for requirement in (*settings["install_requires"], *extras)}
    assert required - pinned == {recipe.name for recipe in build_wheels.RECIPES}


def test_import_without_detectron2_says_in_one_sentence_how_to_install_it():
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "detectron2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import maskformer
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and result.stderr.count("Traceback") == 1
    assert last.startswith("ImportError: maskformer needs Detectron2, ")
    assert "make install_dev" in last and "https://github.com/facebookresearch/detectron2" in last


def test_public_names_are_there():
    assert all(getattr(maskformer, name).__name__ == name for name in maskformer.__all__)


def test_another_pytorch_comes_with_what_it_needs(tmp_path):
    lines = create_environment.write_constraints(tmp_path, "2.4.1").read_text().splitlines()
    assert {"torch==2.4.1", "torchvision==0.19.1", "transformers==4.57.6"} <= set(lines)
    names = [line.split("==")[0] for line in lines if ";" not in line]
    assert len(names) == len(set(names)), "a package is pinned twice"
    assert 'scipy==1.17.1; python_version >= "3.11"' in lines


def test_pinned_versions_are_ours_without_another_pytorch(tmp_path):
    assert create_environment.write_constraints(tmp_path, None) == create_environment.HERE / "constraints.txt"


def test_untried_pytorch_lists_the_tried_ones(tmp_path):
    with pytest.raises(create_environment.SetupError, match=r"TORCH is 1\.13, tried were 2\.7\.1, 2\.4\.1"):
        create_environment.write_constraints(tmp_path, "1.13")


def test_packages_are_installed_by_hash_where_there_are_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(create_environment, "has_hashes", lambda: True)
    commands, ours = create_environment.choose_packages(("pip", "install"), tmp_path, None)
    assert [command[-1].name for command in commands] == ["hashes-wheels.txt", "hashes-sources.txt"]
    assert all({"--require-hashes", "--no-deps"} <= set(command) for command in commands)
    assert "--no-deps" in ours and "--constraint" not in ours


@pytest.mark.parametrize(("has_hashes", "torch"), [(False, None), (True, "2.7.1")])
def test_packages_are_installed_by_version_elsewhere_and_it_is_said(tmp_path, monkeypatch, capsys, has_hashes, torch):
    monkeypatch.setattr(create_environment, "has_hashes", lambda: has_hashes)
    commands, ours = create_environment.choose_packages(("pip", "install"), tmp_path, torch)
    assert commands[0][-3:] == ("torch", "torchvision", "setuptools") and "--constraint" in ours
    assert "checked by version, not by SHA-256" in capsys.readouterr().out


@pytest.mark.parametrize("python", python_range.TESTED)
def test_every_package_is_pinned_by_version_and_content_for_every_python(python):
    def read(name: str) -> dict[str, tuple[str, list[str]]]:
        """Versions and SHA-256s by name, of the lines that are for this Python."""
        lines = [line for line in (create_environment.HERE / name).read_text().splitlines() if line[0] != "#"]
        split = [line.split(" --hash=sha256:") for line in lines]
        needed = [(Requirement(requirement), hashes) for requirement, *hashes in split]
        kept = [
            item for item in needed if item[0].marker is None or item[0].marker.evaluate({"python_version": python})
        ]
        found = {normalise(item.name): (str(item.specifier).removeprefix("=="), hashes) for item, hashes in kept}
        assert len(found) == len(kept), "a package is there twice"
        return found

    pinned = read("constraints.txt")
    hashed = {name: pin for file in create_environment.HASHES for name, pin in read(file).items()}
    unpinned = {name for name in hashed.keys() - pinned.keys() if not name.startswith("nvidia-")}
    assert unpinned == {"cuda-toolkit", "triton"}  # which, like nvidia's, torch pins
    different = {name for name in hashed.keys() & pinned.keys() if hashed[name][0] != pinned[name][0]}
    assert not different, "run install/pin_hashes.py"
    assert all(hashes and re.fullmatch("[0-9a-f]{64}", "".join(hashes[:1])) for _, hashes in hashed.values())
    assert pinned.keys() <= hashed.keys()


def test_hashes_come_from_the_reports_of_pip():
    pin_hashes = load_script("pin_hashes")

    def entry(name: str, version: str, ending: str, sha256: str) -> dict[str, Any]:
        archive = {"url": f"https://host/{name}{ending}", "archive_info": {"hashes": {"sha256": sha256}}}
        return {"metadata": {"name": name, "version": version}, "download_info": archive}

    ours = entry("detectron2", "1", ".whl", "ef")
    old = [entry("b", "1", ".whl", "b1"), entry("a", "1", ".tar.gz", "aa"), entry("C", "1", ".whl", "c1"), ours]
    new = [entry("b", "2", ".whl", "b2"), entry("a", "1", ".tar.gz", "aa"), entry("C", "1", ".whl", "c2"), ours]
    wheels, sources = pin_hashes.list_hashes({"3.1": old, "3.2": new}, {"detectron2"})
    assert wheels == [
        'b==1 ; python_version == "3.1" --hash=sha256:b1',
        'b==2 ; python_version == "3.2" --hash=sha256:b2',
        "C==1 --hash=sha256:c1 --hash=sha256:c2",
    ]
    assert sources == ["a==1 --hash=sha256:aa"]
    del old[0]["download_info"]["archive_info"]
    with pytest.raises(pin_hashes.build_wheels.BuildError, match=r"no SHA-256 of b 1 for Python 3\.1"):
        pin_hashes.list_hashes({"3.1": old}, {"detectron2"})
