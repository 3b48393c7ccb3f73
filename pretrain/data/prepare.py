"""Preparing a corpus once: sources as Parquet shards of blocks, in random order, with a checksummed manifest.

prepared folder/
  manifest.json        without it the folder is not prepared
  tokenizer/           the vocabulary, as the family saves it
  unigrams.npy         int64 [2, vocabulary]: how often each id occurs in the training and in the held-out text
  train/<source>-00000.parquet …       a row group is a block, a row a document or a part of one
  held_out/<source>-00000.parquet …

On an object store all but the manifest lie in a folder of their own, which the manifest names.
"""

import contextlib
import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pretrain.config.data import DataConfig, Source
from pretrain.config.run import RunConfig, flatten
from pretrain.data.corpus import (
    FORMAT,
    PreparedCorpus,
    build_corpus,
    identify,
    source_weights,
)
from pretrain.data.documents import Document, SentenceEncoder, describe, read_documents, splits
from pretrain.data.fingerprints import changed_since, check_files, fingerprints
from pretrain.data.shards import write_shards
from pretrain.data.shuffle_buckets import ShuffleBuckets
from pretrain.data.sources import Skipped, describe_skipped
from pretrain.data.store import Preparation, Store
from pretrain.data.survey import survey
from pretrain.data.tokenizer import (
    TextFamily,
    check_folder,
    check_start,
    make_tokenizer,
    settle_tokenizer,
    vocabulary_hash,
)
from pretrain.errors import ConfigError, DataError

log = logging.getLogger(__name__)

COUNTS = ("documents", "sentences", "words", "unknown_words", "characters", "characters_left_out", "tokens")
DOCUMENTS_AT_A_TIME = 64


def prepared_options(config: RunConfig) -> dict[str, Any]:
    """What decides the prepared data: not the seed, so that runs which differ by it share one folder."""
    data = config.data
    held_out: Any = data.held_out
    if not isinstance(held_out, float):
        held_out = {name: s.fields for name, s in zip(data.held_out_names(), data.held_out_sources(), strict=True)}
    return {
        "sources": {name: s.fields for name, s in zip(data.source_names(), data.sources, strict=True)},
        "held_out": held_out,
        "language": data.language,
        "block_tokens": data.block_tokens,
        "tokenizer": config.tokenizer.model_dump(mode="json", exclude={"vocabulary"}) | vocabulary_hash(config),
        "initialize_from": str(config.model.initialize_from) if config.model.initialize_from else None,
    }


def prepared_url(config: RunConfig) -> str:
    """Where the prepared form of a run's corpus is, or will be: a path or URL."""
    if config.data.folder is not None:
        return config.data.folder
    text = json.dumps([FORMAT, prepared_options(config)], sort_keys=True)
    return str(config.run_root / "prepared" / hashlib.blake2b(text.encode(), digest_size=6).hexdigest())


def check_inputs(config: RunConfig) -> None:
    """Raises ConfigError or DataError where what a run starts from is not there: before anything heavy is imported.

    That is its local files, unless its corpus is prepared, and the model of `model.initialize_from`.
    """
    check_folder(config)
    if config.model.initialize_from is not None:
        return  # that model's tokenizer decides where the prepared corpus is
    if Store(prepared_url(config)).read_manifest() is None:
        check_files(config.data)


def find_prepared(config: RunConfig) -> PreparedCorpus | None:
    """The prepared corpus of a run; None where it has not been prepared. Reads only, and waits for nobody.

    Raises ConfigError where the folder was prepared with other options, DataError where its sources have changed since
    or it is damaged.
    """
    store = Store(prepared_url(config))
    manifest = store.read_manifest()
    if manifest is None:
        return None
    if manifest.get("format") == FORMAT:
        _check_options(store.url, prepared_options(config), manifest["options"])
    corpus = build_corpus(store, manifest, source_weights(config.data))
    if (change := changed_since(config.data, manifest["files"])) is not None:
        raise DataError(
            f"{change} since {store.url} was prepared from it: restore it, or prepare it anew for new runs by deleting "
            "that folder; runs that have begun go on with the same text only"
        )
    entries = (*manifest["train"], *manifest["held_out"])
    corpus.store.check_sizes({shard["file"]: shard["bytes"] for entry in entries for shard in entry["shards"]})
    return corpus


