"""`pretrain evaluate`: held-out loss and perplexity of a run or of a model folder, or of several side by side."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from pretrain.config.data import DataConfig
from pretrain.config.problems import describe_problems
from pretrain.data.corpus import PreparedCorpus, PreparedSource
from pretrain.data.prepare import prepare_temporarily
from pretrain.data.stream import held_out_blocks
from pretrain.errors import CheckpointError, ConfigError, DataError, ExportError, PretrainError
from pretrain.models import find_family, get_family
from pretrain.models.family import ModelFolder, Tokenizer
from pretrain.models.loss import Losses
from pretrain.models.start_state import Start, StartState, choose_start
from pretrain.runs.evaluation import Comparison, Evaluation, StateLosses, States
from pretrain.runs.held_out import Counts, evaluate_model, unigram_loss
from pretrain.runs.start_states import with_start_state
from pretrain.runs.trained import Trained, is_run, read_model, read_trained

log = logging.getLogger(__name__)

KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".conllu": "conllu",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""What the ending of a file's name says about it."""

BLOCKS_BOTH_WAYS = 2
"""The most blocks that are read both with states carried and sentence by sentence."""


@dataclass(frozen=True)
class _Text:
    """What is evaluated on."""

    sources: Sequence[PreparedSource]
    counts: Counts
    """How often each id occurs in it, [vocabulary]."""

    @property
    def unknown_words(self) -> float:
        """The fraction of its words that the vocabulary does not hold."""
        unknown, words = (sum(source.counts[key] for source in self.sources) for key in ("unknown_words", "words"))
        return unknown / max(words, 1)

    @property
    def identity(self) -> str:
        """16 hex digits, equal for the same text in the same tokens."""
        contents = [source.shards.contents for source in self.sources]
        return hashlib.blake2b(json.dumps(contents).encode() + self.counts.tobytes(), digest_size=8).hexdigest()


def evaluate(
    target: Path,
    data: Sequence[str] = (),
    checkpoint: str = "best",
    lines: str = "paragraph",
    *,
    language: str | None = None,
    states: States | None = None,
    start: Start = "auto",
    per_sentence: Path | None = None,
) -> Evaluation:
    """The loss of a run's checkpoint, or of a model folder, on a run's held-out text or on the files of `data`.

    `lines` and `language` are as in a config's `data`, for the files of `data`; by default the language is that of the
    text that the model was trained on. Of a model that carries states, they are `carried` through each row of a block
    (the default), or `reset` before each sentence; rows or sentences start from what `start` says, as `Embedder.load`
    has it. Where `states` is left open, the first blocks are also read in both ways. `per_sentence` is a file to make,
    for a JSON line of log-probabilities per sentence (`SentenceScorer`).
    Raises ConfigError (also for an option that the model's family has no use for), CheckpointError, DataError or
    ExportError.
    """
    _check(target, data, language)
    if checkpoint != "best" and not is_run(target):
        raise ConfigError(f"{target}: not a run folder, so that there is no checkpoint {checkpoint} to choose")
    if is_run(target):
        trained = read_trained(target, checkpoint)
        folder, what = trained.folder, f"{target}, step {trained.step}"
    else:
        trained, (folder, what) = None, read_model(target)
    if folder.tokenizer is None:
        raise ExportError(f"{target}: no vocabulary, which a loss needs")
    family = get_family(folder.config.kind)
    carries = family.training.build_sentences is not None
    both_ways = carries and states is None and per_sentence is None
    if carries:
        states = states or "carried"
    else:
        _refuse(what, folder.config.kind, {"--states": states, "--per-sentence": per_sentence})
    if data:
        sources = sources_of_files(data, lines, language or _language_of(folder, what, lines))
        opened, frequencies = _text_of_files(folder.tokenizer, sources), _frequencies_if_there(trained)
    else:
        assert trained is not None
        corpus = _open_corpus(trained)
        opened, frequencies = _held_out_text(corpus, what), corpus.unigrams("train")
    if trained is not None and start != "zero":
        folder = with_start_state(trained)
    state = choose_start(folder, family.make_start_state, start, what)
    with _json_lines(per_sentence) as write, opened as text:
        losses = evaluate_model(folder, text.sources, reset=states == "reset", start=state, write=write)
        by_states = _by_states(folder, text.sources, state, losses) if both_ways else None
    return Evaluation(
        what,
        losses,
        None if frequencies is None else unigram_loss(frequencies, text.counts),
        states,
        state is not None,
        by_states,
        tuple(data),
        text.identity,
        text.unknown_words,
        () if trained is None else trained.config.advice,
    )


def _by_states(
    folder: ModelFolder, sources: Sequence[PreparedSource], start: Tensor | None, carried: Losses
) -> StateLosses:
    """The losses of the first blocks in both ways; `carried` are those of all blocks with states carried.

    Where texts start from zero, and nobody has looked yet, also from the primed state.
    """
    limit = min(BLOCKS_BOTH_WAYS, len(held_out_blocks(sources)))
    if limit < len(held_out_blocks(sources)):
        carried = evaluate_model(folder, sources, start=start, limit=limit)
    reset = evaluate_model(folder, sources, reset=True, start=start, limit=limit)
    primed = None
    if start is None and folder.start_state is None:  # else it is known which is better
        with suppress(ExportError):  # there is nothing to make it of
            state = _make(folder).state
            primed = evaluate_model(folder, sources, reset=True, start=state, limit=limit).token_loss
    return StateLosses(carried.token_loss, reset.token_loss, limit, primed)


