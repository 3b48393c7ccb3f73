"""Contextual vectors of text, from a model folder of either family."""

import logging
import numbers
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from tqdm import tqdm

from pretrain.data.text import clean, clean_word
from pretrain.embedding.pooling import Vectors, count_words_without_piece, pool_sentence, pool_words
from pretrain.errors import ExportError
from pretrain.models import find_family
from pretrain.models.family import Family, LayerVectors, Pieces, Tokenizer

log = logging.getLogger(__name__)

Text = str | Sequence[str]
"""A raw text, or the words of one."""
Layers = int | Sequence[int] | Literal["all"]
"""One layer, several, or all; negative numbers count from the top."""
Output = Literal["words", "pieces", "sentence"]


class TextTooLong(ValueError):
    """A text has more pieces than the model reads; `index` is its number among the texts given."""

    def __init__(self, index: int, num_pieces: int, limit: int) -> None:
        self.index = index
        self.problem = f"{num_pieces} pieces, special tokens included; the model reads at most {limit}"
        super().__init__(f"text {index} has {self.problem}")


class Embedder:
    """A model and its tokenizer, for vectors: float32, in evaluation mode, without gradients.

    Made by `Embedder.load`, or from the parts of a model in memory, whose encoder is then moved to `device` and put
    in evaluation mode. The same text gives the same vectors to rounding, whatever it is batched with, unless asked
    otherwise (`encode`, `stateful`).
    """

    def __init__(
        self, family: Family, model: nn.Module, tokenizer: Tokenizer, device: str | torch.device | None = None
    ) -> None:
        self.kind = family.kind
        """The family: `elmo` or `bert`."""
        self.tokenizer = tokenizer
        """The model's tokenizer."""
        self._family = family
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder = model.get_submodule("encoder").to(device, torch.float32).eval()
        self._carried: torch.Tensor | None = None
        layers = self._run([tokenizer.pieces("")], None)[0].layers
        self._num_layers, self._width = len(layers), layers[0].shape[-1]

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> "Embedder":
        """The model in `folder`, in any published format that we read, on `device` (None: CUDA where there is one).

        Raises ExportError where the folder holds no model, more than one, or no tokenizer.
        """
        folder = Path(folder)
        family = find_family(folder)
        read = family.format.read(folder)
        if read.tokenizer is None:
            raise ExportError(f"{folder} holds a {family.kind} model but no tokenizer, which vectors of text need")
        return cls(family, read.model, read.tokenizer, device)

    @property
    def num_layers(self) -> int:
        """Layers, layer 0 (the token layer) included."""
        return self._num_layers

    @property
    def width(self) -> int:
        """Width of a vector, the same for every layer."""
        return self._width

    def words(self, text: Text) -> list[str]:
        """The words of a text (as they stand in it) whose vectors `encode` gives, in the same order."""
        return self.tokenizer.pieces(clean(text) if isinstance(text, str) else text).words

    def reset_states(self) -> None:
        """Lets every row start from zero state again at the next stateful call."""
        self._carried = None

    def encode(
        self,
        texts: str | Iterable[Text],
        output: Output = "words",
        *,
        layers: Layers = -1,
        is_split_into_words: bool = False,
        stateful: bool = False,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Vectors | list[Vectors]:
        """A float32 array for each text, in order; of a single text, its array alone.

        A single text is a string, or with `is_split_into_words` a list of strings, its words; several are any iterable
        of those, also a generator.

        | output     | one layer (an int) | several ("all", layer 0 first; or a list, in its order) |
        |------------|--------------------|---------------------------------------------------------|
        | "words"    | (words, width)     | (layers, words, width)                                  |
        | "pieces"   | (pieces, width)    | (layers, pieces, width)                                 |
        | "sentence" | (width,)           | (layers, width)                                         |

        A word is the mean of its pieces; a sentence the mean of all pieces that belong to words; "pieces" are those
        of the text: special tokens are in none of the three. A text without words gives arrays of 0 words, and zeros
        as a sentence. A word without a piece gives zeros, and one logged warning a call says how many there were.

        Every text starts from zero state. `stateful=True`, for families that carry state, is what published ELMo
        does: text i goes on from where text i of the stateful call before ended. There are as many rows of state as
        texts in the longest call; a shorter one leaves the others' as they are.

        Raises ValueError for a bad value, and TextTooLong, which is one, for a text longer than the model reads.
        """
        single, items = _as_texts(texts, is_split_into_words)
        pieces = self.pieces(items)
        if output == "words":
            warn_of_words_without_piece(sum(map(count_words_without_piece, pieces)), sum(len(p.words) for p in pieces))
        with tqdm(total=len(pieces), unit=" texts", disable=not show_progress_bar) as bar:
            vectors = self.encode_pieces(
                pieces, output, layers=layers, stateful=stateful, batch_size=batch_size, progress=bar
            )
        return vectors[0] if single else vectors

    def pieces(self, texts: Sequence[Text]) -> list[Pieces]:
        """Texts, raw or as words, as the model reads them; raises TextTooLong for one with too many pieces."""
        pieces = [
            self.tokenizer.pieces(clean(text) if isinstance(text, str) else list(map(clean_word, text)))
            for text in texts
        ]
        limit: int | None = getattr(self._encoder, "max_positions", None)
        if limit is not None:
            for index, text in enumerate(pieces):
                if len(text.tokens) > limit:
                    raise TextTooLong(index, len(text.tokens), limit)
        return pieces

    def encode_pieces(
        self,
        pieces: Sequence[Pieces],
        output: Output = "words",
        *,
        layers: Layers = -1,
        stateful: bool = False,
        batch_size: int = 32,
        progress: "tqdm[Any] | None" = None,
    ) -> list[Vectors]:
        """`encode` for texts cut already; `progress` is moved on by the number of texts done."""
        if output not in get_args(Output):
            raise ValueError(f"output is {output!r}, not one of {', '.join(map(repr, get_args(Output)))}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, less than 1")
        if stateful and not self._family.training.ordered:
            raise ValueError(f"stateful is True, but {self.kind} models carry no state from text to text")
        chosen = self.layer_numbers(layers)
        pooled: dict[int, Vectors] = {}
        for rows, vectors in self._batches(pieces, batch_size, stateful):
            # [texts, layers, pieces, width]
            arrays = torch.stack([vectors.layers[layer] for layer in chosen], dim=1).cpu().numpy()
            for row, array in zip(rows, arrays, strict=True):
                every = _pool(array[:, : len(pieces[row].tokens)], pieces[row], output)
                pooled[row] = every[0] if _is_number(layers) else every
            if progress is not None:
                progress.update(len(rows))
        return [pooled[row] for row in range(len(pieces))]

    def layer_numbers(self, layers: Layers) -> list[int]:
        """The layers meant, counted from 0; raises ValueError for one that the model has not."""
        if isinstance(layers, str) and layers == "all":
            return list(range(self.num_layers))
        chosen: Any = [layers] if _is_number(layers) else layers
        if isinstance(chosen, str | bool) or not len(chosen) or not all(map(_is_number, chosen)):
            raise ValueError(f"layers is {layers!r}, not a number, a list of numbers or 'all'")
        for number in chosen:
            if not -self.num_layers <= number < self.num_layers:
                raise ValueError(
                    f"layer {number} does not exist: the model has {self.num_layers} layers, "
                    f"0 to {self.num_layers - 1} or -{self.num_layers} to -1"
                )
        return [int(number) % self.num_layers for number in chosen]

    def _batches(
        self, pieces: Sequence[Pieces], batch_size: int, stateful: bool
    ) -> Iterator[tuple[Sequence[int], LayerVectors]]:
        """Batches: which of `pieces`, and their vectors. They are in order only where state is carried."""
        order: Sequence[int] = range(len(pieces))
        if not stateful:
            # the longest first, so that a batch that does not fit into memory is met at once
            order = sorted(order, key=lambda row: -len(pieces[row].tokens))
        state = self._carried
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            carried = None if state is None or not stateful else state[start : start + batch_size]
            vectors, after = self._run([pieces[row] for row in rows], carried)
            if stateful:
                state = after if state is None else torch.cat([state[:start], after, state[start + batch_size :]])
            yield rows, vectors
        if stateful:
            self._carried = state

    @torch.no_grad()
    def _run(self, pieces: list[Pieces], carried: torch.Tensor | None) -> tuple[LayerVectors, torch.Tensor]:
        """The family's encoder on one batch."""
        # cuDNN convolves in TF32 by default, which keeps three digits
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            vectors, after = self._family.encode(self._encoder, pieces, carried)
        return vectors, after


def warn_of_words_without_piece(count: int, words: int) -> None:
    """Says, where there were any, how many words got zero vectors."""
    if count:
        log.warning("%d of %d words have no piece, as control characters have none: their vectors are 0", count, words)


def _is_number(layers: object) -> bool:
    """Whether it is one whole number, NumPy's included; true and false are none."""
    return isinstance(layers, numbers.Integral) and not isinstance(layers, bool)


def _pool(vectors: Vectors, pieces: Pieces, output: Output) -> Vectors:
    """[layers, pieces, width] as `output` says."""
    if output == "words":
        return pool_words(vectors, pieces.word_of, len(pieces.words))
    if output == "sentence":
        return pool_sentence(vectors, pieces.word_of)
    return vectors[:, pieces.word_of >= 0]


def _as_texts(texts: str | Iterable[Text], is_split_into_words: bool) -> tuple[bool, list[Text]]:
    """Whether a single text was given, and the texts; raises ValueError where they are not what the flag says."""
    if isinstance(texts, str):
        if is_split_into_words:
            raise ValueError("texts is a string; with is_split_into_words=True a text is a list of words")
        return True, [texts]
    items = list(texts)
    if not is_split_into_words:
        for index, item in enumerate(items):
            if not isinstance(item, str):
                raise ValueError(
                    f"text {index} is a {type(item).__name__}, not a string; "
                    "texts that are lists of words need is_split_into_words=True"
                )
        return False, items
    words = [item for item in items if isinstance(item, str)]
    if words and len(words) == len(items):
        for index, word in enumerate(words):
            # a list of raw texts would otherwise pass for the words of one
            if len(word.split()) > 1:
                raise ValueError(
                    f"string {index} is more than one word; with is_split_into_words=True a list of strings is one "
                    "text's words (in a list of such lists, words may hold white space)"
                )
        return True, [words]
    for index, item in enumerate(items):
        if isinstance(item, str) or not all(isinstance(word, str) for word in item):
            raise ValueError(f"text {index} is no list of words, as is_split_into_words=True asks for")
    return False, items
