"""The recurrence by hand against its formulas and torch's own LSTM; its gradients; dropout."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.config.models import ElmoConfig
from pretrain.models.elmo import recurrence
from pretrain.models.elmo.recurrence import Clips, FusedLstm, LstmLayer, LstmStack, inference_lstm, reference_lstm
from tests.largest import LargestTensor

Floats = NDArray[np.float64]
BOUNDS = [(0.0, 0.0), (0.4, 0.3), (0.5, 0.0), (0.0, 0.5)]


def make_tensors(dtype: torch.dtype, *, positions: int = 5, rows: int = 3) -> list[Tensor]:
    """Inputs, state, weight, bias, projection, with P 4 and D 7."""
    shapes = (2, positions, rows, 4), (2, rows, 11), (2, 8, 28), (2, 28), (2, 7, 4)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def naive_lstm(tensors: list[Tensor], clips: Clips) -> tuple[Floats, Floats]:
    """One position of one row of one direction at a time."""
    inputs, state, weight, bias, projection = (tensor.detach().double().numpy() for tensor in tensors)
    cell_clip, projection_clip = (clip or np.inf for clip in clips)
    outputs = np.empty_like(inputs)
    for d, row in itertools.product(range(2), range(inputs.shape[2])):
        output, cell = state[d, row, :4], state[d, row, 4:]
        for t in range(inputs.shape[1]):
            i, j, f, o = np.split(np.concatenate([inputs[d, t, row], output]) @ weight[d] + bias[d], 4)
            cell = np.clip(sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(j), -cell_clip, cell_clip)
            output = np.clip((sigmoid(o) * np.tanh(cell)) @ projection[d], -projection_clip, projection_clip)
            outputs[d, t, row] = output
        state[d, row] = np.concatenate([output, cell])
    return outputs, state


@pytest.mark.parametrize("clips", BOUNDS)
def test_both_recurrences_against_a_naive_loop(clips: Clips) -> None:
    torch.manual_seed(0)
    tensors = make_tensors(torch.float32)
    outputs, state = naive_lstm([tensor.clone() for tensor in tensors], clips)
    for run in (reference_lstm, FusedLstm.apply):
        result, after = run(*tensors, clips)
        torch.testing.assert_close(result, torch.from_numpy(outputs).float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after, torch.from_numpy(state).float(), rtol=1e-5, atol=1e-6)
        if clips[1]:
            assert 0.1 < (result.abs() == clips[1]).float().mean() < 0.9, "both sides of the bound are tried"


@pytest.mark.parametrize("positions", [1, 6])
@pytest.mark.parametrize("clips", BOUNDS)
def test_gradients_by_hand_are_autograds(clips: Clips, positions: int) -> None:
    """In float64, to 1e-10: outputs, state, and the gradients of inputs, of the state and of every parameter."""
    torch.manual_seed(positions)
    tensors = make_tensors(torch.float64, positions=positions)
    weights = [torch.randn(shape, dtype=torch.float64) for shape in ((2, positions, 3, 4), (2, 3, 11))]
    results, gradients = [], []
    for run in (reference_lstm, FusedLstm.apply):
        result = run(*tensors, clips)
        results.append(result)
        loss = sum((value * weight).sum() for value, weight in zip(result, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, tensors))
    for ours, expected in (*zip(results[1], results[0], strict=True), *zip(gradients[1], gradients[0], strict=True)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
        assert expected.abs().max() > 1e-3, "there is something to compare"


def test_the_gradient_on_a_bound_passes() -> None:
    """As torch.clamp's: 1 on the bound itself, 0 beyond, although the values kept are equal there."""
    tensors = [tensor.detach().zero_() for tensor in make_tensors(torch.float64, positions=1, rows=2)]
    inputs, state, weight, bias, projection = tensors
    state[:, 0, 4:], state[:, 1, 4:] = 0.5, 0.6
    bias[:, 14:21] = 100  # the forget gate is open: the cell stays as it is
    projection.fill_(1 / 7)
    state.requires_grad_()
    for run in (reference_lstm, FusedLstm.apply):
        outputs, _ = run(inputs, state, weight, bias, projection, (0.5, 0.0))
        (gradient,) = torch.autograd.grad(outputs.sum(), state)
        assert (gradient[:, 0, 4:] > 0).all() and (gradient[:, 1, 4:] == 0).all()


