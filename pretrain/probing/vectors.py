"""The vectors of all words of some sentences, in all layers: computed once, and kept in a file."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.embedding.embedder import Embedder
from pretrain.embedding.texts import cleaned
from pretrain.probing.subjects import Subject

TEXTS = 256
"""Texts that are encoded at a time."""
WHOLE_TEXTS = 64
"""Texts that are encoded at a time where they may be long."""


@dataclass(frozen=True)
class WordVectors:
    """Vectors of the words of sentences, one after another."""

    layers: NDArray[np.float32]
    """[layers, words, width], in a file: read a part of it at a time."""
    starts: NDArray[np.int64]
    """[sentences + 1]: the first word of each sentence, and the number of words."""


def word_vectors(subject: Subject, sentences: Sequence[Sequence[str]], folder: Path) -> WordVectors:
    """The vectors of `sentences`, each a list of words; from `folder`, where they were made before.

    Their file is named after the model, its tokenizer and the text, so that nothing else is ever taken for them.
    """
    starts = np.concatenate([[0], np.cumsum([len(sentence) for sentence in sentences])]).astype(np.int64)
    path = folder / f"{_key(subject, sentences)}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = _partial(path)
        _write(subject.embedder, sentences, starts, partial)
        partial.replace(path)
    return WordVectors(np.load(path, mmap_mode="r"), starts)


def sentence_vectors(subject: Subject, sentences: Sequence[Sequence[str]], folder: Path) -> NDArray[np.float32]:
    """The mean of the vectors of each sentence's words, in all layers: [layers, sentences, width], in a file.

    A sentence without words has zeros. The vectors of its words are not kept.
    """
    path = folder / f"{_key(subject, sentences)}-means.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        embedder, partial = subject.embedder, _partial(path)
        shape = (embedder.num_layers, len(sentences), embedder.width)
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        for first in range(0, len(sentences), WHOLE_TEXTS):
            some = [list(sentence) for sentence in sentences[first : first + WHOLE_TEXTS]]
            encoded = embedder.encode(some, layers="all", is_split_into_words=True, long="split")
            for number, vectors in enumerate(encoded, first):
                array[:, number] = vectors.sum(axis=1) / max(1, vectors.shape[1])
        array.flush()
        partial.replace(path)
    means: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return means


def _write(embedder: Embedder, sentences: Sequence[Sequence[str]], starts: NDArray[np.int64], path: Path) -> None:
    shape = (embedder.num_layers, int(starts[-1]), embedder.width)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, len(sentences), TEXTS):
        some = [list(sentence) for sentence in sentences[first : first + TEXTS]]
        encoded = embedder.encode(some, layers="all", is_split_into_words=True, long="split")
        for number, vectors in enumerate(encoded, first):
            array[:, starts[number] : starts[number + 1]] = vectors
    array.flush()


def standardised(training: NDArray[np.float32], testing: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Vectors of both parts, [words, width], so that those of the training part have mean 0 and variance 1.

    A dimension that is constant there is 0.
    """
    mean = training.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = training - mean
    deviation = np.sqrt(np.square(centred).mean(axis=0, dtype=np.float64))
    varies = deviation > 1e-6 * np.abs(mean)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0).astype(np.float32)
    return torch.from_numpy(centred * scale), torch.from_numpy((testing - mean) * scale)


def _partial(path: Path) -> Path:
    """Of this process alone: another may be making the same vectors."""
    return path.with_name(f"{path.stem}.{os.getpid()}.partial")


def _key(subject: Subject, sentences: Sequence[Sequence[str]]) -> str:
    """32 hex digits of the encoder, what texts start from, and the text, as words and as the pieces that are read."""
    embedder = subject.embedder
    digest = hashlib.blake2b(f"{subject.folder.config!r} {embedder.max_length}".encode(), digest_size=16)
    encoder: nn.Module = subject.folder.model.get_submodule("encoder")
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    if subject.start_state is not None:
        digest.update(subject.start_state.cpu().numpy().tobytes())
    for sentence in sentences:
        digest.update("\x1f".join([*sentence, "\x1e"]).encode("utf-8", "surrogatepass"))
        pieces = embedder.tokenizer.pieces(cleaned(list(sentence)))
        digest.update(repr((pieces.tokens, pieces.word_of.tolist())).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
