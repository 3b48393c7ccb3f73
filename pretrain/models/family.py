"""The contract between a family of models and everything else."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, device, dtype, nn

from pretrain.data.blocks import Arrays, Block, Examples
from pretrain.data.blocks import ExampleMaker as ExampleMaker
from pretrain.data.documents import Encoded as Encoded
from pretrain.models.baselines import Baseline, Part, UnavailableBaseline
from pretrain.models.loss import Objective
from pretrain.models.start_state import StartState


class LayerVectors(NamedTuple):
    """What an encoder returns. `layers[0]` is the token layer; each is float [batch, token, width].

    A tuple, since ZeRO 3 looks for a module's tensors only inside tuples, lists and dictionaries.

    `mask` is bool [batch, token], true where there is a token (special tokens included).
    """

    layers: tuple[Tensor, ...]
    mask: Tensor


@dataclass(frozen=True)
class Pieces:
    """One text as an encoder reads it, and how its pieces make up words."""

    tokens: list[int] | list[str]
    """The pieces, with the special tokens that show up in the encoder's output."""
    word_of: NDArray[np.int64]
    """int [pieces]: the word that each piece belongs to; -1 for a special token."""
    words: list[str]
    """The words, as they stand in the text."""


class Tokenizer(Protocol):
    """Cuts text into tokens. Saved as the files that the family's published format uses."""

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""

    @property
    def sentence_end(self) -> int | None:
        """The id predicted at the end of every sentence, where there is one."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of the tokenizer's config that say how text is cut, as this tokenizer cuts it."""

    def encode(self, sentences: Sequence[str]) -> Encoded:
        """Sentences as tokens without special ones, for training."""

    def pieces(self, text: str | Sequence[str]) -> Pieces:
        """One text, raw or as words, for vectors."""

    def save(self, folder: Path) -> None:
        """Writes the vocabulary, and what else is needed to load it again, into `folder`."""


class SentenceExamples(Examples, Protocol):
    """Examples of a block of which it is known what each prediction is of.

    Sentence s of a block has the text positions `sentence_starts[s] + s` to `sentence_starts[s + 1] + s`: one for each
    of its words, and one for its boundary, which a loss term may predict before the words or after them.
    """

    def text_positions(self, start: int, stop: int) -> Arrays:
        """By loss term, in the order of its losses on `take(start, stop)`: the position of each, or -1 for none."""


class SentenceMaker(ExampleMaker, Protocol):
    """An example maker of which every loss term predicts each text position of a padded block once."""

    def make(self, block: Block, rng: np.random.Generator, *, pad: bool = False) -> SentenceExamples:
        """The examples of a block."""

    def unknown(self, block: Block) -> NDArray[np.bool_]:
        """[tokens]: whether the vocabulary lacks the token, so that its prediction is that of an unknown one."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, read."""

    model: nn.Module
    """The pretraining model. `model.encoder` gives vectors; it has `max_positions` where it bounds a text's pieces."""
    tokenizer: Tokenizer | None
    config: Any
    """The family's model config: the architecture."""
    objective: Any
    """The family's objective config: what the model was trained on, as far as the folder says it."""
    language: str | None = None
    """The language of the text it was trained on, as `data.language` has it; None where the folder does not say."""
    start_state: StartState | None = None
    """A state of this model's that texts may start from, where there is one."""


@dataclass(frozen=True)
class FamilyTokenizer:
    """How a family's tokenizer comes about."""

    learn: Callable[[Callable[[], Iterable[str]], Any], Tokenizer]
    """(texts, tokenizer config) -> tokenizer, a pure function of both; `texts()` may be called more than once."""
    load: Callable[[Path], Tokenizer | None]
    """A saved tokenizer; None where the folder holds none."""
    problem: Callable[[Any, Tokenizer, NDArray[np.int64]], str | None] | None = None
    """(objective config, tokenizer, how often each id occurs in the training text) -> what makes this vocabulary unfit
    to train on, in a line; None where nothing does."""


