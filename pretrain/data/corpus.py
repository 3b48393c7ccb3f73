"""A prepared corpus, opened: its sources by name, its tokenizer, how often each id occurs, and what exactly it is."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pretrain.config.data import DataConfig
from pretrain.data.blocks import Block
from pretrain.data.shards import Shards, read_block
from pretrain.data.store import Store
from pretrain.errors import DataError

FORMAT = 3
"""Of a prepared folder."""
UNKNOWN_WORDS = 0.1
"""Above this share of unknown words, a source or its vocabulary is the wrong one."""

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


@dataclass(frozen=True)
class PreparedSource:
    """One source of a prepared corpus."""

    name: str
    store: Store
    shards: Shards
    weight: float = 1.0
    """Its part of the training tokens, relative to the other sources'."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Documents, sentences, words, unknown_words, characters, characters_left_out and tokens."""

    def block(self, number: int) -> Block:
        """One of its blocks."""
        return read_block(self.store, self.shards, number)

    @property
    def unknown_words(self) -> float:
        """The fraction of its words that the vocabulary does not hold."""
        return self.counts["unknown_words"] / max(self.counts["words"], 1)

    def figures(self, split: Split) -> str:
        """What preparing found, in a line: sizes, tokens per word, unknown words, characters left out."""
        c = self.counts
        return (
            f"{split} {self.name}: {c['documents']:,} documents, {c['sentences']:,} sentences, "
            f"{c['tokens']:,} tokens in {self.shards.blocks:,} blocks; "
            f"{c['tokens'] / max(c['words'], 1):.3f} tokens per word, {self.unknown_words:.2%} unknown words, "
            f"{c['characters_left_out'] / max(c['characters'], 1):.3%} characters left out"
        )


@dataclass(frozen=True)
class PreparedCorpus:
    """What a run trains on and is evaluated on."""

    store: Store
    """Its files."""
    url: str
    """Where it is: a path or URL."""
    identity: str
    """16 hex digits: equal for equal text, blocks and vocabulary, wherever and with whatever they were written."""
    training: tuple[PreparedSource, ...]
    """The sources to train on, in the order of their names."""
    held_out: tuple[PreparedSource, ...]
    """The sources that are never trained on, in the order of their names."""

    @property
    def absolute(self) -> str:
        """The path or URL, whatever the working directory."""
        return Store(self.url).absolute

    def unigrams(self, split: Split) -> NDArray[np.int64]:
        """How often each id occurs in a split, [vocabulary]."""
        counts: NDArray[np.int64] = self.store.read_array("unigrams.npy")[SPLITS.index(split)]
        return counts

    def fetch_tokenizer(self) -> Path:
        """A local folder with the tokenizer's files, as the family saved them."""
        return self.store.fetch_folder("tokenizer")

    def report(self) -> list[str]:
        """What preparing found, a line per source."""
        parts: tuple[tuple[Split, tuple[PreparedSource, ...]], ...]
        parts = (("train", self.training), ("held_out", self.held_out))
        return [source.figures(split) for split, sources in parts for source in sources]

    def warnings(self) -> list[str]:
        """What is likely to be a mistake, a line each; empty where nothing is."""
        layout = [(source.name, problem) for source in self.training if (problem := _layout_problem(source.counts))]
        unknown = [
            (
                source.name,
                f"{source.unknown_words:.1%} of its words are not in the vocabulary: a model learns little of them; a "
                "larger vocabulary or one of this text has fewer",
            )
            for source in (*self.training, *self.held_out)
            if source.unknown_words > UNKNOWN_WORDS
        ]
        return [f"source {name}: {problem}" for name, problem in (*layout, *unknown)]


def _layout_problem(counts: Mapping[str, int]) -> str | None:
    """What makes pairs of sentences worthless; None where nothing does."""
    if counts["documents"] == 1:
        return (
            "a single document: there is no other to draw random next sentences from, so that next-sentence prediction "
            "learns nothing (objective.next_sentence=false leaves it out); an empty line ends a document"
        )
    if counts["documents"] == counts["sentences"]:
        return (
            f"each of its {counts['documents']:,} documents is one sentence: no sentence has a next one to learn from"
        )
    return None


def source_weights(data: DataConfig) -> dict[str, float]:
    """The weight of each source to train on, by name."""
    return {name: source.weight for name, source in zip(data.source_names(), data.sources, strict=True)}


def open_corpus(url: str, weights: Mapping[str, float]) -> PreparedCorpus:
    """The prepared corpus at a path or URL, with the weights of its sources by name (see `source_weights`).

    Raises DataError where it is not prepared, gone, damaged, or of other sources.
    """
    corpus = read_corpus(Store(url), weights)
    if corpus is None:
        raise DataError(f"{url}: not prepared, or no longer there")
    return corpus


def read_corpus(store: Store, weights: Mapping[str, float]) -> PreparedCorpus | None:
    """As `open_corpus`; None where it is not prepared."""
    manifest = store.read_manifest()
    return None if manifest is None else build_corpus(store, manifest, weights)


def build_corpus(store: Store, manifest: Mapping[str, Any], weights: Mapping[str, float]) -> PreparedCorpus:
    """The corpus that a manifest describes."""
    if (found := manifest.get("format")) != FORMAT:
        raise DataError(
            f"{store.url}: prepared by another version of pretrain (format {found}, this one reads {FORMAT}): "
            "delete that folder to prepare it anew"
        )
    names = [entry["name"] for entry in manifest["train"]]
    if sorted(names) != sorted(weights):
        raise DataError(f"{store.url}: holds the sources {_listed(names)}; this run has {_listed(weights)}")
    files = store.subfolder(manifest["folder"])
    return PreparedCorpus(
        store=files,
        url=store.url,
        identity=manifest["identity"],
        training=_sources(files, manifest["train"], weights),
        held_out=_sources(files, manifest["held_out"], {}),
    )


def _sources(store: Store, entries: list[dict[str, Any]], weights: Mapping[str, float]) -> tuple[PreparedSource, ...]:
    """By name, so that the order in which a config lists its sources decides nothing."""
    return tuple(
        PreparedSource(name, store, Shards(entry["shards"]), weights.get(name, 1.0), entry["counts"])
        for name, entry in sorted((entry["name"], entry) for entry in entries)
    )


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))


def identify(manifest: Mapping[str, Any], tokenizer: str) -> str:
    """The identity of what a manifest describes, given a hash of the tokenizer's files."""
    contents = [
        sorted((entry["name"], [shard["content"] for shard in entry["shards"]]) for entry in manifest[split])
        for split in SPLITS
    ]
    return hashlib.blake2b(json.dumps([tokenizer, contents]).encode(), digest_size=8).hexdigest()
