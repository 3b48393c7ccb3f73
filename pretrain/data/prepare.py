"""Preparing a corpus once: sources as Parquet shards of blocks, in random order, with a checksummed manifest.

prepared folder/
  manifest.json        written last: without it the folder is not prepared
  unfinished           there while the folder is being prepared; what it holds may be deleted
  tokenizer/           the vocabulary, as the family saves it
  unigrams.npy         int64 [2, vocabulary]: how often each id occurs in the training and in the held-out text
  train/<source>-00000.parquet …       a row group is a block, a row a document or a part of one
  held_out/<source>-00000.parquet …
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from pretrain.config.data import DataConfig, RecordSource, Source, TextSource
from pretrain.config.models import WordsConfig
from pretrain.config.run import RunConfig, flatten
from pretrain.data.documents import Document, SentenceEncoder, describe, read_documents, splits, training_sentences
from pretrain.data.shards import Shards, write_shards
from pretrain.data.sources import resolve_files
from pretrain.data.spool import Spool
from pretrain.data.store import Store
from pretrain.errors import ConfigError, DataError

log = logging.getLogger(__name__)

FORMAT = 2
COUNTS = ("documents", "sentences", "words", "unknown_words", "characters", "characters_left_out", "tokens")
DOCUMENTS_AT_A_TIME = 64


class TextFamily(Protocol):
    """The part of a family that preparing needs."""

    @property
    def tokenizer(self) -> Any:
        """`learn`: (texts, config) -> tokenizer; `load`: a saved tokenizer, or None."""

    @property
    def format(self) -> Any:
        """`recognises`: whether a folder looks like a model of this family."""


def identity(config: RunConfig) -> dict[str, Any]:
    """What decides the prepared data: not the seed, so that runs which differ by it share one folder."""
    data = config.data
    held_out = data.held_out if isinstance(data.held_out, float) else [s.fields for s in data.held_out_sources()]
    return {
        "format": FORMAT,
        "sources": {name: s.fields for name, s in zip(data.source_names(), data.sources, strict=True)},
        "held_out": held_out,
        "language": data.language,
        "block_tokens": data.block_tokens,
        "tokenizer": config.tokenizer.model_dump(mode="json", exclude={"vocabulary"}) | _vocabulary(config),
        "initialize_from": str(config.model.initialize_from) if config.model.initialize_from else None,
    }


def _vocabulary(config: RunConfig) -> dict[str, str]:
    """A hash of the file of words, wherever it lies; nothing where there is none."""
    words = config.tokenizer.vocabulary_bytes() if isinstance(config.tokenizer, WordsConfig) else None
    return {} if words is None else {"vocabulary": hashlib.blake2b(words, digest_size=8).hexdigest()}


def prepared_store(config: RunConfig) -> Store:
    """Where the prepared form of a run's corpus is, or will be."""
    if config.data.folder is not None:
        return Store(config.data.folder)
    name = hashlib.blake2b(json.dumps(identity(config), sort_keys=True).encode(), digest_size=6).hexdigest()
    return Store(str(config.run_root / "prepared" / name))


def ensure_prepared(config: RunConfig, family: TextFamily) -> Store:
    """The prepared corpus of a run, made now where it has not been; raises DataError or ConfigError."""
    store = prepared_store(config)
    with store.lock():
        manifest = store.read_manifest()
        if manifest is None:
            _prepare(config, family, store)
        else:
            check_prepared(config, store, manifest)
    return store


