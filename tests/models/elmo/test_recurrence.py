"""The cell against plain loops and torch's own LSTM; its gradients; dropout."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.config.models import ElmoConfig
from pretrain.models.elmo.recurrence import LstmLayer, LstmStack

Floats = NDArray[np.float64]


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def naive_lstm(layer: LstmLayer, inputs: Tensor, state: Tensor, *, clip: float) -> tuple[Floats, Floats]:
    """One position of one row at a time, in float64."""
    weight, bias, projection = (p.detach().double().numpy() for p in (layer.weight, layer.bias, layer.projection))
    size = projection.shape[1]
    outputs, states = [], []
    for row, row_state in zip(inputs.double().numpy(), state.double().numpy(), strict=True):
        output, memory = row_state[:size], row_state[size:]
        row_outputs = []
        for x in row:
            i, j, f, o = np.split(np.concatenate([x, output]) @ weight + bias, 4)
            memory = np.clip(sigmoid(f + 1) * memory + sigmoid(i) * np.tanh(j), -clip, clip)
            output = np.clip((sigmoid(o) * np.tanh(memory)) @ projection, -clip, clip)
            row_outputs.append(output)
        outputs.append(row_outputs)
        states.append(np.concatenate([output, memory]))
    return np.array(outputs), np.array(states)


def make_layer(config: ElmoConfig, clip: float) -> LstmLayer:
    layer = LstmLayer(config.model_copy(update={"cell_clip": clip, "projection_clip": clip}))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.8)
    return layer


@pytest.mark.parametrize("clip", [0.0, 0.4])
def test_cell_against_a_naive_loop(config: ElmoConfig, clip: float) -> None:
    torch.manual_seed(0)
    layer = make_layer(config, clip)
    inputs, state = torch.randn(3, 6, 4), torch.randn(3, 11)
    outputs, after = naive_lstm(layer, inputs, state, clip=clip or math.inf)
    result, result_state = layer(inputs, state)
    torch.testing.assert_close(result, torch.from_numpy(outputs).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result_state, torch.from_numpy(after).float(), rtol=1e-5, atol=1e-6)
    if clip:
        assert 0.1 < (result.abs() == clip).float().mean() < 0.9, "both sides of the bound are tried"


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_cell_without_clips_is_an_lstm_with_projection(config: ElmoConfig) -> None:
    """Gradients too. torch orders gates i, f, g, o, and stores the forget gate's bias in full."""
    torch.manual_seed(0)
    layer = make_layer(config, 0.0)
    theirs = nn.LSTM(4, 7, proj_size=4, batch_first=True)

    def reorder(matrix: Tensor) -> Tensor:
        i, j, f, o = matrix.chunk(4, dim=-1)
        return torch.cat([i, f, j, o], dim=-1)

    with torch.no_grad():
        theirs.weight_ih_l0.copy_(reorder(layer.weight[:4]).T)
        theirs.weight_hh_l0.copy_(reorder(layer.weight[4:]).T)
        theirs.bias_ih_l0.copy_(reorder(layer.bias))
        theirs.bias_ih_l0[7:14] += 1
        theirs.bias_hh_l0.zero_()
        theirs.weight_hr_l0.copy_(layer.projection.T)
    inputs, state = torch.randn(3, 6, 4), torch.randn(3, 11)
    ours, state_after = layer(inputs, state)
    expected, (h, c) = theirs(inputs, (state[None, :, :4].contiguous(), state[None, :, 4:].contiguous()))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state_after, torch.cat([h[0], c[0]], dim=1), rtol=1e-5, atol=1e-6)
    ours.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    torch.testing.assert_close(layer.projection.grad, theirs.weight_hr_l0.grad.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reorder(layer.weight.grad[4:]), theirs.weight_hh_l0.grad.T, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_stack(config: ElmoConfig) -> None:
    """Against finite differences, through both clips, skip connections and the carried state."""
    torch.manual_seed(1)
    small = config.model_copy(update={"cell_clip": 0.5, "projection_clip": 0.5, "cell_size": 5})
    stack = LstmStack(small).double()
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.7)
    names = [name for name, _ in stack.named_parameters()]

    def run(inputs: Tensor, state: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(names, parameters, strict=True))
        outputs, after = torch.func.functional_call(stack, values, (inputs, state))
        return (*outputs, after)

    inputs = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, stack.state_size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (inputs, state, *stack.parameters()), fast_mode=False)


def test_dropout_is_of_every_layers_input_and_of_what_is_added(config: ElmoConfig) -> None:
    torch.manual_seed(3)
    stack = LstmStack(config.model_copy(update={"dropout": 0.5}))
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in stack.layers:
        layer.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0], outputs[0])))
    inputs = torch.randn(8, 5, 4)
    outputs, _ = stack(inputs, torch.zeros(8, stack.state_size))
    for (dropped, said), before, after in zip(seen, (inputs, outputs[0]), outputs, strict=True):
        kept = dropped != 0
        assert 0.3 < kept.float().mean() < 0.7
        torch.testing.assert_close(dropped[kept], 2 * before[kept])
        assert not torch.equal(kept[:, 0], kept[:, 1]), "drawn anew at every position"
        torch.testing.assert_close(after, said if before is inputs else said + dropped)
    evaluated, _ = stack.eval()(inputs, torch.zeros(8, stack.state_size))
    again, _ = stack(inputs, torch.zeros(8, stack.state_size))
    assert torch.equal(evaluated[1], again[1])
