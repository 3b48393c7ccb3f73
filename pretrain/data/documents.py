"""Documents: texts as sentences, told apart by number and by hash."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pretrain.config.data import DataConfig, Source
from pretrain.config.languages import splitter_language
from pretrain.data.sources import Skipped, read_source
from pretrain.data.text import clean, split_lines, split_paragraphs
from pretrain.errors import DataError


@dataclass(frozen=True)
class Document:
    """One text as sentences; `number` counts the source's documents from 0."""

    number: int
    sentences: list[str]


@dataclass(frozen=True)
class Encoded:
    """Sentences as tokens, and what was lost on the way."""

    tokens: list[list[int]] | list[list[str]]
    """Per sentence: vocabulary ids, or words."""
    ids: NDArray[np.int64]
    """The vocabulary ids of all tokens, in order: what a unigram model would count."""
    words: int
    """Words of the text."""
    unknown_words: int
    """Words, of those, that the vocabulary does not hold."""
    characters: int
    """Characters of the text that are not white space."""
    characters_left_out: int
    """Characters, of those, that no token of the model can see."""


class SentenceEncoder(Protocol):
    """The part of a tokenizer that preparing needs."""

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""

    @property
    def sentence_end(self) -> int | None:
        """The id predicted at the end of every sentence, where there is one."""

    def encode(self, sentences: Sequence[str]) -> Encoded:
        """Sentences as tokens."""


def read_documents(
    source: Source, language: str, keep: Callable[[str], bool], skipped: Skipped | None = None
) -> Iterator[Document]:
    """The documents of a source whose text `keep` accepts, empty ones left out.

    Records without text have no number; they and the empty ones are counted in `skipped`.
    """
    split = sentence_splitter(language)
    for number, text in enumerate(read_source(source, skipped)):
        if keep(text):
            sentences = split(text, source.lines)
            if sentences:
                yield Document(number, sentences)


def sentence_splitter(language: str) -> Callable[[str, str], list[str]]:
    """A function (text, what a line is) -> sentences, none of them empty.

    White space within a sentence becomes a space: `sentencex` panics on an initial before a no-break space.
    """
    from sentencex import segment

    code = splitter_language(language)

    def split(text: str, lines: str) -> list[str]:
        parts = split_lines(text)
        if lines == "wrapped":
            parts = [" ".join(paragraph) for paragraph in split_paragraphs(parts)]
        parts = [clean(part) for part in parts]
        if lines != "sentence":
            parts = [sentence for part in parts for sentence in segment(code, part)]
        return [stripped for part in parts if (stripped := part.strip())]

    return split


def held_out_hash(text: str) -> float:
    """A document's place in the order in which documents are held out, at least 0 and less than 1."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out share: by a hash of its text, so that duplicates stay together."""
    return held_out_hash(text) < share


def splits(data: DataConfig) -> dict[str, list[tuple[str, Source, Callable[[str], bool]]]]:
    """For `train` and `held_out`: (name, source, which of its texts belong there), in the order of names."""
    sources = _by_name(data.source_names(), data.sources)
    if isinstance(data.held_out, float):
        share = data.held_out
        return {
            "train": [(name, source, lambda text: not is_held_out(text, share)) for name, source in sources],
            "held_out": [(name, source, lambda text: is_held_out(text, share)) for name, source in sources if share],
        }
    held_out = _by_name(data.held_out_names(), data.held_out_sources())
    return {
        "train": [(name, source, _all) for name, source in sources],
        "held_out": [(name, source, _all) for name, source in held_out],
    }


def _by_name(names: Sequence[str], sources: Sequence[Source]) -> list[tuple[str, Source]]:
    """So that the order in which a config lists its sources decides nothing."""
    return sorted(zip(names, sources, strict=True), key=lambda named: named[0])


def _all(text: str) -> bool:
    return True


def training_sentences(data: DataConfig) -> Iterator[str]:
    """Every sentence that is trained on, for learning a vocabulary."""
    for name, source, keep in splits(data)["train"]:
        empty = True
        for document in read_documents(source, data.language, keep):
            empty = False
            yield from document.sentences
        if empty:
            raise DataError(f"source {name} ({describe(source)}): no text to train on")


def describe(source: Source) -> str:
    """A source in a few words, for messages."""
    values: dict[str, Any] = source.fields
    what = values.get("files") or values.get("dataset") or source.kind
    return ", ".join(what) if isinstance(what, list) else str(what)
