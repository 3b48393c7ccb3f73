"""A trained model out of a run folder, and its held-out loss; without Lightning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.config.run import RunConfig
from pretrain.data.store import Store
from pretrain.data.stream import PreparedSource, held_out_blocks, held_out_examples, held_out_sources
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.models import get_family
from pretrain.models.family import ExampleMaker, ModelFolder, Tokenizer
from pretrain.models.loss import Batch, Losses, measure_held_out
from pretrain.runtime.run_folder import RunFolder
from pretrain.runtime.seeding import seed_of
from pretrain.training import checkpoint
from pretrain.training.sentences import SentenceScorer

HELD_OUT_ROWS = 16
"""Rows that an ordered family cuts a held-out block into; fixed, so that no number depends on the batch."""
HELD_OUT_EXAMPLES = 32
"""Examples of a held-out batch in families that are not ordered."""


@dataclass(frozen=True)
class Trained:
    """What a run has learned up to a checkpoint."""

    config: RunConfig
    folder: ModelFolder
    step: int
    path: Path
    """The checkpoint."""


def read_trained(run: Path, which: str) -> Trained:
    """The model of a run's checkpoint: `best`, `newest`, or that of a step.

    Raises ConfigError for a folder that is no run folder, CheckpointError for a checkpoint that is missing or damaged.
    """
    run_folder = RunFolder(run)
    config = run_folder.read_config()
    path = choose_checkpoint(run_folder.checkpoints, which)
    tokenizer = load_tokenizer(config, Store(run_folder.prepared()))
    model = get_family(config.model.kind).training.build_model(
        config.model, config.objective, tokenizer.vocabulary_size
    )
    weights = checkpoint.read_weights(path)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])
    step = checkpoint.read_state(path).step
    return Trained(config, ModelFolder(model.eval(), tokenizer, config.model, config.objective), step, path)


def choose_checkpoint(folder: Path, which: str) -> Path:
    """The folder of a complete checkpoint; `best` is the newest one where nothing was held out."""
    best = folder / checkpoint.BEST
    if which == "newest" or (which == "best" and not best.exists()):
        newest = checkpoint.find_newest(folder)
        if newest is None:
            raise CheckpointError(f"{folder}: no checkpoint")
        return newest
    if which != "best" and not which.isdecimal():
        raise ConfigError(f"--checkpoint {which}: expected best, newest or the number of a step")
    path = best.resolve() if which == "best" else folder / checkpoint.checkpoint_name(int(which))
    if not path.exists():
        steps = ", ".join(str(int(p.name.removeprefix("step-"))) for p in sorted(folder.glob("step-*")))
        raise CheckpointError(f"{folder}: no checkpoint of step {which}; there are {steps or 'none'}")
    if (problem := checkpoint.incomplete(path)) is not None:
        raise CheckpointError(problem)
    return path


def load_tokenizer(config: RunConfig, store: Store) -> Tokenizer:
    """The tokenizer of a prepared corpus."""
    if store.read_manifest() is None:
        raise DataError(f"{store.url}: not prepared, or gone")
    tokenizer = get_family(config.model.kind).tokenizer.load(store.fetch_folder("tokenizer"))
    if tokenizer is None:
        raise DataError(f"{store.url}/tokenizer: no vocabulary")
    return tokenizer


def held_out_batches(
    model: Any,
    objective: Any,
    tokenizer: Tokenizer,
    sources: Sequence[PreparedSource],
    maker: ExampleMaker | None = None,
) -> Callable[[tuple[int, int]], list[Batch]]:
    """A function from a held-out block to its batches: windows of all its rows, or groups of its examples.

    `maker` is one of `HELD_OUT_ROWS` rows that makes them otherwise than training does.
    """
    family = get_family(model.kind).training
    rows, size = (HELD_OUT_ROWS, HELD_OUT_ROWS) if family.ordered else (1, HELD_OUT_EXAMPLES)
    maker = maker or family.build_examples(model, objective, tokenizer, rows)

    def batches_of(place: tuple[int, int]) -> list[Batch]:
        examples = held_out_examples(sources, place, maker)
        starts = range(0, len(examples), size)
        return [maker.collate(examples.take(start, min(start + size, len(examples)))) for start in starts]

    return batches_of


def evaluate_model(
    folder: ModelFolder,
    tokenizer: Tokenizer,
    sources: Sequence[PreparedSource],
    blocks: Sequence[tuple[int, int]],
    *,
    reset: bool = False,
    write: Callable[[dict[str, Any]], None] | None = None,
) -> Losses:
    """The loss of a model over held-out blocks, in this process.

    For families that predict every word: with `reset`, each sentence starts from zero state; and `write` is called with
    each sentence's log-probabilities (see `SentenceScorer`).
    """
    family = get_family(folder.config.kind).training
    objective = family.build_objective(folder.objective, tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = folder.model.to(device).eval()

    def step(batch: Batch, carried: Any) -> Any:
        with torch.no_grad():
            return objective(model, {name: tensor.to(device) for name, tensor in batch.items()}, carried, seed=0)

    if not reset and write is None:
        return measure_held_out(
            step, blocks, held_out_batches(folder.config, folder.objective, tokenizer, sources), device=device
        )
    assert family.build_sentences is not None
    maker = family.build_sentences(folder.config, folder.objective, tokenizer, HELD_OUT_ROWS, reset=reset)
    if write is None:
        return measure_held_out(
            step, blocks, held_out_batches(folder.config, folder.objective, tokenizer, sources, maker), device=device
        )
    scorer = SentenceScorer(maker, sources, HELD_OUT_ROWS, step, write)
    return measure_held_out(scorer.step, blocks, scorer.batches_of, device=device)


def build_untrained(config: RunConfig, store: Store) -> ModelFolder:
    """A freshly initialised model of a run's config and vocabulary."""
    tokenizer = load_tokenizer(config, store)
    return ModelFolder(build_initial_model(config, tokenizer), tokenizer, config.model, config.objective)


def build_initial_model(config: RunConfig, tokenizer: Tokenizer) -> torch.nn.Module:
    """A freshly initialised model: a pure function of the seed, the model's options and the vocabulary size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "weights"))
        build_model = get_family(config.model.kind).training.build_model
        return build_model(config.model, config.objective, tokenizer.vocabulary_size)


def tune(config: RunConfig, model: torch.nn.Module, device: torch.device) -> list[str]:
    """Settles how the model of a run is computed on a device; what the log should say. Raises ConfigError."""
    family = get_family(config.model.kind)
    if family.training.select_backends is None:
        return []
    dtype = torch.bfloat16 if config.precision == "bf16-mixed" else torch.float32
    return family.training.select_backends(model, config.compute, device, dtype, config.sharding.zero_stage)


def evaluate_run(folder: ModelFolder, store: Store) -> Losses:
    """The loss of a model over all the held-out text of a prepared corpus."""
    manifest = store.read_manifest()
    assert manifest is not None and folder.tokenizer is not None
    sources = held_out_sources(store, manifest)
    return evaluate_model(folder, folder.tokenizer, sources, held_out_blocks(sources, None))
