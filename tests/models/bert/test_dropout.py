"""Dropout of our own: shares and scales, and attention against torch's formula with the same elements dropped."""

import pytest
import torch
from torch import Tensor

from pretrain.models.bert import dropout
from pretrain.models.bert.dropout import Dropout, DropoutAttention, draw_mask


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.97])
def test_as_many_are_dropped_as_are_asked_for_each_by_itself(probability: float) -> None:
    torch.manual_seed(0)
    mask = draw_mask(torch.Size([1001, 999]), probability, torch.float32)
    kept, scale = mask > 0, mask.max().item()
    assert torch.equal(mask, kept * scale)
    deviation = (probability * (1 - probability) / kept.numel()) ** 0.5
    assert kept.double().mean().item() == pytest.approx(1 - probability, abs=4 * deviation + 2**-16)
    assert scale == pytest.approx(1 / (1 - probability), rel=1e-3)
    # Four elements come from one number: neighbours must not know of each other, whichever of the four they are.
    flat = kept.flatten()[: kept.numel() // 4 * 4].view(-1, 4).double() - (1 - probability)
    covariance = flat.T @ flat / len(flat)
    assert (covariance - covariance.diag().diag()).abs().max() < 5 * probability * (1 - probability) / len(flat) ** 0.5


def test_what_is_kept_is_scaled_and_nothing_happens_in_eval_mode() -> None:
    module = Dropout(0.25)
    x = torch.randn(100, 50, requires_grad=True)
    torch.manual_seed(1)
    y = module(x)
    kept = y != 0
    assert 0.6 < kept.float().mean() < 0.9
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept / 0.75)
    torch.manual_seed(1)
    assert torch.equal(module(x), y) and not torch.equal(module(x), y)
    assert module.eval()(x) is x
    assert Dropout(0.0)(x) is x


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """By its formula."""
    return ((query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1) * mask) @ value


def test_attention_agrees_with_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    three = [torch.randn(3, 17, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = torch.randn(3, 17, 8, dtype=torch.float64)
    mask = draw_mask(torch.Size([3, 17, 17]), 0.3, torch.float64)
    monkeypatch.setattr(dropout, "draw_mask", lambda shape, probability, dtype: mask)
    expected, actual = attention(*three, mask), DropoutAttention.apply(*three, 0.3)
    torch.testing.assert_close(actual, expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, three, weights) for y in (actual, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_in_16_bits_is_near() -> None:
    torch.manual_seed(0)
    three = [torch.randn(3, 40, 16) for _ in range(3)]
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype).requires_grad_() for x in three]
        torch.manual_seed(1)
        mixed = DropoutAttention.apply(*inputs, 0.2)
        assert mixed.dtype == dtype
        outputs.append(torch.stack([mixed, *torch.autograd.grad(mixed.sum(), inputs)]).float())
    assert (outputs[0] - outputs[1]).norm() < 0.02 * outputs[0].norm()
