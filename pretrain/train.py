"""`pretrain train`: pretrains or resumes a run, and makes first what is missing."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.config.load import dump_config
from pretrain.config.models import WordsConfig
from pretrain.config.run import RunConfig
from pretrain.data.prepare import check_inputs
from pretrain.errors import ConfigError
from pretrain.runs.checkpoints import incomplete_at, newest_step, steps_in
from pretrain.runs.folder import RunFolder
from pretrain.runs.metrics import check_wandb
from pretrain.runtime.launcher import STOPPED, end_with_launcher, launched_here, spawn_ranks
from pretrain.runtime.world import World, only_rank, world

if TYPE_CHECKING:
    from pretrain.data.corpus import PreparedCorpus
    from pretrain.probing.checkpoints import CheckpointProbes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a start ended."""

    folder: Path
    """The run folder."""
    code: int = 0
    """0, or `STOPPED` where it was asked to stop, and saved first."""


def train(config: RunConfig, stop_after: int | None = None, *, extend: bool = False) -> Ended:
    """Trains `config` to its last step, or `stop_after` steps on.

    A folder that holds a checkpoint is resumed; with `extend`, for more steps than the run began with. In a process
    started by torchrun this is one rank; else the ranks are started here. Raises PretrainError for a user's mistake,
    found before ranks start; SystemExit where a rank failed.
    """
    folder = RunFolder(config.folder)
    launched = world()
    if launched is not None:
        end_with_launcher()
        return train_launched(settle(config, folder), folder, launched, stop_after, extend=extend)
    folder.check_place()  # before a lock is made in what may be no run folder
    if not steps_in(folder.checkpoints):
        check_inputs(config)
    check_probes(config)
    if config.sharding.ranks != "auto":
        check_spread(config, config.sharding.ranks)
    with folder.lock() as lock:
        config = settle(config, folder)
        folder.check(config, extend=extend)
        if finished(config, folder):
            return Ended(folder.path)
        check_wandb(config)
        ranks = local_ranks(config)
        check_ranks(config, ranks, None)
        if ranks == 1:
            with only_rank() as alone:
                return train_rank(config, alone, stop_after)
        prepare_corpus(config, folder)
        with rank_command(config, stop_after) as command:
            code = spawn_ranks(command, ranks, inherited=[lock])
    if code not in (0, STOPPED):
        raise SystemExit(code)
    return Ended(folder.path, code)


def train_launched(config: RunConfig, folder: RunFolder, this: World, stop_after: int | None, *, extend: bool) -> Ended:
    """Trains as one of several ranks; under torchrun, rank 0 holds the folder's lock, which our launcher has else."""
    check_ranks(config, this.size, this)
    with contextlib.ExitStack() as held:

        def ready() -> "PreparedCorpus":
            if not launched_here():
                folder.check_place()
                held.enter_context(folder.lock())
                folder.check(config, extend=extend)
                check_wandb(config)
            check_probes(config)
            return prepare_corpus(config, folder)

        return train_rank(config, this, stop_after, ready)


def train_rank(
    config: RunConfig, this: World, stop_after: int | None, ready: "Callable[[], PreparedCorpus] | None" = None
) -> Ended:
    """Trains as one rank; rank 0 calls `ready` for the corpus, by default what prepares it."""
    from pretrain.training.start import agree_on_start
    from pretrain.training.trainer import run_rank, stop_step

    folder = RunFolder(config.folder)
    with contextlib.ExitStack() as held:
        probes = open_probes(config, held)

        def ready_to_probe() -> "PreparedCorpus":
            corpus = ready() if ready is not None else prepare_corpus(config, folder)
            if probes is not None:
                probes.rehearse(corpus.fetch_tokenizer())
            return corpus

        corpus, resume = agree_on_start(config, this, ready_to_probe)
        began = resume.state.step if resume else 0
        if began >= config.schedule.total_steps:
            say_finished(folder, began)
            return Ended(folder.path)
        step = run_rank(config, corpus, resume, this, stop_after, probe=probes)
    if step < config.schedule.total_steps:
        log.info("stopped at step %d of %d; the same command goes on", step, config.schedule.total_steps)
    return Ended(folder.path, 0 if step == stop_step(config, began, stop_after) else STOPPED)


def settle(config: RunConfig, folder: RunFolder) -> RunConfig:
    """The config with the tokenizer options that hold where the run starts from a model; raises ConfigError.

    A run that has begun knows them itself, wherever the model is now.
    """
    if config.model.initialize_from is None:
        return config
    if folder.config_file.exists() and steps_in(folder.checkpoints):
        began, given = folder.read_config().tokenizer, config.tokenizer.model_fields_set - {"vocabulary_size"}
        kept = {option: value for option, value in began if option not in given}
        return config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update=kept)})
    from pretrain.data.tokenizer import settle_tokenizer
    from pretrain.models import get_family

    return settle_tokenizer(config, get_family(config.model.kind))


