"""The regression of the probes, against scikit-learn."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.probing import regression
from pretrain.probing.regression import Indicators, Inputs, fit, mix
from pretrain.probing.vectors import standardised, word_vectors
from tests.probing.small_models import small_subject

WORDS = [f"w{number}" for number in range(60)]
RNG = np.random.default_rng(3)
SENTENCES = [list(RNG.choice(WORDS, size=RNG.integers(3, 12))) for _ in range(300)]
CLASSES = 5


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    """The layers of a small ELMo over the words of all sentences, standardised."""
    subject = small_subject("elmo", [" ".join(words) for words in SENTENCES])
    vectors = word_vectors(subject, SENTENCES, tmp_path_factory.mktemp("vectors"))
    return [standardised(layer, layer[:1])[0] for layer in vectors.layers]


@pytest.fixture(scope="module")
def labels(layers: list[Tensor]) -> Tensor:
    """Labels that depend on the word before, and on chance; one of them is rare."""
    numbers = [WORDS.index(word) for sentence in SENTENCES for word in ("w0", *sentence[:-1])]
    noise = np.random.default_rng(4).random(len(numbers))
    return torch.tensor([0 if chance < 0.02 else 1 + number % 4 for number, chance in zip(numbers, noise, strict=True)])


def indicators(items: int, size: int) -> Indicators:
    """Two or three features of each item; none of the last."""
    rows = [sorted({(7 * item) % size, (item * item) % size, item % 2}) for item in range(items - 1)] + [[]]
    counts = torch.tensor([len(row) for row in rows])
    return Indicators(torch.tensor([feature for row in rows for feature in row]), counts.cumsum(0) - counts, size)


def dense(some: Indicators) -> Tensor:
    matrix = torch.zeros(len(some.starts), some.size)
    ends = [*some.starts[1:].tolist(), len(some.features)]
    for item, (start, end) in enumerate(zip(some.starts.tolist(), ends, strict=True)):
        for feature in some.features[start:end]:
            matrix[item, feature] += 1
    return matrix


def test_indicators_are_a_matrix_of_ones() -> None:
    some, rows = indicators(50, 23), torch.randn(23, 3)
    assert torch.allclose(some.sum(rows), dense(some) @ rows, atol=1e-5)
    assert torch.equal(dense(some.transposed()), dense(some).T)
    assert torch.equal(dense(some.first(20)), dense(some)[:20])
    assert Indicators(some.features[:0], torch.zeros(4, dtype=torch.long), 23).sum(rows).tolist() == [[0.0] * 3] * 4


@pytest.mark.parametrize("inverse_strength", [0.01, 1.0])
@pytest.mark.parametrize("seen", ["vectors", "indicators", "both"])
def test_a_fit_is_that_of_scikit_learn(
    layers: list[Tensor], labels: Tensor, seen: str, inverse_strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(regression, "FIRST_ITEMS", 500)  # a start from some of the items ends where any does
    vectors = [] if seen == "indicators" else [layers[2]]
    some = None if seen == "vectors" else indicators(len(labels), 40)
    matrix = torch.cat([*vectors, *([] if some is None else [dense(some)])], dim=1).double()
    theirs = LogisticRegression(C=inverse_strength, tol=1e-8, max_iter=5000).fit(matrix.numpy(), labels.numpy())

    def objective(weights: Tensor, bias: Tensor) -> float:
        loss = torch.nn.functional.cross_entropy(matrix @ weights + bias, labels)
        return float(loss + weights.square().sum() / (2 * inverse_strength * len(labels)))

    inputs = Inputs(vectors, some)
    ours = fit(inputs, labels, CLASSES, inverse_strength)
    best = objective(torch.from_numpy(theirs.coef_.T), torch.from_numpy(theirs.intercept_))
    found = objective(torch.cat([ours.weights, ours.indicator_weights]).double(), ours.bias.double())
    assert found == pytest.approx(ours.objective, rel=1e-5)
    assert best - 1e-9 <= found < best * (1 + 1e-5)
    assert np.mean(ours.predict(inputs).numpy() == theirs.predict(matrix.numpy())) > 0.998
    assert ours.steps < regression.MAX_STEPS


def test_a_mix_learns_where_the_labels_are(layers: list[Tensor], labels: Tensor) -> None:
    noise = torch.randn(len(labels), layers[0].shape[1], generator=torch.Generator().manual_seed(1))
    found = fit(Inputs([noise, layers[2], noise.flip(0)]), labels, CLASSES)
    assert found.mixing.sum() == pytest.approx(1)
    assert found.mixing[1] > 0.9
    alone = fit(Inputs([layers[2]]), labels, CLASSES)
    equal = fit(Inputs([mix([noise, layers[2], noise.flip(0)], torch.full((3,), 1 / 3))]), labels, CLASSES)
    assert found.objective < alone.objective + 0.02 < equal.objective


def test_the_mixed_objective_and_its_gradient_are_those_of_a_formula(layers: list[Tensor], labels: Tensor) -> None:
    search = regression._Search(Inputs(layers, indicators(len(labels), 9)), labels, CLASSES, 1e-3)
    generator = torch.Generator().manual_seed(2)
    parameters = [torch.randn(zero.shape, generator=generator) * 0.1 for zero in search.zeros()]
    bias, mixing, weights, rows = [tensor.double() for tensor in search.unscaled(parameters)]
    assert all(
        torch.allclose(there, back, atol=1e-4)
        for there, back in zip(parameters, search.scaled(search.unscaled(parameters)), strict=True)
    )

    def formula(mixing: Tensor) -> Tensor:
        shares = mixing.exp() / mixing.exp().sum()
        mixed = torch.einsum("l,liw->iw", shares, torch.stack(layers).double())
        logits = mixed @ weights + dense(indicators(len(labels), 9)).double() @ rows + bias
        losses = logits.logsumexp(dim=1) - logits[torch.arange(len(labels)), labels]
        return losses.mean() + 0.5e-3 * (weights.square().sum() + rows.square().sum())

    for parameter in parameters:
        parameter.requires_grad_()
    objective = search.objective(parameters)
    assert float(objective.detach()) == pytest.approx(float(formula(mixing)), rel=1e-5)
    gradients = torch.autograd.grad(objective, parameters)
    for layer in range(len(layers)):
        step = torch.zeros_like(mixing)
        step[layer] = 1e-5
        slope = (formula(mixing + step) - formula(mixing - step)) / 2e-5
        assert float(gradients[1][layer]) == pytest.approx(float(slope), rel=1e-2, abs=1e-5)


def test_vectors_are_standardised_by_the_training_part() -> None:
    training = RNG.normal(3, [0.5, 7, 0], (200, 3)).astype(np.float32)
    testing = RNG.normal(3, [0.5, 7, 1], (50, 3)).astype(np.float32)
    ours, tested = standardised(training, testing)
    mean, deviation = training.astype(float).mean(0), training.astype(float).std(0)
    assert np.allclose(ours.numpy()[:, :2], (training - mean)[:, :2] / deviation[:2], atol=1e-5)
    assert np.allclose(tested.numpy()[:, :2], (testing - mean)[:, :2] / deviation[:2], atol=1e-5)
    assert not ours[:, 2].any() and not tested[:, 2].any(), "a dimension that is constant says nothing"