def test_gradients_are_taken_once() -> None:
    tensors = make_tensors(torch.float32)
    outputs, _ = FusedLstm.apply(*tensors, (3.0, 3.0))
    outputs.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def test_two_graphs_at_once_share_no_buffer() -> None:
    """Two windows before the first backward pass, and windows of another size between."""
    torch.manual_seed(5)
    first, second = make_tensors(torch.float64), make_tensors(torch.float64)
    expected = [torch.autograd.grad(reference_lstm(*t, (0.5, 0.5))[0].sum(), t) for t in (first, second)]
    for _ in range(2):
        both = [FusedLstm.apply(*t, (0.5, 0.5))[0].sum() for t in (first, second)]
        FusedLstm.apply(*make_tensors(torch.float64, rows=2), (0.5, 0.5))[0].sum().backward()
        ours = [torch.autograd.grad(loss, t) for loss, t in zip(both, (first, second), strict=True)]
        for mine, theirs in zip(itertools.chain(*ours), itertools.chain(*expected), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 3, 9])
@pytest.mark.parametrize("clips", BOUNDS)
@pytest.mark.parametrize("lengths", [None, [7, 2, 0], [1, 3, 6]])
def test_inference_in_chunks_of_time(
    lengths: list[int] | None, clips: Clips, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 1 to all 7 positions give what the formulas give; the state that came in stays as it was."""
    torch.manual_seed(9)
    tensors = [tensor.detach() for tensor in make_tensors(torch.float64, positions=7)]
    before = tensors[1].clone()
    ends = None if lengths is None else torch.tensor(lengths)
    expected = reference_lstm(*tensors, clips, ends)
    monkeypatch.setattr(recurrence, "INFERENCE_BYTES", chunk * 2 * 3 * 28 * 8)
    for ours, theirs in zip(inference_lstm(*tensors, clips, ends), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert torch.equal(tensors[1], before)


@pytest.mark.parametrize("lengths", [None, [400, 5, 10]])
def test_without_gradients_memory_does_not_grow_with_the_text(
    config: ElmoConfig, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor is larger than the outputs of all positions or the gates of a chunk."""
    monkeypatch.setattr(recurrence, "INFERENCE_BYTES", 10 * 2 * 3 * 28 * 4)
    layer = LstmLayer(config)
    ends = None if lengths is None else torch.tensor(lengths)
    with torch.no_grad(), LargestTensor() as largest:
        layer(torch.randn(2, 400, 3, 4), torch.zeros(2, 3, 11), ends)
    assert 2 * 10 * 3 * 28 <= largest.elements <= 2 * 400 * 3 * 4


def test_after_inference_mode_there_are_gradients() -> None:
    """Memory of inference mode, which autograd refuses, is not used again."""
    tensors = make_tensors(torch.float32, positions=11)
    with torch.inference_mode():
        inference_lstm(*tensors, (0.5, 0.5))
    FusedLstm.apply(*tensors, (0.5, 0.5))[0].sum().backward()


def test_memory_for_windows_of_many_shapes_is_bounded() -> None:
    """Each shape's buffers are used again, those of earlier shapes are not kept for ever."""
    sizes = []
    for rows in range(1, 31):
        for _ in range(2):
            FusedLstm.apply(*make_tensors(torch.float32, rows=rows), (0.5, 0.5))[0].sum().backward()
        sizes.append(recurrence._pool.free_bytes() / rows)
    one_window = 2 * 5 * (28 + 3 * 7) * 4
    assert all(one_window <= size <= 4 * one_window for size in sizes[6:]), sizes


def test_half_precision_keeps_cells_and_gates_in_float32() -> None:
    torch.manual_seed(6)
    tensors = make_tensors(torch.float32)
    clips = (0.5, 0.5)
    expected, expected_state = reference_lstm(*tensors, clips)
    expected_gradients = torch.autograd.grad(expected.square().sum(), tensors)
    low = [t.detach().to(torch.float32 if number == 1 else torch.bfloat16) for number, t in enumerate(tensors)]
    low = [t.requires_grad_() for t in low]
    outputs, state = FusedLstm.apply(*low, clips)
    assert outputs.dtype == torch.bfloat16 and state.dtype == torch.float32
    gradients = torch.autograd.grad(outputs.float().square().sum(), low)
    torch.testing.assert_close(outputs.float(), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0.05)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.nn.functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0) > 0.99


