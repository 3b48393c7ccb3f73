"""Vectors in files."""

import json
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py

from pretrain.embedding.pooling import Vectors
from pretrain.errors import ExportError


class Hdf5Writer:
    """HDF5 as the field exchanges ELMo vectors (AllenNLP's `elmo` command), used as a context.

    One float32 dataset a text, named by its number from 0: (words, width) or (layers, words, width), of 0 words for a
    blank one. And `sentence_to_index`, of shape (1,): a JSON object from each text to that name (of equal texts, the
    last one's). The file has its name only once it is whole; while it is written it ends in `.partial`.
    Raises ExportError for a file that exists already or cannot be made.
    """

    suffixes = (".hdf5", ".h5")

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise ExportError(f"{path} exists already: remove it, or write to another file")
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._index: dict[str, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._partial, "w")
        except OSError as error:
            raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error

    def write(self, text: str, vectors: Vectors) -> None:
        """Adds the next text."""
        name = str(len(self._file))
        self._file.create_dataset(name, data=vectors, dtype="float32")
        self._index[text] = name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            names = self._file.create_dataset("sentence_to_index", (1,), dtype=h5py.string_dtype(encoding="utf-8"))
            names[0] = json.dumps(self._index)
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()
