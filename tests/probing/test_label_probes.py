"""The probes that label words, on vectors that hold the labels, or nothing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pretrain.errors import ConfigError, DataError
from pretrain.probing import label_probes, tagging
from pretrain.probing.edges import probe_dependencies
from pretrain.probing.label_probes import Items, LabelProbes
from pretrain.probing.results import Outcome, Result
from pretrain.probing.sentences import Parts
from pretrain.probing.tagging import WordLearner, probe_entities, probe_pos
from pretrain.probing.tasks import Inputs
from pretrain.probing.vectors import WordVectors
from pretrain.runtime.seeding import seed_of
from tests.probing.small_models import small_subject

TAGS = ("NOUN", "VERB", "DET")
SHARES = (0.6, 0.3, 0.1)
Sentences = list[list[tuple[str, str, int]]]
"""Word, tag, and the number of its head (0 of a root)."""


def made_up(sentences: int, seed: int, words: Sequence[str] | None = None) -> Sentences:
    """Tags drawn at random; words from `words`, or each another one."""
    rng = np.random.default_rng(seed)
    drawn: Sentences = []
    for number in range(sentences):
        size = int(rng.integers(2, 9))
        root = int(rng.integers(size)) + 1
        chosen = [f"{seed}x{number}x{place}" for place in range(size)] if words is None else rng.choice(words, size)
        tags = rng.choice(TAGS, size, p=SHARES)
        heads = [0 if place == root else root for place in range(1, size + 1)]
        drawn.append(list(zip(map(str, chosen), map(str, tags), heads, strict=True)))
    return drawn


def write(path: Path, sentences: Sentences) -> Path:
    """CoNLL-U whose relations are both tags, with a root being its own head."""
    lines = []
    for sentence in sentences:
        for number, (word, tag, head) in enumerate(sentence, 1):
            relation = f"{tag}:{sentence[(head or number) - 1][1]}"
            lines.append(f"{number}\t{word}\t_\t{tag}\t_\t_\t{head}\t{relation}\t_\t_")
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_entities(path: Path, sentences: Sentences) -> Path:
    """The same words; a NOUN is O, and others are entities of their own."""
    tags = {"NOUN": "O", "VERB": "B-PER", "DET": "B-LOC"}
    lines = ["\n".join(f"{word}\t{tags[tag]}" for word, tag, _ in sentence) for sentence in sentences]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass
class Planted:
    """A stand-in for a model, whose vectors a test makes."""

    name: str = "planted"

    def untrained(self, seed: int) -> "Planted":
        return Planted("untrained")


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sentences, dict[str, NDArray[Any]]], None]:
    """Lets layer 1 hold what is said of each word, and be noise in an untrained model, as layers 0 and 2 are."""

    def planted(sentences: Sentences, vectors: dict[str, NDArray[Any]]) -> None:
        def word_vectors(subject: Planted, texts: Sequence[Sequence[str]], folder: Path) -> WordVectors:
            words = [word for text in texts for word in text]
            layers = np.random.default_rng(6).normal(size=(3, len(words), len(vectors[words[0]])))
            if subject.name != "untrained":
                layers[1] = [vectors[word] for word in words]
            return WordVectors(layers.astype(np.float32), np.cumsum([0, *map(len, texts)]))

        monkeypatch.setattr(label_probes, "word_vectors", word_vectors)

    return planted


def by_tag(sentences: Sentences) -> dict[str, NDArray[Any]]:
    """A vector for each word that says its tag."""
    codes = dict(zip(TAGS, np.random.default_rng(5).normal(size=(3, 8)), strict=True))
    return {word: codes[tag] for sentence in sentences for word, tag, _ in sentence}


def one(outcome: Outcome, model: str, layer: object, metric: str = "accuracy") -> Result:
    (found,) = [r for r in outcome.results if (r.model, r.layer, r.metric) == (model, layer, metric)]
    assert found.low <= found.value <= found.high
    return found


PROBES = {
    "pos": (probe_pos, write),
    "entities": (probe_entities, write_entities),
    "dependencies": (probe_dependencies, write),
}


@pytest.mark.parametrize("task", PROBES)
def test_vectors_that_hold_the_labels_give_all_and_noise_gives_nothing(
    task: str, tmp_path: Path, plant: Callable[..., None]
) -> None:
    run, written = PROBES[task]
    training, testing = made_up(300, 1), made_up(80, 2)
    plant(training + testing, by_tag(training + testing))
    inputs = Inputs(written(tmp_path / "a", training), written(tmp_path / "b", testing), vectors=tmp_path)
    outcome = run([Planted()], inputs)  # type: ignore[list-item]
    majority = one(outcome, "majority", 0)
    assert one(outcome, "planted", 1).value == 1
    assert one(outcome, "planted", "mix").value > 0.97
    assert outcome.details["mixing_weights"]["planted"][1] > 0.6
    for model, layer in (("planted", 0), ("planted", 2), ("untrained", 0), ("untrained", 1), ("untrained", "mix")):
        assert one(outcome, model, layer).value < majority.value + 0.06
    assert one(outcome, "control", 1).of == one(outcome, "untrained", 1).of == one(outcome, "static", 0).of == "planted"
    if task == "entities":
        assert one(outcome, "planted", 1, "f1").value == 1
        assert one(outcome, "majority", 0, "f1").value == 0, "every word is unknown, and most are O"
        assert outcome.results[0].metric == "f1"
    if task == "pos":
        assert one(outcome, "planted", "mix", "accuracy_with_suffixes").value > 0.97
    gold = [tag for sentence in testing for _, tag, _ in sentence]
    if task != "dependencies":
        assert majority.value == pytest.approx(gold.count("NOUN") / len(gold))


def test_vectors_that_hold_the_word_reach_the_control_and_no_more(tmp_path: Path, plant: Callable[..., None]) -> None:
    words = [f"w{number}" for number in range(20)]
    training, testing = made_up(400, 1, words), made_up(80, 2, words)
    codes = np.random.default_rng(1).normal(size=(20, 24))
    plant(training + testing, dict(zip(words, codes, strict=True)))
    inputs = Inputs(write(tmp_path / "a", training), write(tmp_path / "b", testing), vectors=tmp_path)
    outcome = probe_pos([Planted()], inputs)  # type: ignore[list-item]
    assert one(outcome, "control", 1).value == 1
    assert one(outcome, "control", 0).value < 0.8
    assert one(outcome, "planted", 1).value < one(outcome, "majority", 0).value + 0.05
    other = probe_pos([Planted()], replace(inputs, seed=2))  # type: ignore[list-item]
    assert one(other, "control", 0).value != one(outcome, "control", 0).value, "labels are drawn by the seed"


def test_floors_by_hand(tmp_path: Path, plant: Callable[..., None]) -> None:
    """Words: a is twice X and once Y, b is Y, of c as many are as are not; of unknown words X is likeliest."""

    def sentence(*pairs: str) -> list[tuple[str, str, int]]:
        return [(pair[0], pair[1], 0) for pair in pairs]

    training = [sentence("aX", "aX", "bY"), sentence("aY", "bY", "dX", "dX", "dX")]
    testing = [sentence("aX", "aY", "bY"), sentence("eX", "eY", "dY", "bX", "dZ")]
    words = {word: np.eye(5)["abcde".index(word)] for word in "abcde"}
    plant(training + testing, words)
    inputs = Inputs(write(tmp_path / "a", training), write(tmp_path / "b", testing), vectors=tmp_path)
    outcome = probe_pos([Planted()], inputs)  # type: ignore[list-item]
    assert one(outcome, "majority", 0).value == 3 / 8  # a: X, b: Y, d: X, e: X
    assert "1 test items have a label that the training part lacks, and count as wrong: Z" in outcome.notes


def test_control_labels_by_hand() -> None:
    """Drawn for each word alone, with the shares of the labels of the training part."""
    words = [f"w{number}" for number in range(3000)]
    labels = ["X"] * 1500 + ["Y"] * 900 + ["Z"] * 600
    items = Items(np.arange(3000), words, labels, np.arange(3000))
    learner = WordLearner(items, items)
    probes = LabelProbes("pos", Parts([], [], ()), items, items, learner, Inputs(Path("a")))
    drawn = probes._control_labels(words)
    for word, label in zip(words[:50], drawn, strict=False):
        chance = seed_of("control", 1, word) / 2**63
        assert label == (0 if chance < 0.5 else 1 if chance < 0.8 else 2)
    assert np.allclose(np.bincount(drawn) / 3000, [0.5, 0.3, 0.2], atol=0.03)
    assert drawn[::-1].tolist() == probes._control_labels(words[::-1]).tolist()


def test_nothing_of_the_test_part_is_learned_from(
    tmp_path: Path, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors say which part a word is of: what is learned from never varies in that."""
    training, testing = made_up(100, 1), made_up(30, 2)
    known = {word for sentence in training for word, *_ in sentence}
    marks = {word: [float(word in known), *code] for word, code in by_tag(training + testing).items()}
    plant(training + testing, {word: np.array(code) for word, code in marks.items()})
    seen = []
    fit = tagging.fit

    def recorded(inputs: Any, labels: Any, *more: Any) -> Any:
        seen.append((len(labels), [layer[:, 0].abs().max().item() for layer in inputs.layers]))
        return fit(inputs, labels, *more)

    monkeypatch.setattr(tagging, "fit", recorded)
    inputs = Inputs(write(tmp_path / "a", training), write(tmp_path / "b", testing), vectors=tmp_path)
    probe_pos([Planted()], inputs)  # type: ignore[list-item]
    assert len(seen) > 10
    assert {items for items, _ in seen} == {len(known)}
    assert sum(marks == [0] for _, marks in seen) >= 2, "layer 1, for tags and for the control"


