"""Classification: the regression against scikit-learn, planted classes, and the file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.errors import ConfigError, DataError
from pretrain.probing.classification import Labelled, probe_classification, read_labelled
from pretrain.probing.logistic import Features, fit_best, fit_logistic
from pretrain.probing.results import Outcome
from pretrain.probing.tasks import Inputs
from pretrain.probing.vectors import standardised
from tests.probing.small_models import small_subject


def data(number: int = 90, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, number)
    return (rng.normal(size=(number, 6)) + rng.normal(size=(classes, 6))[labels]).astype(np.float32), labels


@pytest.mark.parametrize("inverse_strength", [0.01, 1.0])
def test_the_regression_is_that_of_scikit_learn(inverse_strength: float) -> None:
    from sklearn.linear_model import LogisticRegression

    vectors, labels = data()
    theirs = LogisticRegression(C=inverse_strength, tol=1e-8, max_iter=1000).fit(vectors, labels)
    dense = Features.dense(torch.from_numpy(vectors))
    sparse = Features.sparse([dict(enumerate(row)) for row in vectors.tolist()], 6)
    for features in (dense, sparse):
        ours = fit_logistic(features, torch.from_numpy(labels), 3, inverse_strength)
        assert np.allclose(ours.weights.T.numpy(), theirs.coef_, atol=2e-3)
        assert ours.predict(features).tolist() == theirs.predict(vectors).tolist()
        again = fit_logistic(features, torch.from_numpy(labels), 3, inverse_strength, ours)
        assert np.allclose(again.weights.numpy(), ours.weights.numpy(), atol=1e-3)


def test_the_strength_is_chosen_on_a_fifth_and_the_fit_is_of_all() -> None:
    vectors, labels = data(60)
    features, answers = Features.dense(torch.from_numpy(vectors)), torch.from_numpy(labels)
    order = torch.from_numpy(np.random.default_rng(2).permutation(60))
    strengths = (1e-4, 1e-2, 1.0)
    right = []
    for strength in strengths:
        fitted = fit_logistic(features.rows(order[12:]), answers[order[12:]], 3, strength)
        right.append(int((fitted.predict(features.rows(order[:12])) == answers[order[:12]]).sum()))
    fitted, chosen = fit_best(features, answers, 3, strengths, order)
    assert len({*right}) > 1 and chosen == strengths[int(np.argmax(right))]
    assert torch.allclose(fitted.weights, fit_logistic(features, answers, 3, chosen).weights)


def test_vectors_are_standardised_by_the_training_part_alone() -> None:
    rows = np.random.default_rng(1).normal(3, 2, size=(50, 4)).astype(np.float32)
    rows[:, 3] = 7
    scaled = torch.cat(standardised(rows[:40], rows[40:])).numpy()
    expected = (rows - rows[:40].mean(axis=0)) / np.maximum(rows[:40].std(axis=0), 1e-6)
    assert np.allclose(scaled, expected, atol=1e-4)
    assert not scaled[:, 3].any()


def texts(number: int, seed: int) -> list[Labelled]:
    """Whether a word of one kind or of the other stands among many that say nothing."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        label = int(rng.integers(0, 2))
        words = [
            *rng.choice(["on", "the", "of", "and", "a", "to"], 5),
            (("cat", "dog"), ("sun", "sky"))[label][rng.integers(2)],
        ]
        found.append(Labelled(("animal", "weather")[label], " ".join(rng.permutation(words))))
    return found


def write(path: Path, items: list[Labelled]) -> Path:
    path.write_text("".join(f"{item.label}\t{item.text}\n" for item in items), encoding="utf-8")
    return path


def figures(outcome: Outcome) -> dict[tuple[str, object], float]:
    return {(r.model, r.layer): r.value for r in outcome.results}


@pytest.mark.parametrize("kind", ["elmo", "bert"])
def test_a_planted_class_is_found(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "f.tsv", texts(150, 1))
    subject = small_subject(kind, [item.text for item in texts(20, 1)])
    outcome = probe_classification([subject], Inputs(path, vectors=tmp_path / "vectors"))
    found = figures(outcome)
    assert found["static", 0] == 1
    assert found[kind, 0] > 0.9 and found["majority", 0] < 0.7
    assert [(r.model, r.layer) for r in outcome.results if r.of == kind] == [("untrained", layer) for layer in range(3)]
    assert outcome == probe_classification([subject], Inputs(path, vectors=tmp_path / "again"))


def test_labels_without_a_pattern_are_not_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    some = [Labelled("xy"[rng.integers(2)], item.text) for item in texts(400, 4)]
    found = figures(probe_classification([], Inputs(write(tmp_path / "f.tsv", some))))
    assert 0.3 < found["static", 0] < 0.7


def test_the_majority_is_that_of_the_training_part_and_unknown_labels_are_wrong(tmp_path: Path) -> None:
    train = write(tmp_path / "train.tsv", [Labelled("x", "a b")] * 6 + [Labelled("y", "c")] * 5)
    test = write(tmp_path / "test.tsv", [Labelled("y", "c")] * 3 + [Labelled("z", "c"), Labelled("x", "b a")])
    outcome = probe_classification([], Inputs(train, test))
    assert figures(outcome) == {("majority", 0): 0.2, ("static", 0): 0.8}
    assert "2 classes: x 6, y 5" in outcome.notes
    assert "1 test texts have a label that no text to learn from has: always wrong" in outcome.notes
    assert "4 of 5 test texts stand word for word in the training part too" in outcome.notes


def test_the_files(tmp_path: Path) -> None:
    expected = [Labelled("1", 'so "good'), Labelled("0", "bad")]
    for text in (
        '1\tso "good\n0\tbad\n',
        'Sentence\tLabel\nso "good\t1\nbad\t0\n',
        'id\tlabel\ttext\n7\t1\tso "good\n8\t0\tbad\n',
    ):
        path = tmp_path / "f.tsv"
        path.write_text(text, encoding="utf-8")
        assert read_labelled(path) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "good\n",
            "line 1: expected 2 cells, those of label, text not blank, separated by tabs (or a first line of names",
        ),
        ("label\treview\n1\tgood\n", "line 1: names columns, but not text or sentence: 2: label<TAB>review"),
        (
            "text\tlabel\ngood\t1\nbad\n",
            "line 3: expected 2 cells, those of label, text not blank, separated by tabs; found 1",
        ),
        ("x\ta\n" * 9, ": all 7 texts to learn from have the label 'x'"),
    ],
)
def test_a_wrong_file(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "f.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        probe_classification([], Inputs(path))
    assert str(raised.value).startswith(str(path)) and said in str(raised.value)
    with pytest.raises(ConfigError, match=r"--static .*: not used with --task classification: it is a regression on"):
        probe_classification([], Inputs(path, static=path))
