"""Contextual vectors of text, from a model folder of either family."""

import numbers
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pretrain.embedding.loading import load_model
from pretrain.embedding.pooling import Vectors, pool_sentence, pool_words
from pretrain.embedding.sentence_modules import SentenceModules
from pretrain.embedding.texts import Text, as_texts, cleaned
from pretrain.embedding.windows import FittedText, Long, Tally, fit_texts
from pretrain.embedding.windows import TextTooLong as TextTooLong
from pretrain.models.family import Family, LayerVectors, Pieces, Tokenizer
from pretrain.models.start_state import Start
from pretrain.runtime.machine import exact_float32

Layers = int | Sequence[int] | Literal["all"]
"""One layer, several, or all; negative numbers count from the top."""
Output = Literal["words", "pieces", "sentence"]


class Embedder:
    """A model and its tokenizer, for vectors: float32, in evaluation mode, without gradients.

    Made by `Embedder.load`, or from the parts of a model in memory, whose encoder is then moved to `device` and put
    in evaluation mode; texts start from `start_state`, float32 [state size], or else from zero. The same text gives
    the same vectors to rounding, whatever it is batched with, unless asked otherwise (`encode`, `stateful`).
    """

    def __init__(
        self,
        family: Family,
        model: nn.Module,
        tokenizer: Tokenizer,
        device: str | torch.device | None = None,
        *,
        sentence_modules: SentenceModules | None = None,
        start_state: torch.Tensor | None = None,
    ) -> None:
        self.kind = family.kind
        """The family: `elmo` or `bert`."""
        self.tokenizer = tokenizer
        """The model's tokenizer."""
        self._family = family
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder = model.get_submodule("encoder").to(device, torch.float32).eval()
        self._start_state = None if start_state is None else start_state.to(device, torch.float32)
        self._carried: torch.Tensor | None = None
        layers = self._run([tokenizer.pieces([])], None)[0].layers
        self._num_layers, self._width = len(layers), layers[0].shape[-1]
        self._sentence_modules = None if sentence_modules is None else sentence_modules.checked(self._width, tokenizer)
        asked = None if sentence_modules is None else sentence_modules.max_length
        limits = [getattr(self._encoder, "max_positions", None), asked or getattr(tokenizer, "max_length", None)]
        self._max_length = min((limit for limit in limits if limit is not None), default=None)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        checkpoint: str = "best",
        *,
        start: Start = "auto",
    ) -> "Embedder":
        """The model in `folder`, in any published format that we read, on `device` (None: CUDA where there is one).

        A folder of sentence-transformers (every BERT that we export is one) also says how a text's vector is made. The
        folder may also be a run's; then `checkpoint` says which of its models is meant: `best`, `newest`, or a step.

        `start` is what every text starts from in families that carry state. `auto`: what the folder says; published
        folders say nothing, and that is zero; a run says what its export would, by its held-out text. `primed`: the
        state that the model reaches by reading the most frequent words of its vocabulary, whatever the folder says.

        Raises ExportError where the folder holds no model, more than one, or no tokenizer, and for a primed state that
        cannot be made, or from which sentences are no better than from zero; CheckpointError or ConfigError for a
        checkpoint that is not there; ConfigError for a primed state of a family that carries none.
        """
        loaded = load_model(Path(folder), checkpoint, start)
        return cls(
            loaded.family,
            loaded.folder.model,
            loaded.tokenizer,
            device,
            sentence_modules=loaded.sentence_modules,
            start_state=loaded.start_state,
        )

    @property
    def num_layers(self) -> int:
        """Layers, layer 0 (the token layer) included."""
        return self._num_layers

    @property
    def width(self) -> int:
        """Width of a vector, the same for every layer."""
        return self._width

    @property
    def max_length(self) -> int | None:
        """The most pieces of a text, special tokens included, by the model's positions and the folder's settings."""
        return self._max_length

    def words(self, text: Text) -> list[str]:
        """The words of a text (as they stand in it) whose vectors `encode` gives, in the same order."""
        return self.tokenizer.pieces(cleaned(text)).words

    def reset_states(self) -> None:
        """Lets every row start anew, as texts do that are read by themselves, at the next stateful call."""
        self._carried = None

    def encode(
        self,
        texts: str | Iterable[Text],
        output: Output = "words",
        *,
        layers: Layers = -1,
        is_split_into_words: bool = False,
        long: Long = "error",
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

        A word is the mean of its pieces; "pieces" are those of the text, without special tokens. A sentence is what the
        folder's `modules.json` makes of all pieces, special tokens included, as sentence-transformers does; where there
        is none, the mean of all pieces that belong to words. A text without words gives arrays of 0 words, and zeros as
        the latter. A word without a piece gives zeros, and one logged warning a call says how many there were.

        `long` says what becomes of a text with more pieces than the model reads (`max_length`; ELMo has no limit).

        | long       |                                                                                        |
        |------------|----------------------------------------------------------------------------------------|
        | "error"    | TextTooLong                                                                            |
        | "split"    | read in windows without overlap, cut between sentences where possible, else between    |
        |            | words; every word has its vector. Context ends at a window's edges: words near one     |
        |            | have less of it than they could                                                        |
        | "truncate" | the words that fit have vectors, those behind them have none: the array has fewer rows |
        |            | than `words` has words                                                                 |
        | "skip"     | arrays of 0 words; zeros as a sentence                                                 |

        One logged warning a call says how many texts were too long, and how many words have no vector.

        Every text starts from zero state, or from the state that `load` was asked for. `stateful=True`, for families
        that carry state, is what published ELMo does: text i goes on from where text i of the stateful call before
        ended. There are as many rows of state as texts in the longest call; a shorter one leaves the others' as they
        are.

        Raises ValueError for a bad value, and TextTooLong, which is one, for a text longer than the model reads;
        ExportError for raw text where the folder's tokenizer needs a program that is not here, and for "sentence" where
        the folder has modules that are not.
        """
        single, items = as_texts(texts, is_split_into_words)
        fitted = self.fit(items, long)
        with tqdm(total=len(fitted), unit=" texts", disable=not show_progress_bar) as bar:
            vectors = self.encode_fitted(
                fitted, output, layers=layers, stateful=stateful, batch_size=batch_size, progress=bar
            )
        tally = Tally()
        tally.add(fitted)
        tally.report(output, long, self.max_length)
        return vectors[0] if single else vectors

    def fit(self, texts: Sequence[Text], long: Long = "error") -> list[FittedText]:
        """Texts, raw or as words, as the model reads them; raises TextTooLong, by `long`, for one that is too long."""
        return fit_texts([self.tokenizer.pieces(cleaned(text)) for text in texts], self._max_length, long)

    def encode_fitted(
        self,
        texts: Sequence[FittedText],
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
        for row, vectors in self._encode_windows(texts, chosen, batch_size, stateful):
            every = self._pool(vectors, texts[row].pieces, output)
            if not texts[row].windows:  # a folder's modules may make something even of nothing
                every = np.zeros_like(every)
            pooled[row] = every[0] if _is_number(layers) else every
            if progress is not None:
                progress.update()
        return [pooled[row] for row in range(len(texts))]

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

    def _encode_windows(
        self, texts: Sequence[FittedText], layers: Sequence[int], batch_size: int, stateful: bool
    ) -> Iterator[tuple[int, Vectors]]:
        """Which of `texts`, and its vectors [layers, pieces, width], once all of its windows are encoded."""
        windows = [(row, number) for row, text in enumerate(texts) for number in range(len(text.windows))]
        pieces = [texts[row].windows[number] for row, number in windows]
        missing = [len(text.windows) for text in texts]
        whole: dict[int, Vectors] = {}

        def zeros(row: int) -> Vectors:
            return np.zeros((len(layers), len(texts[row].pieces.tokens), self.width), np.float32)

        for row in range(len(texts)):
            if not missing[row]:
                yield row, zeros(row)
        for batch, vectors in self._batches(pieces, batch_size, stateful):
            # [windows, layers, pieces, width]
            arrays = torch.stack([vectors.layers[layer] for layer in layers], dim=1).cpu().numpy()
            for index, array in zip(batch, arrays, strict=True):
                row, number = windows[index]
                if row not in whole:
                    whole[row] = zeros(row)
                texts[row].put(array, number, whole[row])
                missing[row] -= 1
                if not missing[row]:
                    yield row, whole.pop(row)

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
            vectors, after = self._run([pieces[row] for row in rows], self._with_new_rows(carried, len(rows)))
            if stateful:
                state = after if state is None else torch.cat([state[:start], after, state[start + batch_size :]])
            yield rows, vectors
        if stateful:
            self._carried = state

    def _with_new_rows(self, carried: torch.Tensor | None, rows: int) -> torch.Tensor | None:
        """What rows go on from, [rows or more, state size]: those that carry nothing yet start; None if all do at zero.

        Families let rows beyond those of `carried` start from zero.
        """
        if self._start_state is None:
            return carried
        new = rows if carried is None else max(0, rows - len(carried))
        started = self._start_state.expand(new, -1)
        return started if carried is None else torch.cat([carried, started])

    def _pool(self, vectors: Vectors, pieces: Pieces, output: Output) -> Vectors:
        """[layers, pieces, width] as `output` says."""
        if output == "words":
            return pool_words(vectors, pieces.word_of, len(pieces.words))
        if output == "pieces":
            return vectors[:, pieces.word_of >= 0]
        if self._sentence_modules is not None:
            return self._sentence_modules(vectors)
        return pool_sentence(vectors, pieces.word_of)

    @torch.no_grad()
    def _run(self, pieces: list[Pieces], carried: torch.Tensor | None) -> tuple[LayerVectors, torch.Tensor]:
        """The family's encoder on one batch."""
        with exact_float32():
            vectors, after = self._family.encode(self._encoder, pieces, carried)
        return vectors, after


def _is_number(layers: object) -> bool:
    """Whether it is one whole number, NumPy's included; true and false are none."""
    return isinstance(layers, numbers.Integral) and not isinstance(layers, bool)
