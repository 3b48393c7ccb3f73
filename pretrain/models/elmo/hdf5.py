"""Datasets of HDF5 files, which may come from anyone.

HDF5 lets a dataset lie in any other file of the reader's (external storage, virtual datasets, links), and declare a
size that nothing is stored of. Such are refused before they are read.
"""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pretrain.errors import ExportError
from pretrain.models.published_files import identify

_MOST_COMPRESSED = 1100
"""Times that stored bytes can grow when they are read: deflate's limit is 1,032."""


_LINKS = {h5py.h5l.TYPE_HARD: "hard", h5py.h5l.TYPE_SOFT: "soft", h5py.h5l.TYPE_EXTERNAL: "external"}


def open_file(path: Path) -> h5py.File:
    """Opens a file for reading; raises ExportError where it is none."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        what = (identify(path) if path.is_file() else None) or f"not an HDF5 file, or is cut short: {error}"
        raise ExportError(f"{path} is {what}") from error


def holds(file: h5py.File, name: str) -> bool:
    """Whether the file itself holds something of that name; raises ExportError where a link is on the way to it."""
    group = file
    for part in name.split("/"):
        if not isinstance(group, h5py.Group) or not group.id.links.exists(part.encode()):
            return False
        kind = _LINKS.get(group.id.links.get_info(part.encode()).type, "foreign")
        if kind != "hard":
            raise ExportError(f"{file.filename}: {name} is reached by a link ({kind}: {part}), which is not followed")
        group = group[part]
    return True


def find_dataset(file: h5py.File, name: str, shape: tuple[int, ...] | None = None) -> h5py.Dataset:
    """A dataset of floats, stored in the file itself, and not yet read.

    Raises ExportError where there is none, where it is of another `shape` (if given), or lies elsewhere.
    """
    found = file[name] if holds(file, name) else None
    if not isinstance(found, h5py.Dataset):
        raise ExportError(f"{file.filename} has no dataset {name}")
    where = f"{file.filename}: {name}"
    if found.external or found.is_virtual:
        raise ExportError(f"{where} lies in other files (external or virtual), which are not read")
    if found.shape is None or found.dtype.kind != "f":
        raise ExportError(f"{where} holds no floating-point numbers ({found.dtype})")
    if shape is not None and found.shape != shape:
        raise ExportError(f"{where} is {found.shape}, the options ask for {shape}")
    most = found.id.get_storage_size() * (1 if found.chunks is None else _MOST_COMPRESSED)
    if found.nbytes > most:
        raise ExportError(f"{where} is {found.shape}, more values than are stored of it: the file is damaged or false")
    return found


def read_dataset(dataset: h5py.Dataset) -> NDArray[np.float32]:
    """Its values; raises ExportError where they are damaged."""
    try:
        return np.asarray(dataset, dtype=np.float32)
    except OSError as error:
        raise ExportError(f"{dataset.file.filename}: {dataset.name} cannot be read: {error}") from error