def prepare_corpus(config: RunConfig, folder: RunFolder) -> "PreparedCorpus":
    """The prepared corpus of a run, made now where it has not been.

    Raises DataError, or ConfigError for a vocabulary that a new run cannot be trained on.
    """
    from pretrain.data.prepare import ensure_prepared
    from pretrain.models import get_family
    from pretrain.runs.trained import check_start_sizes, read_tokenizer

    family = get_family(config.model.kind)
    if not steps_in(folder.checkpoints):
        check_start_sizes(config)  # before hours are spent on preparing
    corpus = ensure_prepared(config, family, log_warnings=not launched_here())  # else the launcher has said them
    if not steps_in(folder.checkpoints) and family.tokenizer.problem is not None:
        tokenizer = read_tokenizer(config, corpus.fetch_tokenizer())
        problem = family.tokenizer.problem(config.objective, tokenizer, corpus.unigrams("train"))
        if problem is not None:
            raise ConfigError(f"{vocabulary_source(config, corpus)}: {problem}")
    return corpus


def vocabulary_source(config: RunConfig, corpus: "PreparedCorpus") -> str:
    """Where a run's vocabulary comes from, as a message names it."""
    if isinstance(config.tokenizer, WordsConfig) and config.tokenizer.vocabulary is not None:
        return f"tokenizer.vocabulary: {config.tokenizer.vocabulary}"
    start = config.model.initialize_from
    return f"the vocabulary of {corpus.url}" if start is None else f"model.initialize_from: {start}"


def check_probes(config: RunConfig) -> None:
    """Raises ConfigError where a file of `evaluation.probes` is not there: before hours are spent on preparing."""
    files = [path for probe in config.evaluation.probes for path in (probe.data, probe.test) if path is not None]
    if problems := [f"evaluation.probes: {path}: no such file" for path in files if not path.is_file()]:
        raise ConfigError("\n".join(problems))


def open_probes(config: RunConfig, held: contextlib.ExitStack) -> "CheckpointProbes | None":
    """What probes the checkpoints of a run, on rank 0; None where nothing does."""
    if not config.evaluation.probes:
        return None
    from pretrain.probing.checkpoints import CheckpointProbes

    folder = held.enter_context(tempfile.TemporaryDirectory(prefix="pretrain-probes-"))
    return CheckpointProbes(config, Path(folder))


def local_ranks(config: RunConfig) -> int:
    """Processes to start on this host."""
    if config.sharding.ranks != "auto":
        return config.sharding.ranks
    return max(1, count_gpus())


def count_gpus() -> int:
    """CUDA devices of this host."""
    import torch

    return torch.cuda.device_count()


def check_spread(config: RunConfig, ranks: int) -> None:
    """Raises ConfigError where the run cannot be spread over that many ranks."""
    if problems := config.rank_problems(ranks):
        raise ConfigError("\n".join(problems))


def check_ranks(config: RunConfig, ranks: int, launched: World | None) -> None:
    """Raises ConfigError where the run cannot be spread over that many ranks, or the launcher started others."""
    check_spread(config, ranks)
    problems = []
    wanted = config.sharding.ranks
    if launched and wanted != "auto" and wanted != launched.local_size:
        problems.append(f"sharding.ranks is {wanted}, the launcher started {launched.local_size} on this host")
    local = launched.local_size if launched else ranks
    if 0 < (gpus := count_gpus()) < local:
        problems.append(f"sharding.ranks is {local}, this host has {gpus} GPUs: a rank needs one of its own")
    if problems:
        raise ConfigError("\n".join(problems))


def finished(config: RunConfig, folder: RunFolder) -> bool:
    """Whether the run has nothing left to do, which the log then says."""
    step = newest_step(folder.checkpoints)
    if step < config.schedule.total_steps or incomplete_at(folder.checkpoints, step):
        return False
    say_finished(folder, step)
    return True


def say_finished(folder: RunFolder, step: int) -> None:
    """Says so, and what to do to train longer."""
    longer = f"schedule.total_steps={2 * step} --extend"
    log.info("%s is at its last step, %d: nothing to do; to train longer: %s", folder.path, step, longer)


@contextlib.contextmanager
def rank_command(config: RunConfig, stop_after: int | None) -> Iterator[list[str]]:
    """The command that one rank runs: this program on the resolved config, in a file that only we can read."""
    handle, name = tempfile.mkstemp(prefix="pretrain-", suffix=".yaml")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(dump_config(config))
        command = [sys.executable, "-m", "pretrain", "train", name]
        yield command + ([] if stop_after is None else ["--stop-after", str(stop_after)])
    finally:
        Path(name).unlink(missing_ok=True)