def _check_options(url: str, asked: dict[str, Any], had: dict[str, Any]) -> None:
    ours, theirs = flatten(json.loads(json.dumps(asked))), flatten(had)
    wrong = [
        f"{url}: prepared with {key} {theirs.get(key)!r}, this run has {ours.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))


def ensure_prepared(
    config: RunConfig, family: TextFamily, *, log_report: bool = True, log_warnings: bool = True
) -> PreparedCorpus:
    """The prepared corpus of a run, made now where it has not been; raises DataError or ConfigError.

    What is likely to be a mistake is logged as warnings; what preparing found, only where it was not there before.
    """
    corpus = find_prepared(config)
    if corpus is None:
        check_start(config, family)
        settle_tokenizer(config, family)  # raises where they contradict each other
        store = Store(prepared_url(config))
        with store.lock():
            corpus = find_prepared(config) or _prepare(config, family, store)
        for line in corpus.report() if log_report else ():
            log.info("%s", line)
    for line in corpus.warnings() if log_warnings else ():
        log.warning("%s", line)
    return corpus


def _prepare(config: RunConfig, family: TextFamily, store: Store) -> PreparedCorpus:
    survey(config.data)
    with Preparation(store) as preparation:
        files = fingerprints(config.data)
        tokenizer = make_tokenizer(config, family)
        manifest = write_corpus(config.data, tokenizer, preparation.files, preparation.scratch)
        manifest |= {"options": prepared_options(config), "files": files}
        _check_predictable(config.data, manifest)
        if not preparation.publish(manifest):
            log.info("%s: another process has prepared it in the meantime", store.url)
    corpus = find_prepared(config)
    if corpus is None:
        raise DataError(f"{store.url}: filled by another process while it was being prepared")
    return corpus


def _check_predictable(data: DataConfig, manifest: dict[str, Any]) -> None:
    """Refuses text that leaves nothing to learn, or nothing to measure."""
    for entry in manifest["train"]:
        counts = entry["counts"]
        if counts["unknown_words"] == counts["words"]:
            raise DataError(
                f"source {entry['name']}: all of its {counts['words']:,} words are unknown to the vocabulary, which "
                "leaves nothing to predict: is it text with spaces between words, and is the vocabulary of this text?"
            )
    held_out = manifest["held_out"]
    if held_out and not any(entry["counts"]["documents"] for entry in held_out):
        documents = sum(entry["counts"]["documents"] for entry in manifest["train"])
        raise DataError(
            f"data.held_out is {data.held_out}: none of {documents} documents; raise it, give sources of its own, or 0"
        )


@contextlib.contextmanager
def prepare_temporarily(data: DataConfig, tokenizer: SentenceEncoder) -> Iterator[PreparedCorpus]:
    """The text of `data` prepared with a tokenizer that is there, in a folder that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="pretrain-corpus-") as folder:
        store = Store(folder)
        manifest = write_corpus(data, tokenizer, store, Path(folder)) | {"folder": ""}
        yield build_corpus(store, manifest, source_weights(data))


def write_corpus(data: DataConfig, tokenizer: Any, store: Store, scratch: Path) -> dict[str, Any]:
    """Writes all sources as shards, the tokenizer, and how often each id occurs; returns what is known of them."""
    manifest: dict[str, Any] = {"format": FORMAT}
    unigrams = np.zeros((2, tokenizer.vocabulary_size), dtype=np.int64)
    for row, (split, sources) in enumerate(splits(data).items()):
        manifest[split] = [
            _write_source(data, tokenizer, store, scratch, f"{split}/{name}", source, keep, unigrams[row])
            for name, source, keep in sources
        ]
    store.write_array("unigrams.npy", unigrams)
    return manifest | {"identity": identify(manifest, store.write_folder("tokenizer", tokenizer.save))}


def _write_source(
    data: DataConfig,
    tokenizer: SentenceEncoder,
    store: Store,
    scratch: Path,
    name: str,
    source: Source,
    keep: Callable[[str], bool],
    unigrams: np.ndarray[Any, np.dtype[np.int64]],
) -> dict[str, Any]:
    """One source of one split as shards; returns its entry in the manifest."""
    counts = dict.fromkeys(COUNTS, 0)
    skipped: Skipped = Counter()
    with ShuffleBuckets(data.block_tokens // 4, scratch) as buckets:
        documents = []
        read = read_documents(source, data.language, keep, skipped)
        progress = tqdm(read, f"prepare {name}", unit=" documents", leave=False, disable=None)  # None: no terminal
        for document in progress:
            documents.append(document)
            if len(documents) == DOCUMENTS_AT_A_TIME:
                _encode(documents, tokenizer, buckets, counts, unigrams)
                documents = []
        _encode(documents, tokenizer, buckets, counts, unigrams)
        if not counts["tokens"] and name.startswith("train/"):
            raise DataError(f"source {name.removeprefix('train/')} ({describe(source)}): no text in it")
        if skipped and name.startswith("train/"):  # held-out text is read from the same records
            log.warning("source %s: passed over %s", name.removeprefix("train/"), describe_skipped(skipped))
        shards = write_shards(store, name, buckets, data.block_tokens)
    return {"name": name.split("/", 1)[1], "counts": counts, "shards": shards}


def _encode(
    documents: list[Document],
    tokenizer: SentenceEncoder,
    buckets: ShuffleBuckets,
    counts: dict[str, int],
    unigrams: np.ndarray[Any, np.dtype[np.int64]],
) -> None:
    """Tokenises several documents at a time and shuffles them into buckets."""
    if not documents:
        return
    encoded = tokenizer.encode([sentence for document in documents for sentence in document.sentences])
    start = 0
    for document in documents:
        stop = start + len(document.sentences)
        sentences = [piece for tokens in encoded.tokens[start:stop] for piece in _bounded(tokens, buckets.part_tokens)]
        start = stop
        if sentences:
            buckets.add(document.number, sentences)
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
