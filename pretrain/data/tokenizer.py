"""The tokenizer of a run: of given words, of the model that the run starts from, or learned from its text."""

import hashlib
import logging
from pathlib import Path
from typing import Any, Protocol

from pretrain.config.models import WordsConfig
from pretrain.config.run import RunConfig
from pretrain.data.documents import training_sentences
from pretrain.errors import ConfigError

log = logging.getLogger(__name__)


class TextFamily(Protocol):
    """The part of a family that preparing needs."""

    @property
    def tokenizer(self) -> Any:
        """`learn`: (texts, config) -> tokenizer; `load`: a saved tokenizer, or None."""

    @property
    def format(self) -> Any:
        """`recognises`: whether a folder looks like a model of this family."""


def vocabulary_hash(config: RunConfig) -> dict[str, str]:
    """A hash of the file of words, wherever it lies; nothing where there is none."""
    words = config.tokenizer.vocabulary_bytes() if isinstance(config.tokenizer, WordsConfig) else None
    return {} if words is None else {"vocabulary": hashlib.blake2b(words, digest_size=8).hexdigest()}


def settle_tokenizer(config: RunConfig, family: TextFamily) -> RunConfig:
    """The run with the tokenizer options that hold: of a model that it starts from, those of that model.

    Raises ConfigError where the model is none of the run's family, or where options that were given say otherwise than
    its vocabulary, whose text was cut in its own way.
    """
    start, ours = config.model.initialize_from, config.tokenizer
    if start is None or not start.is_dir():
        return config
    tokenizer = _continued_tokenizer(config, family)
    if tokenizer is None:
        return config
    theirs: dict[str, Any] = dict(tokenizer.options)
    wrong = [
        f"tokenizer.{key} is {getattr(ours, key)!r}, and {value!r} in the model that the run starts from "
        f"(model.initialize_from: {start}), whose vocabulary it takes over: leave it out, or give {value!r}"
        for key, value in theirs.items()
        if key in ours.model_fields_set and getattr(ours, key) != value
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))
    theirs["vocabulary_size"] = max(ours.vocabulary_size, tokenizer.vocabulary_size)  # the most; nothing is learned
    return config.model_copy(update={"tokenizer": ours.model_copy(update=theirs)})


def _continued_tokenizer(config: RunConfig, family: TextFamily) -> Any:
    """That of the model that a run starts from; None where it starts from none, or is given words of its own."""
    start = config.model.initialize_from
    if start is None or vocabulary_hash(config):
        return None
    return family.tokenizer.load(tokenizer_folder(start))


def tokenizer_folder(start: Path) -> Path:
    """Where a model to start from has its tokenizer: a run has it in a folder of its own."""
    return start / "tokenizer" if (start / "config.yaml").is_file() else start


def check_folder(config: RunConfig) -> None:
    """Raises ConfigError where what a run starts from is not there."""
    start = config.model.initialize_from
    if start is not None and not start.is_dir():
        where = "" if start.is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"model.initialize_from: {start}: no such folder{where}")


def check_start(config: RunConfig, family: TextFamily) -> None:
    """Refuses to start from what is no model of the run's family, before hours are spent on preparing."""
    start = config.model.initialize_from
    if start is None:
        return
    check_folder(config)
    # the config.json of an early BERT does not say what it is
    if not family.format.recognises(start) and family.tokenizer.load(tokenizer_folder(start)) is None:
        raise ConfigError(
            f"model.initialize_from: {start}: holds no model of model.kind {config.model.kind}, and is no run of one"
        )


def make_tokenizer(config: RunConfig, family: TextFamily) -> Any:
    """One with the given words, else that of the model that the run starts from, else one learned from the text."""
    tokenizer = _continued_tokenizer(config, family)
    if tokenizer is not None:
        return tokenizer
    if not vocabulary_hash(config):
        log.info("learning a vocabulary of at most %d", config.tokenizer.vocabulary_size)
    return family.tokenizer.learn(lambda: training_sentences(config.data), config.tokenizer)
