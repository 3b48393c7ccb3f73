"""Losses of the full and the sampled softmax against formulas."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.models.elmo import softmax
from pretrain.models.elmo.softmax import Softmax
from tests.largest import LargestTensor

Floats = NDArray[np.float64]


def make_softmax() -> tuple[Softmax, Tensor, Tensor]:
    torch.manual_seed(4)
    softmax = Softmax(50, 4)
    nn.init.normal_(softmax.bias)
    labels = torch.randint(0, 50, (12,))
    labels[3] = -100
    return softmax, 2 * torch.randn(12, 4), labels


@pytest.fixture(params=[(1, 30), (5, 85), (6, 150), (10**6, 10**9)], ids=str)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Most positions, and logits, at a time: 12 positions and 50 words are one block, or several, full or not."""
    positions, logits = request.param
    monkeypatch.setitem(softmax._BLOCK_POSITIONS, "cpu", positions)
    monkeypatch.setitem(softmax._BLOCK_LOGITS, "cpu", logits)
    return positions, logits


@pytest.mark.usefixtures("blocks")
def test_full_softmax() -> None:
    module, hidden, labels = make_softmax()
    weight, bias = (p.detach().double().numpy() for p in module.parameters())
    expected = []
    for h, label in zip(hidden.double().numpy(), labels.tolist(), strict=True):
        logits = weight @ h + bias
        expected.append(np.log(np.exp(logits).sum()) - logits[label] if label >= 0 else 0.0)
    losses = module(hidden, labels)
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
    assert module(hidden, torch.full((12,), -100)).tolist() == [0.0] * 12


@pytest.mark.usefixtures("blocks")
def test_gradients_of_the_full_softmax() -> None:
    """Those of cross-entropy over all logits; and, in float64, those of finite differences."""
    module, hidden, labels = make_softmax()
    hidden.requires_grad_()
    weights = torch.rand(12)
    losses = F.cross_entropy(F.linear(hidden, module.weight, module.bias), labels, reduction="none")
    inputs = [hidden, *module.parameters()]
    expected = torch.autograd.grad(losses @ weights, inputs)
    found = torch.autograd.grad(module(hidden, labels) @ weights, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not found[0][3].any(), "an ignored position gives no gradient"

    def of(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (hidden, labels))

    torch.autograd.gradcheck(of, [x.detach().double().requires_grad_() for x in inputs])


@pytest.mark.parametrize("autocast", [False, True])
def test_sums_are_exact_though_products_are_in_bfloat16(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 equal logits: bfloat16 cannot count so far, nor add 512 gradients of 1 / 4,096 to one of 1."""
    monkeypatch.setitem(softmax._BLOCK_LOGITS, "cpu", 512 * 16)
    module = Softmax(4096, 2)
    nn.init.zeros_(module.weight)
    hidden = torch.ones(512, 2, requires_grad=True)
    if not autocast:
        module, hidden = module.bfloat16(), hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = module(hidden, torch.zeros(512, dtype=torch.int64))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, torch.full((512,), 4096.0).log(), rtol=1e-6, atol=0)
    losses.mean().backward()
    assert module.bias.grad is not None and module.weight.grad is not None and hidden.grad is not None
    assert (module.bias.grad.dtype, hidden.grad.dtype) == (module.bias.dtype, hidden.dtype)
    expected = torch.full((4096,), 1 / 4096)
    expected[0] -= 1
    for gradient in (module.bias.grad, module.weight.grad[:, 0]):
        torch.testing.assert_close(gradient.float(), expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("candidates", [[3, 0, 17, 8, 40, 1], list(range(49)), [7]])
def test_sampled_softmax(candidates: list[int]) -> None:
    """Logits less log expected counts; a candidate that is the label does not count as a negative."""
    module, hidden, labels = make_softmax()
    labels[0] = 7
    num_tries = 3 * len(candidates)
    weight, bias = (p.detach().double().numpy() for p in module.parameters())
    ids = np.arange(50)
    probability = (np.log(ids + 2) - np.log(ids + 1)) / np.log(51)
    log_expected_count = np.log(1 - (1 - probability) ** num_tries)
    expected = []
    for h, label in zip(hidden.double().numpy(), labels.tolist(), strict=True):
        logits = weight @ h + bias - log_expected_count
        chosen = [label, *(c for c in candidates if c != label)]
        expected.append(np.log(np.exp(logits[chosen]).sum()) - logits[label] if label >= 0 else 0.0)
    losses = module(hidden, labels, torch.tensor(candidates), num_tries)
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    losses.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("sampled", [False, True])
def test_there_are_no_dense_logits(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(softmax._BLOCK_LOGITS, "cpu", 64 * 32)
    module = Softmax(2000, 4)
    with LargestTensor() as largest:
        arguments = (torch.arange(32), 40) if sampled else ()
        module(torch.randn(64, 4), torch.randint(0, 2000, (64,)), *arguments).sum().backward()
    assert 64 * 32 <= largest.elements <= 2000 * 4, "a gradient of the weights, but not 64 x 2000 logits"


MEASURE = """
import torch
from pathlib import Path
from pretrain.models.elmo.softmax import Softmax

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

with torch.device("meta"):
    module = Softmax(793_471, 512)
module.to_empty(device="cpu")
with torch.no_grad():
    module.weight.fill_(0.01)
    module.bias.zero_()
    before = peak()
    losses = module(torch.ones(400, 512), torch.arange(400) * 1980)
assert torch.allclose(losses, torch.tensor(793_471.0).log())
print(peak() - before)
"""


@pytest.mark.slow
def test_the_original_vocabulary_is_evaluated_in_little_memory() -> None:
    """All 400 x 793,471 logits would be 1.3 GB; a block of them is 4 MB."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**28
