"""The models that are probed, and what each is probed beside."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pretrain.embedding.embedder import Embedder
from pretrain.embedding.loading import load_model
from pretrain.embedding.sentence_modules import SentenceModules
from pretrain.models import get_family
from pretrain.models.family import Family, ModelFolder
from pretrain.models.start_state import Start
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
    start_state: torch.Tensor | None = None
    """What its texts start from, float32 [state size]; None for zero, and in families without state."""

    @property
    def family(self) -> Family:
        """Its family's record."""
        return get_family(self.folder.config.kind)

    @cached_property
    def embedder(self) -> Embedder:
        """Its vectors."""
        return self._build_embedder(None)

    @cached_property
    def sentence_embedder(self) -> Embedder:
        """The vectors of its texts, as its folder says that they are made."""
        return self._build_embedder(self.sentence_modules)

    def _build_embedder(self, modules: SentenceModules | None) -> Embedder:
        folder = self.folder
        assert folder.tokenizer is not None
        return Embedder(
            self.family, folder.model, folder.tokenizer, sentence_modules=modules, start_state=self.start_state
        )

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


def open_subject(path: Path, checkpoint: str = "best", start: Start = "auto") -> Subject:
    """The model of a run folder or a model folder, as `Embedder.load` reads it, also for what it raises."""
    loaded = load_model(path, checkpoint, start)
    return Subject(str(path), loaded.folder, loaded.sentence_modules, loaded.checkpoint, loaded.start_state)


def beside_untrained(subjects: Sequence[Subject], seed: int) -> Iterator[tuple[Subject, str | None]]:
    """Each subject, then the untrained one beside it with the subject's name, as results have it in `of`."""
    for subject in subjects:
        yield subject, None
        yield subject.untrained(seed), subject.name
