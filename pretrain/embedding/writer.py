"""Vectors in files."""

import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import h5py

from pretrain.errors import ExportError

if TYPE_CHECKING:
    from pretrain.embedding.pooling import Vectors

log = logging.getLogger(__name__)

SPARE = 1 << 20
"""Bytes of the disk that are taken beyond the vectors, for what HDF5 adds to a file of a few texts."""
STEP = 1 << 20
"""Bytes of the disk that are taken at a time."""


class Hdf5Writer:
    """HDF5 as the field exchanges ELMo vectors (AllenNLP's `elmo` command), used as a context.

    One float32 dataset a text, named by its number from 0: (words, width) or (layers, words, width), of 0 words for a
    blank one. And `sentence_to_index`, of shape (1,): a JSON object from each text to that name (of equal texts, the
    last one's). The file has its name only once it is whole; while it is written it ends in `.partial`, and after an
    error or an interruption it stays so, whole but for the texts that are missing, and a warning says how many it has.

    Raises ExportError for a file that exists already or cannot be made, and where the disk is full.
    """

    suffixes = (".hdf5", ".h5")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        if path.exists():
            raise ExportError(f"{path} exists already: remove it, or write to another file")
        if self._partial.exists():
            raise ExportError(
                f"{self._partial} exists already, with what an unfinished start has written: "
                "move or remove it, or write to another file"
            )
        self.count = 0
        """How many texts were written."""
        self._index: dict[str, str] = {}
        self._index_size = 0
        self._taken = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._partial, "w")
        except OSError as error:
            raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error

    def write(self, text: str, vectors: "Vectors") -> None:
        """Adds the next text."""
        name = str(self.count)
        self._index_size += 12 * len(text) + len(name) + 8  # no character is longer in JSON
        self._take_space(vectors.size * 4)
        self._file.create_dataset(name, data=vectors, dtype="float32")
        self._index[text] = name
        self.count += 1

    def _take_space(self, size: int) -> None:
        """Takes the disk's space for `size` more bytes of vectors, and for all that closing the file will add.

        HDF5 must never meet a full disk: what it has written by then cannot be read, and it may crash.
        """
        names = 64 * self.count  # HDF5 doubles the heap that holds them
        needed = self._file.id.get_filesize() + size + names + self._index_size + SPARE
        if needed <= self._taken:
            return
        more = max(STEP, needed - self._taken)
        try:
            os.posix_fallocate(self._file.id.get_vfd_handle(), self._taken, more)
        except OSError as error:
            raise ExportError(f"{self._path} cannot be written: {error.strerror}") from error
        self._taken += more

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and str(self.count) in self._file:  # an interruption came before it was counted
            del self._file[str(self.count)]
        names = self._file.create_dataset("sentence_to_index", (1,), dtype=h5py.string_dtype(encoding="utf-8"))
        names[0] = json.dumps(self._index)
        self._file.flush()
        size = self._file.id.get_filesize()
        self._file.close()
        os.truncate(self._partial, size)  # what was taken of the disk and not used
        if kind is None:
            self._partial.replace(self._path)
        elif self.count:
            log.warning("%s keeps what was written: the vectors of the first %d texts", self._partial, self.count)
        else:
            self._partial.unlink()
