"""`pretrain evaluate`: held-out loss and perplexity of a run or of a model folder."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.data import DataConfig
from pretrain.data.prepare import tokenise_corpus
from pretrain.data.store import Store
from pretrain.data.stream import PreparedSource, held_out_blocks, held_out_sources, training_sources
from pretrain.errors import ConfigError, DataError, ExportError
from pretrain.models import FAMILIES, get_family
from pretrain.models.family import ModelFolder, Tokenizer
from pretrain.models.loss import Losses, exp
from pretrain.runtime.run_folder import RunFolder
from pretrain.training.trained import evaluate_model, read_trained

KINDS = {".txt": "text", ".text": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text; losses in nats per prediction."""

    what: str
    losses: Losses
    unigram_loss: float | None
    """What a unigram model of the training text would have scored on the same tokens; None without a run."""

    def values(self) -> dict[str, Any]:
        """All numbers by name, as `metrics.jsonl` spells them."""
        losses = self.losses
        values: dict[str, Any] = {"what": self.what, "loss": losses.loss, "perplexity": losses.perplexity}
        values |= {f"{name}_loss": loss for name, loss in losses.terms.items()}
        values |= {f"{name}_predictions": count for name, count in losses.counts.items()}
        return values | {"unigram_loss": self.unigram_loss}

    def lines(self) -> list[str]:
        """One readable line per number."""
        losses = self.losses
        lines = [f"{self.what}"]
        for name, loss in losses.terms.items():
            shown = f", perplexity {exp(loss):,.2f}" if losses.predicts_tokens[name] else ""
            lines.append(f"{name}: loss {loss:.4f}{shown} over {losses.counts[name]:,} predictions")
        lines.append(f"loss {losses.loss:.4f}, perplexity {losses.perplexity:,.2f}")
        if self.unigram_loss is not None:
            lines.append(f"unigram baseline: loss {self.unigram_loss:.4f}, perplexity {exp(self.unigram_loss):,.2f}")
        return lines


def evaluate(target: Path, data: Sequence[str] = (), checkpoint: str = "best", lines: str = "paragraph") -> Evaluation:
    """The loss of a run's checkpoint, or of a model folder, on a run's held-out text or on the files of `data`.

    States start at zero in every piece of a block. Raises ConfigError, CheckpointError, DataError or ExportError.
    """
    if RunFolder(target).config_file.is_file():
        trained = read_trained(target, checkpoint)
        folder, what = trained.folder, f"{target}, step {trained.step}"
        store = Store(RunFolder(target).prepared())
    else:
        folder, what, store = read_model(target), str(target), None
    if folder.tokenizer is None:
        raise ExportError(f"{target}: no vocabulary, which a loss needs")
    if data:
        return _on_files(folder, folder.tokenizer, store, list(data), lines, what)
    if store is None:
        raise ConfigError(f"{target}: a model folder has no held-out text of its own: give --data")
    manifest = store.read_manifest()
    assert manifest is not None  # the tokenizer was read from it
    sources = held_out_sources(store, manifest)
    return _evaluation(folder, folder.tokenizer, sources, what, baseline(store, store.read_array("unigrams.npy")[1]))


def read_model(target: Path) -> ModelFolder:
    """A model folder of any family, heads and all."""
    if not target.is_dir():
        raise ConfigError(f"{target}: no such folder")
    for kind in FAMILIES:
        family = get_family(kind)
        if family.recognises(target):
            return family.read(target)
    raise ConfigError(f"{target}: neither a run folder nor a model folder")


def _on_files(
    folder: ModelFolder, tokenizer: Tokenizer, store: Store | None, files: list[str], lines: str, what: str
) -> Evaluation:
    sources: list[dict[str, Any]] = []
    for file in files:
        kind = next((KINDS[suffix] for suffix in Path(file).suffixes if suffix in KINDS), None)
        if kind is None:
            raise ConfigError(f"--data {file}: unknown kind of file: expected {', '.join(KINDS)}, or those with .gz")
        sources.append({"kind": kind, "files": file, "lines": lines})
    config = DataConfig.model_validate({"sources": sources, "held_out": 0.0})
    with tempfile.TemporaryDirectory(prefix="pretrain-evaluate-") as scratch:
        ours = Store(scratch)
        manifest = tokenise_corpus(config, tokenizer, ours)
        prepared = training_sources(ours, manifest, [1.0] * len(sources))
        counts = ours.read_array("unigrams.npy")[0]
        unigram = baseline(store, counts) if store else None
        return _evaluation(folder, tokenizer, prepared, f"{what}, on {', '.join(files)}", unigram)


def _evaluation(
    folder: ModelFolder, tokenizer: Tokenizer, sources: list[PreparedSource], what: str, unigram: float | None
) -> Evaluation:
    blocks = held_out_blocks(sources, None)
    if not blocks:
        raise DataError(f"{what}: nothing is held out (data.held_out is 0): give --data")
    return Evaluation(what, evaluate_model(folder, tokenizer, sources, blocks), unigram)


def baseline(store: Store, counts: np.ndarray[Any, Any]) -> float:
    """Nats per token of tokens counted as `counts` [vocabulary], under add-one unigrams of the run's training text."""
    trained = store.read_array("unigrams.npy")[0].astype(np.float64) + 1
    losses = np.log(trained.sum()) - np.log(trained)
    return float((counts * losses).sum() / max(counts.sum(), 1))
