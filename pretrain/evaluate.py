"""`pretrain evaluate`: held-out loss and perplexity of a run or of a model folder."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pretrain.config.data import DataConfig
from pretrain.data.corpus import PreparedCorpus, PreparedSource
from pretrain.data.prepare import prepare_temporarily
from pretrain.errors import ConfigError, DataError, ExportError
from pretrain.models import get_family
from pretrain.models.family import Tokenizer
from pretrain.models.loss import Losses, exp
from pretrain.runs.held_out import evaluate_model
from pretrain.runs.trained import is_run, read_model, read_trained

States = Literal["carried", "reset"]
SAID: dict[States, str] = {
    "carried": "carried from sentence to sentence, from zero at the start of each row of a block",
    "reset": "reset, so that every sentence starts from zero",
}
Counts = np.ndarray[Any, np.dtype[np.int64]]

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


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text; losses in nats per prediction."""

    what: str
    losses: Losses
    unigram_loss: float | None
    """What a unigram model of the training text would have scored on the same tokens; None without a run."""
    states: States | None = None
    """Whether states went on from sentence to sentence; None for models that carry none."""

    def values(self) -> dict[str, Any]:
        """All numbers by name, as `metrics.jsonl` spells them."""
        losses = self.losses
        values: dict[str, Any] = {"what": self.what, "loss": losses.loss, "perplexity": losses.perplexity}
        values |= losses.metrics
        values |= {f"{name}_perplexity": perplexity for name, perplexity in losses.perplexities.items()}
        if len(losses.perplexities) > 1:
            values |= {
                "perplexity_arithmetic": losses.perplexity_arithmetic,
                "perplexity_geometric": losses.perplexity,
            }
        values |= {f"{name}_predictions": count for name, count in losses.counts.items()}
        return values | {"unigram_loss": self.unigram_loss, "states": self.states}

    def lines(self) -> list[str]:
        """One readable line per number."""
        losses = self.losses
        lines = [f"{self.what}"]
        for name, loss in losses.terms.items():
            shown = f", perplexity {exp(loss):,.2f}" if losses.predicts_tokens[name] else ""
            if name in losses.accuracies:
                shown += f", accuracy {losses.accuracies[name]:.2%}"
            if name in losses.majorities:
                shown += f" (the more frequent class: {losses.majorities[name]:.2%})"
            lines.append(f"{name}: loss {loss:.4f}{shown} over {losses.counts[name]:,} predictions")
        lines.append(f"loss {losses.loss:.4f}, perplexity {losses.perplexity:,.2f}")
        if len(losses.perplexities) > 1:
            names = " and ".join(losses.perplexities)
            lines[-1] += f" (geometric mean of {names}; arithmetic mean {losses.perplexity_arithmetic:,.2f})"
        if self.states is not None:
            lines.append(f"states: {SAID[self.states]}")
        if self.unigram_loss is not None:
            lines.append(f"unigram baseline: loss {self.unigram_loss:.4f}, perplexity {exp(self.unigram_loss):,.2f}")
        return lines


def evaluate(
    target: Path,
    data: Sequence[str] = (),
    checkpoint: str = "best",
    lines: str = "paragraph",
    *,
    language: str = "en",
    states: States | None = None,
    per_sentence: Path | None = None,
) -> Evaluation:
    """The loss of a run's checkpoint, or of a model folder, on a run's held-out text or on the files of `data`.

    `lines` and `language` are as in a config's `data`, for the files of `data`.
    Of a model that carries states, they are `carried` through each row of a block (the default), or `reset` before each
    sentence. `per_sentence` is a file to make, for a JSON line of log-probabilities per sentence (`SentenceScorer`).
    Raises ConfigError (also for an option that the model's family has no use for), CheckpointError, DataError or
    ExportError.
    """
    if is_run(target):
        trained = read_trained(target, checkpoint)
        folder, what = trained.folder, f"{target}, step {trained.step}"
        corpus = None if data else trained.open_corpus()
    else:
        folder, what, corpus = *read_model(target), None
    if folder.tokenizer is None:
        raise ExportError(f"{target}: no vocabulary, which a loss needs")
    if not data and corpus is None:
        raise ConfigError(f"{target}: a model folder has no held-out text of its own: give --data")
    if get_family(folder.config.kind).training.build_sentences is None:
        _refuse(what, folder.config.kind, {"--states": states, "--per-sentence": per_sentence})
    else:
        states = states or "carried"
    text = (
        _text_of_files(folder.tokenizer, sources_of_files(data, lines, language))
        if data
        else _held_out_text(corpus, what)
    )
    with _json_lines(per_sentence) as write, text as (sources, counts):
        losses = evaluate_model(folder, sources, reset=states == "reset", write=write)
    what = f"{what}, on {', '.join(data)}" if data else what
    return Evaluation(what, losses, baseline(corpus, counts) if corpus else None, states)


def _refuse(what: str, kind: str, options: dict[str, Any]) -> None:
    """Raises ConfigError for an option given that needs a model of continuous text."""
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option} {value}: {what}, is a {kind}, which does not predict every word in turn")


@contextmanager
def _held_out_text(corpus: PreparedCorpus | None, what: str) -> Iterator[tuple[Sequence[PreparedSource], Counts]]:
    """What a run holds out, and how often each id occurs in it."""
    assert corpus is not None
    if not corpus.held_out:
        raise DataError(f"{what}: nothing is held out (data.held_out is 0): give --data")
    yield corpus.held_out, corpus.unigrams("held_out")


@contextmanager
def _text_of_files(tokenizer: Tokenizer, config: DataConfig) -> Iterator[tuple[Sequence[PreparedSource], Counts]]:
    """The text of sources, prepared in a temporary folder, and how often each id occurs in it."""
    with prepare_temporarily(config, tokenizer) as corpus:
        yield corpus.training, corpus.unigrams("train")


def sources_of_files(files: Sequence[str], lines: str = "paragraph", language: str = "en") -> DataConfig:
    """Files as sources, their kinds told by their names; raises ConfigError for a name that tells none."""
    sources: list[dict[str, Any]] = []
    for file in files:
        kind = next((KINDS[suffix] for suffix in reversed(Path(file).suffixes) if suffix in KINDS), None)
        if kind is None:
            raise ConfigError(f"--data {file}: unknown kind of file: expected {', '.join(KINDS)}, or those with .gz")
        sources.append({"kind": kind, "files": file} | ({} if kind == "conllu" else {"lines": lines}))
    return DataConfig.model_validate({"sources": sources, "held_out": 0.0, "language": language})


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


def baseline(corpus: PreparedCorpus, counts: Counts) -> float:
    """Nats per token of tokens counted as `counts` [vocabulary], under add-one unigrams of the run's training text."""
    trained = corpus.unigrams("train").astype(np.float64) + 1
    losses = np.log(trained.sum()) - np.log(trained)
    return float((counts * losses).sum() / max(counts.sum(), 1))