@dataclass(frozen=True)
class FamilyTraining:
    """How a family is trained."""

    ordered: bool
    """Whether examples are windows of rows whose state is carried from step to step."""
    build_examples: Callable[[Any, Any, Tokenizer, int], ExampleMaker]
    """(model config, objective config, tokenizer, rows per lane) -> example maker; rows is 1 for families that are not
    ordered."""
    build_model: Callable[[Any, Any, int], nn.Module]
    """(model config, objective config, vocabulary size) -> freshly initialised pretraining model with an `encoder`."""
    build_objective: Callable[[Any, Tokenizer], Objective]
    """(objective config, tokenizer) -> objective."""
    gradient_scale: Callable[[Any], float]
    """What the loss is multiplied by before its gradient is taken, by the objective config."""
    no_decay: Callable[[str], bool]
    """Whether the parameter of this name is exempt from weight decay."""
    hidden_matrices: Callable[[str], int]
    """How many hidden matrices lie side by side in the parameter of this name, [..., rows, all their columns]; 0 where
    it is none."""
    build_sentences: Callable[..., SentenceMaker] | None = None
    """(model config, objective config, tokenizer, rows, reset=…) -> maker for held-out text, of which each sentence
    starts from zero state if `reset`, as `begins` in its batches says (int64 [rows], 1 for a row that starts anew);
    None for families that do not predict every word, and carry no state."""
    select_backends: Callable[[nn.Module, Any, device, dtype, int], list[str]] | None = None
    """(model, compute config, device, type of matrix products, ZeRO stage) -> lines for the log: settles in place how
    the model is computed there, not what; raises ConfigError where the config asks for what does not work."""


def differing_options(theirs: Any, ours: Any, options: Iterable[str]) -> list[str]:
    """A line for each of `options` in which two model configs differ."""
    pairs = ((option, getattr(theirs, option), getattr(ours, option)) for option in options)
    return [f"model.{option} is {there} there and {here} in this run" for option, there, here in pairs if there != here]


@dataclass(frozen=True)
class FamilyFormat:
    """The published format of a family's models."""

    name: str
    """As `pretrain export --to` spells it."""
    recognises: Callable[[Path], bool]
    """Whether a folder looks like a model of this family."""
    read: Callable[[Path], ModelFolder]
    """Reads a published model folder; raises ExportError naming what is missing or ambiguous."""
    write: Callable[[Path, ModelFolder], None]
    """Writes one, in the format that the field reads."""
    read_architecture: Callable[[Path], Any]
    """The model config of a published model folder, without its weights; raises ExportError."""
    differences: Callable[[Any, Any], list[str]]
    """(a folder's model config, a run's) -> what keeps the run from starting with the folder's weights, a line each."""
    initialize: Callable[..., list[str]]
    """(model, folder, the model's tokenizer) -> what keeps its fresh values, for the log: parameters, or shares."""
    sentence_pooling: str | None = None
    """How the format's readers make one vector of a text's pieces, special tokens included: a mode of
    sentence-transformers; None where they make none."""
    write_token_embeddings: Callable[[Path, ModelFolder], None] | None = None
    """Adds the token layer of every word of the vocabulary to a model folder, where the format has a file for it."""


class ScoredSentence(Hashable, Protocol):
    """A sentence as a model scores it, equal to every other that is the same to the model."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The ids of the tokens that are predicted; an unknown word's where the vocabulary lacks one."""

    @property
    def unknown_words(self) -> int:
        """How many of them are unknown words."""


@dataclass(frozen=True)
class FamilyScoring:
    """How probable a family's models find sentences, each by itself."""

    scores: tuple[str, ...]
    """The names of its scores, the best founded first."""
    problem: Callable[[ModelFolder], str | None]
    """What keeps a model from scoring, in a line: a folder without the heads that predict; None where nothing does."""
    read: Callable[[ModelFolder, str], ScoredSentence]
    """(model folder with a tokenizer, text) -> the sentence; raises DataError, saying no file, for one that is longer
    than the model reads."""
    score: Callable[..., NDArray[np.float64]]
    """(model folder in evaluation mode, sentences as `read` makes them, start=…) -> natural logs [scores, sentences];
    each sentence starts from `start`, float32 [state size], or from zero for None and in families without state."""


@dataclass(frozen=True)
class FamilyBaselines:
    """What `pretrain bench` measures a family against."""

    build: Callable[..., list[Baseline | UnavailableBaseline]]
    """(model folder, compiled=…) -> other implementations with its model's weights; those that `torch.compile` makes
    only if `compiled`."""
    parts: Callable[[nn.Module], list[Part]]
    """What of the model's work is timed by itself."""


@dataclass(frozen=True)
class Family:
    """One family of models: everything that is true of it alone."""

    kind: str
    encode: Callable[..., tuple[LayerVectors, Any]]
    """(encoder, pieces of several texts, carried) -> (layers aligned with the pieces, carried), without gradients."""
    tokenizer: FamilyTokenizer
    training: FamilyTraining
    format: FamilyFormat
    scoring: FamilyScoring
    baselines: FamilyBaselines
    make_start_state: Callable[[ModelFolder], StartState] | None = None
    """A state that the model reaches by reading, always the same for the same model; measured on what it has at hand,
    and no default. Raises ExportError where there is nothing to read. None for families that carry no state."""
