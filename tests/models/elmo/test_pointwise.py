"""Triton's kernels against plain torch, in Triton's interpreter, which needs no GPU; and what is done without them."""

import importlib.util
import logging
import subprocess
import sys

import pytest
import torch

from pretrain.models.elmo import pointwise
from pretrain.models.elmo.recurrence import FusedLstm
from tests.tiny import REPOSITORY, clean_environment

TRITON = importlib.util.find_spec("triton") is not None

SCRIPT = """
import torch
from pretrain.models.elmo import pointwise
pointwise.check_kernels(pointwise.load_kernels(), torch.device("cpu"))
kernels = pointwise.load_kernels()
generator = torch.Generator().manual_seed(1)
draw = lambda *shape: torch.randn(shape, generator=generator)
from pretrain.models.elmo.recurrence import FusedLstm, reference_lstm
import pretrain.models.elmo.recurrence as recurrence
recurrence.choose_pointwise = lambda device: kernels
for clips in ((0.5, 0.4), (0.0, 0.0)):
    shapes = (2, 4, 3, 4), (2, 3, 11), (2, 8, 28), (2, 28), (2, 7, 4)
    tensors = [draw(*shape).requires_grad_() for shape in shapes]
    results = [run(*tensors, clips) for run in (reference_lstm, FusedLstm.apply)]
    gradients = [torch.autograd.grad(outputs.square().sum() + state.sum(), tensors) for outputs, state in results]
    for theirs, ours in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
from tests.models.elmo.test_pointwise import check_nan
check_nan()
print("agreed")
"""


@pytest.mark.skipif(not TRITON, reason="Triton is not installed: PyTorch's CUDA builds bring it")
def test_the_kernels_agree_with_plain_torch() -> None:
    """By themselves in two precisions, and a whole recurrence with its gradients made of them."""
    environment = clean_environment() | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "agreed\n", done.stderr[-3000:]


def test_a_wrong_kernel_is_found() -> None:
    def cell_forward(*arguments: object) -> torch.Tensor:
        return pointwise.cell_forward(*arguments) + 0.01  # type: ignore[arg-type]

    pointwise.check_kernels(pointwise.PLAIN, torch.device("cpu"))
    wrong = pointwise.Pointwise("wrong", cell_forward, pointwise.cell_backward)
    with pytest.raises(ArithmeticError, match="do not agree"):
        pointwise.check_kernels(wrong, torch.device("cpu"))


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_kernel_that_hides_nan_is_found(part: str) -> None:
    def cell_forward(*arguments: torch.Tensor) -> torch.Tensor:
        cell = pointwise.cell_forward(*arguments)  # type: ignore[arg-type]
        return cell.nan_to_num_(0.5) if part == "forward" else cell

    def cell_backward(*arguments: torch.Tensor, clip_last: bool) -> None:
        pointwise.cell_backward(*arguments, clip_last=clip_last)  # type: ignore[arg-type]
        if part == "backward":
            arguments[1].nan_to_num_(0.0)

    with pytest.raises(ArithmeticError, match="do not agree"):
        pointwise.check_kernels(pointwise.Pointwise("wrong", cell_forward, cell_backward), torch.device("cpu"))


@pytest.mark.parametrize("size", [1, 7, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_of_a_clip(dtype: torch.dtype, size: int) -> None:
    """It passes within the bound and on it, and is NaN of NaN, in vector instructions and in what is left over."""
    values = torch.tensor([[0.1], [-0.5], [0.5], [0.6], [-9.0], [torch.nan]], dtype=dtype).expand(6, size).contiguous()
    out = torch.empty_like(values)
    pointwise.unclip_into(torch.full((6, size), 2.0, dtype=dtype), values, 0.5, out=out)
    expected = torch.tensor([2, 2, 2, 0, 0, torch.nan], dtype=dtype)[:, None].expand(6, size)
    torch.testing.assert_close(out, expected, equal_nan=True)


def check_nan() -> None:
    """A row that begins with a NaN in its cells has NaN outputs and gradients; the other rows do not notice."""
    torch.manual_seed(3)
    shapes = (2, 4, 3, 4), (2, 3, 44), (2, 8, 160), (2, 160), (2, 40, 4)
    inputs, state, weight, bias, projection = (torch.randn(shape) for shape in shapes)
    state[:, 0, 4:] = torch.nan
    state.requires_grad_()
    outputs, after = FusedLstm.apply(inputs, state, weight, bias, projection, (0.5, 0.4))
    (gradient,) = torch.autograd.grad(outputs.square().sum(), state)
    for values in (outputs.transpose(1, 2), after, gradient):
        assert values[:, 0].isnan().all() and values[:, 1:].isfinite().all()


def test_nan_passes_the_clips() -> None:
    check_nan()


@pytest.mark.parametrize("failing", ["load_kernels", "check_kernels"])
def test_without_kernels_plain_torch_does_it_and_the_log_says_so(
    failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(pointwise, "load_kernels", lambda: pointwise.PLAIN)
    monkeypatch.setattr(pointwise, "check_kernels", lambda *_: None)
    choose = pointwise.choose_pointwise.__wrapped__
    with caplog.at_level(logging.INFO, logger="pretrain"):
        assert choose(torch.device("cuda")) is pointwise.PLAIN
        monkeypatch.setattr(pointwise, failing, fail)
        assert choose(torch.device("cuda")) is pointwise.PLAIN
    assert [record.getMessage() for record in caplog.records] == [
        "recurrence on cuda: Triton",
        "recurrence on cuda: plain torch, for Triton failed: no compiler",
    ]
    assert choose(torch.device("cpu")) is pointwise.PLAIN
