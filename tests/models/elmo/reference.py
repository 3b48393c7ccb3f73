"""A biLM in numpy, float64 and one position at a time, from the published files: what the real one must agree with.

It shares no code with the package. Shapes: n words, P projection size, D cell size, L LSTM layers, V vocabulary.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
State = list[tuple[Floats, Floats]]
"""Per layer: output [P] and memory [D]."""

BEGIN, END, UNKNOWN = "<S>", "</S>", "<UNK>"
FORWARD, BACKWARD = 0, 1


class ReferenceBilm:
    """The biLM of a model folder. `weights` holds all datasets by their published names and may be changed."""

    def __init__(self, folder: Path) -> None:
        options = json.loads(next(folder.glob("*options.json")).read_text(encoding="utf-8"))
        self.lstm, self.cnn = options["lstm"], options["char_cnn"]
        self.weights: dict[str, Floats] = {}
        for path in folder.glob("*weights.hdf5"):
            with h5py.File(path) as file:
                file.visititems(lambda name, item: self._keep(name, item))
        vocabulary = [path.read_text(encoding="utf-8").splitlines() for path in folder.glob("vocab*.txt")]
        self.vocabulary = vocabulary[0] if vocabulary else [BEGIN, END, UNKNOWN]

    def _keep(self, name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            self.weights[name] = np.asarray(item, np.float64)

    # words by themselves

    def characters(self, word: str) -> list[int]:
        """The character ids of a word, of which there are always as many."""
        most = self.cnn["max_characters_per_token"]
        marked = {BEGIN: [256], END: [257]}.get(word, list(word.encode()[: most - 2]))
        return ([258, *marked, 259] + [260] * most)[:most]

    def token(self, word: str) -> Floats:
        """Layer 0 of a word, [P]: convolutions, maximum, activation, highways, projection."""
        weights = self.weights
        rows = weights["char_embed"][self.characters(word)]
        parts = []
        for number, (width, _) in enumerate(self.cnn["filters"]):
            kernel = weights[f"CNN/W_cnn_{number}"][0]  # [width, character size, filters]
            windows = np.stack([rows[start : start + width] for start in range(len(rows) - width + 1)])
            parts.append(np.einsum("swc,wcf->sf", windows, kernel).max(axis=0) + weights[f"CNN/b_cnn_{number}"])
        x = np.concatenate(parts)
        x = np.tanh(x) if self.cnn["activation"] == "tanh" else np.maximum(x, 0)
        for number in range(self.cnn.get("n_highway") or 0):
            name = f"CNN_high_{number}"
            gate = sigmoid(x @ weights[f"{name}/W_carry"] + weights[f"{name}/b_carry"])
            transformed = np.maximum(x @ weights[f"{name}/W_transform"] + weights[f"{name}/b_transform"], 0)
            x = gate * transformed + (1 - gate) * x
        projected: Floats = x @ weights["CNN_proj/W_proj"] + weights["CNN_proj/b_proj"]
        return projected

    # words in context

    def zero_state(self) -> State:
        """The state that a text begins with."""
        sizes = self.lstm["projection_dim"], self.lstm["dim"]
        return [(np.zeros(sizes[0]), np.zeros(sizes[1])) for _ in range(self.lstm["n_layers"])]

    def read(self, direction: int, words: Sequence[str], state: State | None = None) -> tuple[Floats, State]:
        """Every layer's outputs on words in the order of reading, [L + 1, n, P], and the state after them."""
        state = list(state or self.zero_state())
        tokens = {word: self.token(word) for word in set(words)}
        outputs = np.zeros((len(state) + 1, len(words), self.lstm["projection_dim"]))
        for position, word in enumerate(words):
            outputs[0, position] = tokens[word]
            for layer in range(len(state)):
                below = outputs[layer, position]
                state[layer] = self._cell(direction, layer, below, state[layer])
                skip = below if layer and self.lstm.get("use_skip_connections") else 0.0
                outputs[layer + 1, position] = state[layer][0] + skip
        return outputs, state

    def _cell(self, direction: int, layer: int, below: Floats, state: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        name = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
        output, memory = state
        gates = np.concatenate([below, output]) @ self.weights[f"{name}/W_0"] + self.weights[f"{name}/B"]
        write, candidate, forget, show = np.split(gates, 4)
        memory = clip(
            sigmoid(forget + 1) * memory + sigmoid(write) * np.tanh(candidate), self.lstm.get("cell_clip") or 0
        )
        output = (sigmoid(show) * np.tanh(memory)) @ self.weights[f"{name}/W_P_0"]
        return clip(output, self.lstm.get("proj_clip") or 0), memory

    def layers(
        self, words: Sequence[str], states: tuple[State, State] | None = None
    ) -> tuple[Floats, tuple[State, State]]:
        """Vectors of a text's words, [L + 1, n, 2P], forward beside backward, and both states after the text.

        Either direction reads the text between `<S>` and `</S>`, whose own vectors are left out.
        """
        text = [BEGIN, *words, END]
        before = states or (None, None)
        forward, forward_state = self.read(FORWARD, text, before[FORWARD])
        backward, backward_state = self.read(BACKWARD, text[::-1], before[BACKWARD])
        both = np.concatenate([forward, backward[:, ::-1]], axis=2)
        return both[:, 1:-1], (forward_state, backward_state)

    def states_after(self, sentences: Sequence[Sequence[str]]) -> tuple[State, State]:
        """The states in which continuous text leaves both directions, from zero, as in training.

        The forward model reads `<S> w1 … wn` of every sentence, the backward model `</S> wn … w1` from the last one.
        """
        _, forward = self.read(FORWARD, [word for words in sentences for word in (BEGIN, *words)])
        _, backward = self.read(BACKWARD, [word for words in sentences[::-1] for word in (END, *words[::-1])])
        return forward, backward

    # predictions

    def losses(
        self, direction: int, inputs: Sequence[str], targets: Sequence[str], state: State | None = None
    ) -> tuple[Floats, State]:
        """Losses [n], in nats, of predicting each target after reading up to its input, and the state after them."""
        outputs, state = self.read(direction, inputs, state)
        logits = outputs[-1] @ self.weights["softmax/W"].T + self.weights["softmax/b"]  # [n, V]
        most = logits.max(axis=1)
        normalisers = most + np.log(np.exp(logits - most[:, None]).sum(axis=1))
        return normalisers - logits[np.arange(len(targets)), self.ids(targets)], state

    def ids(self, words: Sequence[str]) -> list[int]:
        """The ids of words, `<UNK>`'s for those without one."""
        numbers = {word: number for number, word in enumerate(self.vocabulary)}
        return [numbers.get(word, numbers[UNKNOWN]) for word in words]

    def sentence_losses(self, words: Sequence[str], states: tuple[State, State] | None = None) -> tuple[Floats, Floats]:
        """Losses of a sentence by itself, from zero state or from `states`, [n + 1] each, in the order of the text.

        Forward of `w1 … wn </S>`, backward of `<S> w1 … wn`.
        """
        text = [BEGIN, *words, END]
        before = states or (None, None)
        forward, _ = self.losses(FORWARD, text[:-1], text[1:], before[FORWARD])
        backward, _ = self.losses(BACKWARD, text[:0:-1], text[-2::-1], before[BACKWARD])
        return forward, backward[::-1]


def sigmoid(x: Floats) -> Floats:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def clip(values: Floats, bound: float) -> Floats:
    """Values within ±bound; 0 means no bound."""
    return np.clip(values, -bound, bound) if bound else values
