"""`pretrain train`: pretrains or resumes a run, and makes first what is missing."""

import logging
import sys
import time
from pathlib import Path

from pretrain.config.load import dump_config
from pretrain.config.models import WordsConfig
from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared, identity, prepared_store
from pretrain.data.store import Store
from pretrain.errors import ConfigError
from pretrain.models import get_family
from pretrain.runtime.distributed import World, end_with_launcher, only_rank, spawn_ranks, world
from pretrain.runtime.run_folder import RunFolder
from pretrain.training.checkpoint import find_newest, read_state
from pretrain.training.trained import load_tokenizer

log = logging.getLogger(__name__)


def train(config: RunConfig, stop_after: int | None = None) -> Path:
    """Trains `config` to its last step, or `stop_after` steps on, and returns the run folder.

    A folder that holds a checkpoint is resumed. In a process started by torchrun this is one rank; else the ranks are
    started here. Raises PretrainError for a user's mistake, found before ranks start; SystemExit where a rank failed.
    """
    launched = world()
    ranks = launched.size if launched else local_ranks(config)
    check_ranks(config, ranks, launched)
    folder = RunFolder(config.folder)
    folder.check(config)
    if finished(config, folder):
        log.info("%s is at its last step, %d: nothing to do", folder.path, config.schedule.total_steps)
        return folder.path
    if launched:
        end_with_launcher()
        train_rank(config, launched, stop_after)
        return folder.path
    ready_corpus(config, folder)
    if ranks == 1:
        with only_rank() as alone:
            train_rank(config, alone, stop_after)
        return folder.path
    code = spawn_ranks(rank_command(config, stop_after), ranks)
    if code:
        raise SystemExit(code)
    return folder.path


def local_ranks(config: RunConfig) -> int:
    """Processes to start on this host."""
    if config.sharding.ranks != "auto":
        return config.sharding.ranks
    return max(1, count_gpus())


def count_gpus() -> int:
    """CUDA devices of this host."""
    import torch

    return torch.cuda.device_count()


def check_ranks(config: RunConfig, ranks: int, launched: World | None) -> None:
    """Raises ConfigError where the run cannot be spread over that many ranks, or the launcher started others."""
    problems = config.rank_problems(ranks)
    wanted = config.sharding.ranks
    if launched and wanted != "auto" and wanted != launched.local_size:
        problems.append(f"sharding.ranks is {wanted}, the launcher started {launched.local_size} on this host")
    local = launched.local_size if launched else ranks
    if 0 < (gpus := count_gpus()) < local:
        problems.append(f"sharding.ranks is {local}, this host has {gpus} GPUs: a rank needs one of its own")
    if problems:
        raise ConfigError("\n".join(problems))


def finished(config: RunConfig, folder: RunFolder) -> bool:
    """Whether the run has nothing left to do."""
    newest = find_newest(folder.checkpoints)
    return newest is not None and read_state(newest).step >= config.schedule.total_steps


def train_rank(config: RunConfig, world: World, stop_after: int | None) -> None:
    """Trains as one rank; rank 0 holds the folder's lock, and prepares where nobody did before."""
    from pretrain.training.trainer import run_rank

    if world.rank > 0:
        run_rank(config, wait_prepared(config), world, stop_after)
        return
    folder = RunFolder(config.folder)
    with folder.lock():
        run_rank(config, ready_corpus(config, folder), world, stop_after)


def ready_corpus(config: RunConfig, folder: RunFolder) -> Store:
    """The prepared corpus of a run, made now where it has not been.

    Raises DataError, or ConfigError for a vocabulary that cannot be trained on, or that the run did not begin with.
    """
    family = get_family(config.model.kind)
    store = ensure_prepared(config, family)
    if any(folder.checkpoints.glob("step-*")):
        check_vocabulary(config, Store(folder.prepared()))
    elif family.tokenizer.problem is not None:
        tokenizer, counts = load_tokenizer(config, store), store.read_array("unigrams.npy")[0]
        problem = family.tokenizer.problem(config.objective, tokenizer, counts)
        if problem is not None:
            raise ConfigError(f"{vocabulary_place(config, store)}: {problem}")
    return store


def check_vocabulary(config: RunConfig, began: Store) -> None:
    """Refuses to go on with other words than a run began with: among its options is only the name of their file."""
    if not isinstance(config.tokenizer, WordsConfig) or config.tokenizer.vocabulary is None:
        return
    manifest = began.read_manifest()  # None: gone
    if manifest is not None and manifest["identity"]["tokenizer"] != identity(config)["tokenizer"]:
        raise ConfigError(
            f"tokenizer.vocabulary: {config.tokenizer.vocabulary}: changed since this run began with {began.url}"
        )


def vocabulary_place(config: RunConfig, store: Store) -> str:
    """Where a run's vocabulary comes from, as a message names it."""
    if isinstance(config.tokenizer, WordsConfig) and config.tokenizer.vocabulary is not None:
        return f"tokenizer.vocabulary: {config.tokenizer.vocabulary}"
    start = config.model.initialize_from
    return f"{store.url}/tokenizer" if start is None else f"model.initialize_from: {start}"


def wait_prepared(config: RunConfig) -> Store:
    """The prepared corpus, once rank 0 has made it; where that fails, rank 0's end takes this rank along."""
    store = prepared_store(config)
    while store.read_manifest() is None:
        time.sleep(0.5)
    return store


def rank_command(config: RunConfig, stop_after: int | None) -> list[str]:
    """The command that one rank runs: this program on the resolved config."""
    config.folder.mkdir(parents=True, exist_ok=True)
    resolved = config.folder / ".resolved.yaml"
    resolved.write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "pretrain", "train", str(resolved)]
    return command + ([] if stop_after is None else ["--stop-after", str(stop_after)])