def check_prepared(config: RunConfig, store: Store, manifest: dict[str, Any]) -> None:
    """Refuses prepared data that was made from something else, or whose sources have changed since."""
    ours, theirs = flatten(json.loads(json.dumps(identity(config)))), flatten(manifest["identity"])
    wrong = [
        f"{store.url}: prepared with {key} {theirs.get(key)!r}, this run has {ours.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))
    for file, fingerprint in manifest["files"].items():
        now = _fingerprint(file)
        if now is not None and now != fingerprint:
            raise DataError(
                f"{file}: changed since {store.url} was prepared from it ({fingerprint}, now {now}): "
                "delete that folder to prepare it anew"
            )
    for file in _local_files(config):
        if file not in manifest["files"]:
            raise DataError(f"{file}: new since {store.url} was prepared: delete that folder to prepare it anew")
    store.check_sizes(manifest)


def _local_files(config: RunConfig) -> Iterator[str]:
    """The files of local paths and globs that are (still) there."""
    for source in (*config.data.sources, *config.data.held_out_sources()):
        if isinstance(source, TextSource | RecordSource):
            for pattern in (source.files,) if isinstance(source.files, str) else source.files:
                if "://" not in pattern:
                    with contextlib.suppress(DataError):  # a machine that has only the prepared data
                        yield from resolve_files(pattern)


def _fingerprint(file: str) -> str | None:
    """Size and a hash of both ends of a local file; None where it is not there (any more)."""
    path = Path(file)
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(1 << 20)
        stream.seek(max(0, size - (1 << 20)))
        ends = hashlib.blake2b(head + stream.read(), digest_size=8).hexdigest()
    return f"{size} bytes, {ends}"


def _files(config: RunConfig) -> dict[str, str]:
    """The local files of all sources, with their fingerprints."""
    files = [
        file
        for source in (*config.data.sources, *config.data.held_out_sources())
        if isinstance(source, TextSource | RecordSource)
        for file in resolve_files(source.files)
    ]
    return {file: fingerprint for file in files if (fingerprint := _fingerprint(file)) is not None}


def _prepare(config: RunConfig, family: TextFamily, store: Store) -> None:
    _check_start(config, family)
    files = _files(config)
    store.begin()
    tokenizer = _tokenizer(config, family)
    manifest = {"identity": identity(config), "files": files} | tokenise_corpus(config.data, tokenizer, store)
    held_out = manifest["held_out"]
    if held_out and not any(shards["counts"]["documents"] for shards in held_out):
        documents = sum(shards["counts"]["documents"] for shards in manifest["train"])
        raise DataError(f"data.held_out is {config.data.held_out}: none of {documents} documents; raise it, or give 0")
    tokenizer.save(store.local_folder("tokenizer"))
    store.upload_folder("tokenizer")
    store.write_manifest(manifest)
    for line in report(manifest):
        log.info(line)


def tokenise_corpus(data: DataConfig, tokenizer: SentenceEncoder, store: Store) -> dict[str, Any]:
    """Writes all sources as shards, and how often each id occurs; returns `train` and `held_out` of the manifest."""
    entries: dict[str, Any] = {}
    unigrams = np.zeros((2, tokenizer.vocabulary_size), dtype=np.int64)
    for row, (split, sources) in enumerate(splits(data).items()):
        entries[split] = [
            _tokenise_source(data, tokenizer, store, f"{split}/{name}", source, keep, unigrams[row])
            for name, source, keep in sources
        ]
    store.write_array("unigrams.npy", unigrams)
    return entries


def _check_start(config: RunConfig, family: TextFamily) -> None:
    """Refuses to start from what is no model of the run's family, before hours are spent on preparing."""
    start = config.model.initialize_from
    if start is None:
        return
    if not start.is_dir():
        raise ConfigError(f"model.initialize_from: {start}: no such folder")
    # the config.json of an early BERT does not say what it is
    if not family.format.recognises(start) and family.tokenizer.load(start) is None:
        raise ConfigError(f"model.initialize_from: {start}: holds no model of model.kind {config.model.kind}")


def _tokenizer(config: RunConfig, family: TextFamily) -> Any:
    """One with the given words, else that of the model that the run starts from, else one learned from the text."""
    start, given = config.model.initialize_from, _vocabulary(config)
    tokenizer = None if start is None or given else family.tokenizer.load(start)
    if tokenizer is not None:
        return tokenizer
    if not given:
        log.info("learning a vocabulary of at most %d", config.tokenizer.vocabulary_size)
    return family.tokenizer.learn(lambda: training_sentences(config.data), config.tokenizer)


def _tokenise_source(
    data: DataConfig,
    tokenizer: SentenceEncoder,
    store: Store,
    name: str,
    source: Source,
    keep: Callable[[str], bool],
    unigrams: np.ndarray[Any, np.dtype[np.int64]],
) -> dict[str, Any]:
    """One source of one split as shards; returns its entry in the manifest."""
    counts = dict.fromkeys(COUNTS, 0)
    with Spool(part_tokens=data.block_tokens // 4) as spool:
        documents = []
        read = read_documents(source, data.language, keep)
        progress = tqdm(read, f"prepare {name}", unit=" documents", leave=False, disable=None)  # None: no terminal
        for document in progress:
            documents.append(document)
            if len(documents) == DOCUMENTS_AT_A_TIME:
                _encode(documents, tokenizer, spool, counts, unigrams)
                documents = []
        _encode(documents, tokenizer, spool, counts, unigrams)
        if not counts["tokens"] and name.startswith("train/"):
            raise DataError(f"source {name.removeprefix('train/')} ({describe(source)}): no text in it")
        shards = write_shards(store, name, spool, data.block_tokens)
    return {"name": name.split("/", 1)[1], "counts": counts, "shards": shards}


def _encode(
    documents: list[Document],
    tokenizer: SentenceEncoder,
    spool: Spool,
    counts: dict[str, int],
    unigrams: np.ndarray[Any, np.dtype[np.int64]],
) -> None:
    """Tokenises several documents at a time and spools them."""
    if not documents:
        return
    encoded = tokenizer.encode([sentence for document in documents for sentence in document.sentences])
    start = 0
    for document in documents:
        stop = start + len(document.sentences)
        sentences = [piece for tokens in encoded.tokens[start:stop] for piece in _bounded(tokens, spool.part_tokens)]
        start = stop
        if sentences:
            spool.add(document.number, sentences)
            counts["documents"] += 1
            counts["sentences"] += len(sentences)
            if tokenizer.sentence_end is not None:
                unigrams[tokenizer.sentence_end] += len(sentences)
    counts["tokens"] += len(encoded.ids)
    for key in ("words", "unknown_words", "characters", "characters_left_out"):
        counts[key] += getattr(encoded, key)
    unigrams += np.bincount(encoded.ids, minlength=len(unigrams))


def _bounded(tokens: Any, most: int) -> Any:
    """A sentence in pieces of at most `most` tokens: a file without full stops is one sentence. None if empty."""
    return (tokens[start : start + most] for start in range(0, len(tokens), most))


def report(manifest: dict[str, Any]) -> list[str]:
    """What preparing found, a line per source: sizes, tokens per word, unknown words, characters left out."""
    lines = []
    for split in ("train", "held_out"):
        for entry in manifest[split]:
            c, shards = entry["counts"], Shards(entry["shards"])
            words, characters = max(c["words"], 1), max(c["characters"], 1)
            lines.append(
                f"{split} {entry['name']}: {c['documents']:,} documents, {c['sentences']:,} sentences, "
                f"{c['tokens']:,} tokens in {shards.blocks:,} blocks; {c['tokens'] / words:.3f} tokens per word, "
                f"{c['unknown_words'] / words:.2%} unknown words, "
                f"{c['characters_left_out'] / characters:.3%} characters left out"
            )
    return lines
