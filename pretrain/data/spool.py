"""The first of two passes that put documents in random order: parts of documents in buckets by hash, on disk."""

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

from pretrain.runtime.seeding import seed_of

BUCKETS = 64


class Part(NamedTuple):
    """A document, or a part of a long one."""

    number: int
    part: int
    sentences: list[list[int]] | list[list[str]]

    @property
    def tokens(self) -> int:
        """Tokens of all sentences."""
        return sum(map(len, self.sentences))


class Spool:
    """Takes documents in, gives parts of at most about `part_tokens` tokens back in a random order.

    The order is that of a hash of (document, part): a pure function of the corpus. Memory is one bucket's.
    """

    def __init__(self, part_tokens: int) -> None:
        self.part_tokens = part_tokens
        self.tokens = 0

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="pretrain-spool-")
        self._files: dict[int, IO[bytes]] = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        self._folder.cleanup()

    def add(self, number: int, sentences: list[list[int]] | list[list[str]]) -> None:
        """Adds a document, cut at sentence ends where it is long."""
        for part, piece in enumerate(self._cut(sentences)):
            key = seed_of("document order", number, part)
            bucket = key * BUCKETS >> 63
            if bucket not in self._files:
                self._files[bucket] = (Path(self._folder.name) / str(bucket)).open("w+b")
            pickle.dump((key, number, part, piece), self._files[bucket], protocol=pickle.HIGHEST_PROTOCOL)
            self.tokens += sum(map(len, piece))

    def _cut(self, sentences: list[list[int]] | list[list[str]]) -> Iterator[list[list[int]] | list[list[str]]]:
        piece: list[list[int]] | list[list[str]] = []
        size = 0
        for sentence in sentences:
            if piece and size + len(sentence) > self.part_tokens:
                yield piece
                piece, size = [], 0
            piece.append(sentence)  # type: ignore[arg-type]  # ids with ids, words with words
            size += len(sentence)
        yield piece

    def __iter__(self) -> Iterator[Part]:
        for bucket in sorted(self._files):
            file = self._files[bucket]
            file.seek(0)
            rows = []
            while True:
                try:
                    rows.append(pickle.load(file))
                except EOFError:
                    break
            for _, number, part, sentences in sorted(rows, key=lambda row: row[:3]):
                yield Part(number, part, sentences)
