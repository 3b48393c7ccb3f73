"""A model out of a run folder or a model folder: one finder for all who want one; without Lightning."""

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus, open_corpus, source_weights
from pretrain.data.tokenizer import check_start
from pretrain.errors import CheckpointError, ConfigError, DataError, PretrainError
from pretrain.models import find_family, get_family
from pretrain.models.family import ModelFolder, Tokenizer
from pretrain.runs.checkpoints import choose_checkpoint, read_state, read_weights
from pretrain.runs.folder import RunFolder
from pretrain.runtime.seeding import seed_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a run has learned up to a checkpoint."""

    run: RunFolder
    config: RunConfig
    folder: ModelFolder
    step: int
    path: Path
    """The checkpoint."""
    corpus_identity: str
    """Of the prepared corpus that it was trained on."""

    def open_corpus(self) -> PreparedCorpus:
        """The corpus that the run was trained on; raises DataError where another is in its place now, or none."""
        corpus = open_corpus(self.run.prepared(), source_weights(self.config.data))
        if corpus.identity != self.corpus_identity:
            raise DataError(
                f"{corpus.url}: holds another text than {self.path} was trained on (corpus {corpus.identity}, "
                f"then {self.corpus_identity}): it was prepared anew since"
            )
        return corpus


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return RunFolder(path).config_file.is_file()


def read_model(path: Path, checkpoint: str = "best") -> tuple[ModelFolder, str]:
    """The model of a run's checkpoint (`best`, `newest`, or a step) or of a model folder; and what to call it.

    Raises ExportError for what is neither, CheckpointError or ConfigError for a checkpoint that is not there.
    """
    if is_run(path):
        trained = read_trained(path, checkpoint)
        return trained.folder, f"{path}, step {trained.step:,}"
    return find_family(path).format.read(path), str(path)


@contextlib.contextmanager
def model_folder(path: Path) -> Iterator[Path]:
    """A folder in the published format: the one at `path`, or, for a run there, its best checkpoint in a temporary one.

    What goes wrong with the latter is said of the run.
    """
    if not is_run(path):
        yield path
        return
    trained = read_trained(path, "best")
    log.info("%s: its best checkpoint, step %d", path, trained.step)
    with tempfile.TemporaryDirectory(prefix="pretrain-model-") as folder:
        get_family(trained.config.model.kind).format.write(Path(folder), trained.folder)
        try:
            yield Path(folder)
        except PretrainError as error:
            raise type(error)(re.sub(rf"{re.escape(folder)}[^\s:]*", str(path), str(error))) from None


def check_start_sizes(config: RunConfig) -> None:
    """Raises ConfigError, all differences at once, where a run is to start from a model of another architecture."""
    start = config.model.initialize_from
    if start is None:
        return
    family = get_family(config.model.kind)
    check_start(config, family)
    theirs = RunFolder(start).read_config().model if is_run(start) else family.format.read_architecture(start)
    if lines := family.format.differences(theirs, config.model):
        raise ConfigError("\n".join(f"model.initialize_from: {start}: {line}" for line in lines))


def read_trained(run: Path, which: str) -> Trained:
    """The model of a run's checkpoint: `best`, `newest`, or that of a step.

    Raises ConfigError for a folder that is no run folder, CheckpointError for a checkpoint that is missing or damaged.
    """
    run_folder = RunFolder(run)
    config = run_folder.read_config()
    path = choose_checkpoint(run_folder.checkpoints, which)
    tokenizer = read_tokenizer(config, run_folder.tokenizer)
    build_model = get_family(config.model.kind).training.build_model
    model = build_model(config.model, config.objective, tokenizer.vocabulary_size)
    weights = read_weights(path)
    for name, parameter in model.named_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            found = "missing" if name not in weights else f"{list(weights[name].shape)}"
            raise CheckpointError(f"{path}: {name} is {found}, the run's model has {list(parameter.shape)}")
        parameter.data.copy_(weights[name])
    state = read_state(path)
    folder = ModelFolder(model.eval(), tokenizer, config.model, config.objective, config.data.language)
    return Trained(run_folder, config, folder, state.step, path, state.corpus)


def read_tokenizer(config: RunConfig, folder: Path) -> Tokenizer:
    """The tokenizer of a run or of a prepared corpus; raises DataError where the folder holds none."""
    tokenizer = get_family(config.model.kind).tokenizer.load(folder)
    if tokenizer is None:
        raise DataError(f"{folder}: no tokenizer of a model of kind {config.model.kind}")
    return tokenizer


def build_untrained(config: RunConfig, tokenizer: Tokenizer) -> ModelFolder:
    """A freshly initialised model of a run's config and vocabulary."""
    return ModelFolder(build_initial_model(config, tokenizer), tokenizer, config.model, config.objective)


def build_initial_model(config: RunConfig, tokenizer: Tokenizer) -> torch.nn.Module:
    """A freshly initialised model: a pure function of the seed, the model's options and the vocabulary size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "weights"))
        build_model = get_family(config.model.kind).training.build_model
        return build_model(config.model, config.objective, tokenizer.vocabulary_size)


def select_backends(config: RunConfig, model: torch.nn.Module, device: torch.device) -> list[str]:
    """Settles how the model of a run is computed on a device; what the log should say. Raises ConfigError."""
    family = get_family(config.model.kind)
    if family.training.select_backends is None:
        return []
    dtype = torch.bfloat16 if config.precision == "bf16-mixed" else torch.float32
    return family.training.select_backends(model, config.compute, device, dtype, config.sharding.zero_stage)
