"""The first of two passes that put documents in random order: parts of documents in buckets by hash, on disk."""

import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pretrain.runtime.seeding import seed_of

BUCKETS = 64

Sentences = Sequence[Sequence[int]] | Sequence[Sequence[str]]


class Part(NamedTuple):
    """A document, or a part of a long one."""

    number: int
    """The document's."""
    lengths: NDArray[np.int32]
    """Tokens of each sentence."""
    tokens: NDArray[np.int32] | list[str]
    """Ids, or words, of all sentences one after another."""


class ShuffleBuckets:
    """Takes documents in, gives parts of at most `part_tokens` tokens (or one sentence) back in a random order.

    The order is that of a hash of (document, part): a pure function of the corpus. Memory is one bucket's, a 64th of
    the source: 4 bytes per id, or 8 per word. Its files are in a folder in `scratch` (by
    default where the system keeps such), for as long as the `with` block lasts.
    """

    def __init__(self, part_tokens: int, scratch: Path | None = None) -> None:
        self.part_tokens = part_tokens
        self.tokens = 0
        self._scratch = scratch

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="buckets-", dir=self._scratch)
        self._files: dict[int, IO[bytes]] = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        self._folder.cleanup()

    def add(self, number: int, sentences: Sentences) -> None:
        """Adds a document, cut at sentence ends where it is long."""
        lengths = np.fromiter(map(len, sentences), np.int32)
        flat = [token for sentence in sentences for token in sentence]
        tokens = flat if isinstance(flat[0], str) else np.array(flat, np.int32)
        ends = np.cumsum(lengths, dtype=np.int64)
        first, start = 0, 0
        for part, stop in enumerate(self._cuts(lengths)):
            key = seed_of("document order", number, part)
            row = (key, number, part, lengths[first:stop], tokens[start : ends[stop - 1]])
            pickle.dump(row, self._bucket(key * BUCKETS >> 63), protocol=pickle.HIGHEST_PROTOCOL)
            first, start = stop, int(ends[stop - 1])
        self.tokens += start

    def _cuts(self, lengths: NDArray[np.int32]) -> Iterator[int]:
        """After which sentences a document is cut."""
        size = 0
        for sentence, length in enumerate(lengths.tolist()):
            if size and size + length > self.part_tokens:
                yield sentence
                size = 0
            size += length
        yield len(lengths)

    def _bucket(self, bucket: int) -> IO[bytes]:
        if bucket not in self._files:
            self._files[bucket] = (Path(self._folder.name) / str(bucket)).open("w+b")
        return self._files[bucket]

    def __iter__(self) -> Iterator[Part]:
        for bucket in sorted(self._files):
            file = self._files[bucket]
            file.seek(0)
            rows = []
            words: dict[str, str] = {}
            while True:
                try:
                    key, number, part, lengths, tokens = pickle.load(file)
                except EOFError:
                    break
                if isinstance(tokens, list):
                    tokens = [words.setdefault(word, word) for word in tokens]  # one object per distinct word
                rows.append((key, number, part, lengths, tokens))
            for _, number, _, lengths, tokens in sorted(rows, key=lambda row: row[:3]):
                yield Part(number, lengths, tokens)