@pytest.mark.parametrize(("task", "kind"), [("pos", "elmo"), ("entities", "bert"), ("dependencies", "elmo")])
def test_the_same_seed_gives_the_same_figures(task: str, kind: str, tmp_path: Path) -> None:
    words = ["cat", "dog", "mat", "sat", "ran", "the"]
    sentences = made_up(60, 1, words)
    run, written = PROBES[task]
    inputs = Inputs(written(tmp_path / "a", sentences), vectors=tmp_path / "first")
    subject = small_subject(kind, [" ".join(word for word, *_ in sentence) for sentence in sentences])
    first = run([subject], inputs)
    second = run([subject], replace(inputs, vectors=tmp_path / "second"))
    assert json.dumps(first.values()) == json.dumps(second.values())
    assert {"majority", "untrained", "static", "control", kind} <= {result.model for result in first.results}
    layers = {result.layer for result in first.results if result.model == kind}
    assert layers == {*range(subject.embedder.num_layers), "mix"}
    assert sum(first.details["mixing_weights"][kind]) == pytest.approx(1, abs=1e-4)
    assert any(note.startswith("tested on 12 sentences") for note in first.notes)


def test_a_file_of_word_vectors_takes_the_place_of_the_models_own(tmp_path: Path, plant: Callable[..., None]) -> None:
    training, testing = made_up(200, 1), made_up(50, 2)
    codes = by_tag(training + testing)
    plant(training + testing, {word: np.zeros(2) for word in codes})
    lacking = testing[0][0][0]
    lines = [f"{word} {' '.join(map(str, code))}" for word, code in codes.items() if word != lacking]
    (tmp_path / "v.txt").write_text("\n".join(lines), encoding="utf-8")
    inputs = Inputs(write(tmp_path / "a", training), write(tmp_path / "b", testing), static=tmp_path / "v.txt")
    outcome = probe_pos([Planted()], inputs)  # type: ignore[list-item]
    words = sum(map(len, testing))
    assert one(outcome, "static", 0).of is None
    assert one(outcome, "static", 0).value >= (words - 1) / words
    assert any(
        f"has {words - 1} of {words} test words as they stand, 0 in lower case, and lacks 1" in note
        for note in outcome.notes
    )


def test_what_cannot_be_probed_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a", made_up(1, 1))
    with pytest.raises(DataError, match="1 sentences, too few to learn from some and test on others"):
        probe_pos([], Inputs(path))
    with pytest.raises(DataError, match="learned from too"):
        probe_pos([], Inputs(path, path))
    with pytest.raises(ConfigError, match="--scores scores: not used with --task pos"):
        probe_pos([], Inputs(path, scores=Path("scores")))
