"""A model for vectors, out of whatever folder it is in: a run's, a published model's, or sentence-transformers'."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pretrain.embedding.sentence_modules import SentenceModules, modules_of_run, read_sentence_modules
from pretrain.errors import ConfigError, ExportError
from pretrain.models import find_family, get_family
from pretrain.models.family import Family, ModelFolder, Tokenizer
from pretrain.models.start_state import Start, choose_start


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, and how its texts are read."""

    family: Family
    folder: ModelFolder
    tokenizer: Tokenizer
    sentence_modules: SentenceModules | None
    """How its folder makes one vector of a text, where it says so."""
    start_state: Tensor | None
    """What its texts start from, float32 [state size]; None for zero, and in families without state."""
    checkpoint: Path | None = None
    """Of a run's model: the folder of its checkpoint."""


def load_model(path: Path, checkpoint: str = "best", start: Start = "auto") -> Loaded:
    """The model of a run's checkpoint or of a model folder; see `Embedder.load`, also for what it raises."""
    checkpoint_folder = None
    if (path / "config.yaml").is_file():  # `is_run`, in a module that takes a second to import
        from pretrain.runs.start_states import read_with_start_state

        trained = read_with_start_state(path, checkpoint, start)
        folder, checkpoint_folder = trained.folder, trained.path
        family = get_family(folder.config.kind)
        modules = modules_of_run(path, family.format.sentence_pooling)
    elif checkpoint != "best":
        raise ConfigError(f"{path}: not a run folder, so that there is no checkpoint {checkpoint} to choose")
    else:
        modules = read_sentence_modules(path)
        model_folder = path if modules is None else modules.transformer
        family = find_family(model_folder)
        folder = family.format.read(model_folder)
    if folder.tokenizer is None:
        raise ExportError(f"{path} holds a {family.kind} model but no tokenizer, which vectors of text need")
    start_state = choose_start(folder, family.make_start_state, start, str(path))
    return Loaded(family, folder, folder.tokenizer, modules, start_state, checkpoint_folder)
