"""Datasets of HDF5 files."""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pretrain.errors import ExportError


def open_file(path: Path) -> h5py.File:
    """Opens a file for reading; raises ExportError where it is none."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ExportError(f"{path} is not an HDF5 file, or is cut short: {error}") from error


def find_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset, not yet read; raises ExportError where there is none."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise ExportError(f"{file.filename} has no dataset {name}")
    return found


def read_dataset(file: h5py.File, name: str) -> NDArray[np.float32]:
    """A dataset's values; raises ExportError where there is none."""
    return np.asarray(find_dataset(file, name), dtype=np.float32)
