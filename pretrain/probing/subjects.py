"""The models that are probed, and what each is probed beside."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pretrain.embedding.embedder import Embedder
from pretrain.embedding.sentence_modules import SentenceModules, modules_of_run, read_sentence_modules
from pretrain.errors import ExportError
from pretrain.models import find_family, get_family
from pretrain.models.family import Family, ModelFolder
from pretrain.runs.trained import is_run, read_trained
from pretrain.runtime.seeding import seed_of


@dataclass(frozen=True)
class Subject:
    """A model that is probed."""

    name: str
    """As the command line named it: the `model` of its results."""
    folder: ModelFolder
    """The whole model, with its heads, tokenizer and configs."""
    sentence_modules: SentenceModules | None = None
    """How its folder makes one vector of a text, where it says so."""
    checkpoint: Path | None = None
    """Of a run's model: the folder of the checkpoint that its weights are of."""

    @property
    def family(self) -> Family:
        """Its family's record."""
        return get_family(self.folder.config.kind)

    @cached_property
    def embedder(self) -> Embedder:
        """Its vectors."""
        assert self.folder.tokenizer is not None
        return Embedder(self.family, self.folder.model, self.folder.tokenizer)

    @cached_property
    def sentence_embedder(self) -> Embedder:
        """The vectors of its texts, as its folder says that they are made."""
        assert self.folder.tokenizer is not None
        return Embedder(self.family, self.folder.model, self.folder.tokenizer, sentence_modules=self.sentence_modules)

    def untrained(self, seed: int = 1) -> "Subject":
        """A randomly initialised model of the same shape and vocabulary, called `untrained`."""
        folder = self.folder
        assert folder.tokenizer is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "untrained"))
            model: Any = self.family.training.build_model(
                folder.config, folder.objective, folder.tokenizer.vocabulary_size
            )
        untrained = ModelFolder(model.eval(), folder.tokenizer, folder.config, folder.objective)
        return Subject("untrained", untrained, self.sentence_modules)


def open_subject(path: Path, checkpoint: str = "best") -> Subject:
    """The model of a run folder or a model folder; raises ExportError for what is neither, or has no tokenizer."""
    trained = read_trained(path, checkpoint) if is_run(path) else None
    folder = find_family(path).format.read(path) if trained is None else trained.folder
    if folder.tokenizer is None:
        raise ExportError(f"{path} holds a {folder.config.kind} model but no tokenizer, which probes of text need")
    if trained is not None:
        modules = modules_of_run(path, get_family(folder.config.kind).format.sentence_pooling)
    else:
        modules = read_sentence_modules(path)
    return Subject(str(path), folder, modules, None if trained is None else trained.path)


def beside_untrained(subjects: Sequence[Subject], seed: int) -> Iterator[tuple[Subject, str | None]]:
    """Each subject, then the untrained one beside it with the subject's name, as results have it in `of`."""
    for subject in subjects:
        yield subject, None
        yield subject.untrained(seed), subject.name
