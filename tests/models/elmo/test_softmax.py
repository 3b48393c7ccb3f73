"""Losses of the full and the sampled softmax against formulas."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.models.elmo import softmax
from pretrain.models.elmo.softmax import Softmax

Floats = NDArray[np.float64]


def make_softmax() -> tuple[Softmax, Tensor, Tensor]:
    torch.manual_seed(4)
    softmax = Softmax(50, 4)
    nn.init.normal_(softmax.bias)
    targets = torch.randint(0, 50, (12,))
    targets[3] = -100
    return softmax, 2 * torch.randn(12, 4), targets


@pytest.mark.parametrize("at_once", [1, 150, 10**6])
def test_full_softmax(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(softmax, "_LOGITS_AT_ONCE", at_once)
    module, hidden, targets = make_softmax()
    weight, bias = (p.detach().double().numpy() for p in module.parameters())
    expected = 0.0
    for h, target in zip(hidden.double().numpy(), targets.tolist(), strict=True):
        logits = weight @ h + bias
        expected += np.log(np.exp(logits).sum()) - logits[target] if target >= 0 else 0.0
    loss = module(hidden, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert module(hidden, torch.full((12,), -100)).item() == 0


@pytest.mark.parametrize("candidates", [[3, 0, 17, 8, 40, 1], list(range(49)), [7]])
def test_sampled_softmax(candidates: list[int]) -> None:
    """Logits less log expected counts; a candidate that is the target does not count as a negative."""
    module, hidden, targets = make_softmax()
    targets[0] = 7
    num_tries = 3 * len(candidates)
    weight, bias = (p.detach().double().numpy() for p in module.parameters())
    ids = np.arange(50)
    probability = (np.log(ids + 2) - np.log(ids + 1)) / np.log(51)
    log_expected = np.log(1 - (1 - probability) ** num_tries)
    expected = 0.0
    for h, target in zip(hidden.double().numpy(), targets.tolist(), strict=True):
        logits = weight @ h + bias - log_expected
        chosen = [target, *(c for c in candidates if c != target)]
        expected += np.log(np.exp(logits[chosen]).sum()) - logits[target] if target >= 0 else 0.0
    loss = module(hidden, targets, torch.tensor(candidates), num_tries)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_sampled_softmax_makes_no_dense_logits() -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.elements = max(self.elements, result.numel())
            return result

    module = Softmax(2000, 4)
    with Largest() as largest:
        module(torch.randn(64, 4), torch.randint(0, 2000, (64,)), torch.arange(32), 40).backward()
    assert 64 * 32 <= largest.elements <= 2000 * 4, "a gradient of the weights, but not 64 x 2000 logits"
