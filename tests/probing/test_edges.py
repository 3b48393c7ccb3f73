"""The classifier of edges against a formula, and published figures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.probing.edges import EdgeClassifier, edges, whitening_of
from pretrain.probing.published import published
from pretrain.probing.sentences import Sentence


def test_an_edge_is_a_word_beside_its_head_and_a_root_beside_itself() -> None:
    first = Sentence(["a", "b"], ["_", "_"], heads=[1, 1], relations=["x", "root"])
    second = Sentence(["c", "d", "e"], ["_"] * 3, heads=[0, 0, 1], relations=["root", "y", "z"])
    items, heads = edges([first, second])
    assert items.words == ["a", "b", "c", "d", "e"]
    assert items.labels == ["x", "root", "root", "y", "z"]
    assert items.sentences.tolist() == [0, 0, 1, 1, 1]
    assert heads.tolist() == [1, 1, 2, 2, 3]


def test_the_classifier_and_the_gradient_of_its_mix_are_those_of_a_formula() -> None:
    torch.manual_seed(1)
    model = EdgeClassifier(layers=3, width=4, classes=5).double().eval()
    torch.nn.init.normal_(model.mixing)
    layers = torch.randn(3, 7, 4).double()
    words, heads, labels = torch.tensor([0, 3, 6, 2]), torch.tensor([1, 3, 0, 6]), torch.tensor([4, 0, 2, 2])

    def formula(mixing: np.ndarray) -> np.ndarray:
        of = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
        shares = np.exp(mixing) / np.exp(mixing).sum()
        mixed = sum(share * layer for share, layer in zip(shares, layers.numpy(), strict=True))
        both = np.concatenate([mixed[words.numpy()], mixed[heads.numpy()]], axis=1)
        hidden = np.tanh(both @ of["hidden.weight"].T + of["hidden.bias"])
        hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
        hidden = hidden * of["norm.weight"] + of["norm.bias"]
        logits: np.ndarray = hidden @ of["output.weight"].T + of["output.bias"]
        return logits

    def loss(mixing: np.ndarray) -> float:
        logits = formula(mixing)
        return float((np.log(np.exp(logits).sum(1)) - logits[range(4), labels.numpy()]).mean())

    mixing = model.mixing.detach().numpy().copy()
    logits = model(list(layers), words, heads)
    assert np.allclose(logits.detach().numpy(), formula(mixing), atol=1e-12)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    for layer in range(3):
        step = np.eye(3)[layer] * 1e-6
        slope = (loss(mixing + step) - loss(mixing - step)) / 2e-6
        assert model.mixing.grad is not None
        assert float(model.mixing.grad[layer]) == pytest.approx(slope, abs=1e-8)


def test_whitened_vectors_vary_equally_in_all_directions() -> None:
    vectors = torch.randn(4000, 5) @ torch.randn(5, 5)
    white = vectors @ whitening_of(vectors)
    covariance = white.T @ white / len(white)
    assert torch.allclose(covariance, torch.eye(5), atol=0.1)


def test_published_figures_are_of_one_treebank_only(tmp_path: Path) -> None:
    ewt, other = tmp_path / "ewt.conllu", tmp_path / "other.conllu"
    line = "1\ta\t_\tX\t_\t_\t0\troot\t_\t_\n"
    names = ("weblog-blogspot.com_nominations_20041117172713_ENG_20041117_172713-0001", "reviews-275919-0003")
    ewt.write_text("".join(f"# sent_id = {name}\n{line}\n" for name in names), encoding="utf-8")
    other.write_text(f"# sent_id = {names[0]}\n{line}\n# sent_id = GUM_academic-1\n{line}\n", encoding="utf-8")
    results, sources = published("dependencies", ewt)
    figures = {result.of: result for result in results}
    assert len(figures) == len(results) == 7
    best = figures["ELMo"]
    assert (best.model, best.layer, best.metric, best.value) == ("published", "mix", "accuracy", 0.942093)
    assert (round(best.low, 4), round(best.high, 4)) == (0.9393, 0.9449)
    assert len(sources) == 1 and "Tenney et al. 2019" in sources[0]
    assert published("dependencies", other) == ([], [])
    assert published("pos", ewt) == ([], [])