def _make(folder: ModelFolder) -> StartState:
    make = get_family(folder.config.kind).make_start_state
    assert make is not None
    return make(folder)


def compare(
    targets: Sequence[Path],
    data: Sequence[str] = (),
    checkpoint: str = "best",
    lines: str = "paragraph",
    *,
    language: str | None = None,
    states: States | None = None,
    start: Start = "auto",
) -> Comparison:
    """Several runs or model folders, each evaluated as `evaluate` does: on its own held-out text, or all on `data`."""
    for target in targets:
        _check(target, data, language)
    if checkpoint != "best" and not any(map(is_run, targets)):
        raise ConfigError(f"--checkpoint {checkpoint}: none of what is evaluated is a run folder")
    return Comparison(
        tuple(
            evaluate(
                target,
                data,
                checkpoint if is_run(target) else "best",
                lines,
                language=language,
                states=states,
                start=start,
            )
            for target in targets
        )
    )


def _check(target: Path, data: Sequence[str], language: str | None) -> None:
    """Raises what is wrong with the arguments, as far as that is known before anything is read."""
    if language is not None and not data:
        raise ConfigError(f"--language {language}: for the files of --data; held-out text was cut as its run says")
    if is_run(target):
        return
    try:
        find_family(target)
    except ExportError as error:
        no_run = "; nor is it a run folder: no config.yaml" if target.is_dir() else ""
        raise ExportError(f"{error}{no_run}") from None
    if not data:
        raise ConfigError(f"{target}: a model folder has no held-out text of its own: give --data")


def _open_corpus(trained: Trained) -> PreparedCorpus:
    try:
        return trained.open_corpus()
    except (DataError, CheckpointError) as error:
        raise DataError(f"{error}; give other text with --data") from None


def _frequencies_if_there(trained: Trained | None) -> Counts | None:
    """How often each id occurs in a run's training text; None, with a warning, where that is gone."""
    if trained is None:
        return None
    try:
        return trained.open_corpus().unigrams("train")
    except (PretrainError, OSError, ImportError) as error:  # it may be on a server
        log.warning("%s: no unigram baseline, since the run's prepared text is not there: %s", trained.run.path, error)
        return None


def _language_of(folder: ModelFolder, what: str, lines: str) -> str:
    """The language of a model's text; English, with a warning, where that is not known."""
    if folder.language is None and lines != "sentence":
        log.warning("%s: it does not say its language: paragraphs are cut into sentences as English (--language)", what)
    return folder.language or "en"


def _refuse(what: str, kind: str, options: dict[str, Any]) -> None:
    """Raises ConfigError for an option given that needs a model of continuous text."""
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option} {value}: {what} is a {kind}, which does not predict every word in turn")


@contextmanager
def _held_out_text(corpus: PreparedCorpus, what: str) -> Iterator[_Text]:
    """What a run holds out."""
    if not corpus.held_out:
        raise DataError(f"{what}: nothing is held out (data.held_out is 0): give --data")
    _log_warnings(corpus)
    yield _Text(corpus.held_out, corpus.unigrams("held_out"))


@contextmanager
def _text_of_files(tokenizer: Tokenizer, config: DataConfig) -> Iterator[_Text]:
    """The text of sources, prepared in a temporary folder."""
    with prepare_temporarily(config, tokenizer) as corpus:
        _log_warnings(corpus)
        yield _Text(corpus.training, corpus.unigrams("train"))


def _log_warnings(corpus: PreparedCorpus) -> None:
    for line in corpus.warnings():
        log.warning("%s", line)


def sources_of_files(files: Sequence[str], lines: str = "paragraph", language: str = "en") -> DataConfig:
    """Files as sources, their kinds inferred from their names; raises ConfigError where a name implies none."""
    sources: list[dict[str, Any]] = []
    for file in files:
        kind = next((KINDS[suffix] for suffix in reversed(Path(file).suffixes) if suffix in KINDS), None)
        if kind is None:
            raise ConfigError(f"--data {file}: unknown kind of file: expected {', '.join(KINDS)}, or those with .gz")
        sources.append({"kind": kind, "files": file} | ({} if kind == "conllu" else {"lines": lines}))
    values = {"sources": sources, "held_out": 0.0, "language": language}
    try:
        return DataConfig.model_validate(values)
    except ValidationError as error:
        problems = describe_problems(values, error.errors(), ())
        raise ConfigError("\n".join(f"--data: {line}" for line in problems)) from None


@contextmanager
def _json_lines(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """What writes a line of JSON to a new file, which has its name only once it is whole; None without a path."""
    if path is None:
        yield None
        return
    if path.exists():
        raise ConfigError(f"--per-sentence {path}: exists already: remove it, or write to another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield lambda value: print(json.dumps(value, ensure_ascii=False), file=file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