def test_lengths_stop_a_row(config: ElmoConfig) -> None:
    """A row of 2 real positions among 5 is a row of 2, with zeros behind."""
    torch.manual_seed(7)
    tensors = make_tensors(torch.float64)
    inputs, state, *parameters = tensors
    outputs, after = reference_lstm(*tensors, (0.5, 0.5), torch.tensor([5, 2, 0]))
    short, short_after = reference_lstm(inputs[:, :2, 1:2], state[:, 1:2], *parameters, (0.5, 0.5))
    torch.testing.assert_close(outputs[:, :2, 1:2], short)
    assert (outputs[:, 2:, 1] == 0).all() and (outputs[:, :, 2] == 0).all()
    torch.testing.assert_close(after[:, 1:2], short_after)
    assert torch.equal(after[:, 2], state[:, 2])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_without_clips_it_is_an_lstm_with_projection() -> None:
    """Gradients too. torch orders gates i, f, g, o, and stores the forget gate's bias in full."""
    torch.manual_seed(0)
    tensors = make_tensors(torch.float32)
    inputs, state, weight, bias, projection = tensors
    outputs, after = FusedLstm.apply(*tensors, (0.0, 0.0))
    outputs.pow(2).sum().backward()

    def reorder(matrix: Tensor) -> Tensor:
        i, j, f, o = matrix.chunk(4, dim=-1)
        return torch.cat([i, f, j, o], dim=-1)

    for d in (0, 1):
        theirs = nn.LSTM(4, 7, proj_size=4)
        with torch.no_grad():
            theirs.weight_ih_l0.copy_(reorder(weight[d, :4]).T)
            theirs.weight_hh_l0.copy_(reorder(weight[d, 4:]).T)
            theirs.bias_ih_l0.copy_(reorder(bias[d]))
            theirs.bias_ih_l0[7:14] += 1
            theirs.bias_hh_l0.zero_()
            theirs.weight_hr_l0.copy_(projection[d].T)
        start = state[d, None, :, :4].detach().contiguous(), state[d, None, :, 4:].detach().contiguous()
        expected, (h, c) = theirs(inputs[d], start)
        expected.pow(2).sum().backward()
        torch.testing.assert_close(outputs[d], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after[d], torch.cat([h[0], c[0]], dim=1), rtol=1e-5, atol=1e-6)
        assert projection.grad is not None and weight.grad is not None
        torch.testing.assert_close(projection.grad[d], theirs.weight_hr_l0.grad.T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(reorder(weight.grad[d, 4:]), theirs.weight_hh_l0.grad.T, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_stack(config: ElmoConfig) -> None:
    """Against finite differences, through both clips, skip connections and the carried state."""
    torch.manual_seed(1)
    small = config.model_copy(update={"cell_clip": 0.5, "projection_clip": 0.5, "cell_size": 5})
    stack = LstmStack(small).double()
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.7)
    inputs = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 2, 2, 9, dtype=torch.float64, requires_grad=True)
    tensors = [inputs, state, *stack.parameters()]
    weights = [torch.randn(2, 3, 2, 4, dtype=torch.float64) for _ in stack.layers]

    def loss() -> Tensor:
        outputs, after = stack(inputs, state)
        return torch.stack([(o * w).sum() for o, w in zip(outputs, weights, strict=True)]).sum() + after.sin().sum()

    gradients = torch.autograd.grad(loss(), tensors)
    step = 1e-6
    for tensor, gradient in zip(tensors, gradients, strict=True):
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            tensor += step * direction
            above = loss()
            tensor -= 2 * step * direction
            below = loss()
            tensor += step * direction
        slope = ((above - below) / (2 * step)).item()
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-6, abs=1e-8)


def test_dropout_is_of_every_layers_input_and_of_what_is_added(config: ElmoConfig) -> None:
    torch.manual_seed(3)
    stack = LstmStack(config.model_copy(update={"dropout": 0.5}))
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in stack.layers:
        layer.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0], outputs[0])))
    inputs, zeros = torch.randn(2, 5, 8, 4), torch.zeros(2, 2, 8, 11)
    outputs, _ = stack(inputs, zeros)
    for (dropped, output), before, after in zip(seen, (inputs, outputs[0]), outputs, strict=True):
        kept = dropped != 0
        assert 0.3 < kept.float().mean() < 0.7
        torch.testing.assert_close(dropped[kept], 2 * before[kept])
        assert not torch.equal(kept[:, 0], kept[:, 1]), "drawn anew at every position"
        torch.testing.assert_close(after, output if before is inputs else output + dropped)
    evaluated, _ = stack.eval()(inputs, zeros)
    again, _ = stack(inputs, zeros)
    assert torch.equal(evaluated[1], again[1])


def test_a_layer_is_the_same_under_autocast_and_without(config: ElmoConfig) -> None:
    """bfloat16 products; the state stays float32."""
    torch.manual_seed(8)
    layer = LstmLayer(config)
    inputs, state = torch.randn(2, 4, 3, 4), torch.randn(2, 3, 11)
    expected, _ = layer(inputs, state)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, after = layer(inputs, state)
    assert outputs.dtype == torch.bfloat16 and after.dtype == torch.float32
    torch.testing.assert_close(outputs.float(), expected, rtol=0, atol=0.02)
    outputs.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
