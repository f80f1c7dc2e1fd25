"""COCO-Stuff 10k, version 1.0: labels out of MATLAB files."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
from scipy.io import loadmat, matlab

from maskformer.files import unfinished
from maskformer.structures import InputError

from .files import Job, find_files, pair_files, read_list, write_image

NUM_CLASSES = 171
IGNORED = 255
UNLABELLED = 1  # in the MATLAB files; class 0 is 2


def find_stuff(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Find the images of a split ("train" or "test", listed in ``imageLists``) and their MATLAB files.

    Raises:
        InputError: a file is missing, see ``pair_files``; or a listed image is.
    """
    labels = folder / "annotations"
    pairs = pair_files(find_files(folder / "images", "*.jpg"), find_files(labels, "*.mat"), f"labels in {labels}")
    pair_of_name = {image.stem: (image, label) for image, label in pairs}
    names = read_list(folder / "imageLists" / f"{split}.txt")
    missing = [name for name in names if name not in pair_of_name]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} images of {split}.txt are not in {folder / 'images'}, first {missing[0]}: "
            "unpack the dataset again (datasets/README.md)."
        )
    return [pair_of_name[name] for name in names]


def prepare_stuff(job: Job) -> None:
    """Write one image and its label: sources JPEG and ``.mat``, targets JPEG and PNG."""
    (image_file, label_file), (image_target, label_target) = job.sources, job.targets
    label_map = shift_labels(read_matlab(label_file), label_file)
    with unfinished(image_target) as temporary:
        shutil.copyfile(image_file, temporary)
    write_image(label_map, label_target)


def shift_labels(label_map: np.ndarray, file: Path) -> np.ndarray:
    """Shift 1 (no label), 2..172 to 255, 0..170; (H,W) integers to (H,W) uint8.

    Raises:
        InputError: there is another value; it names the file.
    """
    lowest, highest = int(label_map.min()), int(label_map.max())
    if lowest < UNLABELLED or highest > NUM_CLASSES + UNLABELLED:
        raise InputError(
            f"{file} holds {lowest}..{highest}; expected {UNLABELLED}..{NUM_CLASSES + UNLABELLED}: take version 1.0 of "
            "COCO-Stuff 10k, whose classes are numbered without gaps."
        )
    shifted = label_map.astype(np.int32) - UNLABELLED - 1
    return np.where(shifted < 0, IGNORED, shifted).astype(np.uint8)


def read_matlab(file: Path) -> np.ndarray:
    """Read the variable ``S`` of a MATLAB file, of version 5 or 7.3 (HDF5): (H,W) integers.

    Raises:
        InputError: the file has no such variable or cannot be read, or it needs a package that is not there.
    """
    try:
        return loadmat(file, variable_names=["S"])["S"]
    except NotImplementedError:  # SciPy's word for version 7.3
        return _read_hdf5(file)
    except (OSError, ValueError, KeyError, matlab.MatReadError) as error:
        raise _unreadable(file, error) from error


def _read_hdf5(file: Path) -> np.ndarray:
    if importlib.util.find_spec("h5py") is None:
        raise InputError(f"{file} is a MATLAB 7.3 file, which needs the package h5py: pip install h5py")
    import h5py

    try:
        with h5py.File(file, "r") as content:
            return content["S"][()].T  # MATLAB stores columns first
    except (OSError, KeyError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} cannot be read ({error}); expected a MATLAB file with the label map S: unpack it again.")
