"""The cell against plain loops and torch's own LSTM, initialisers against the original's, losses against formulas."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.models import ElmoConfig
from pretrain.models.elmo import layers
from pretrain.models.elmo.layers import LstmLayer, LstmStack, Softmax, TokenEncoder

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


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradients_of_the_token_encoder(config: ElmoConfig, activation: str) -> None:
    torch.manual_seed(2)
    encoder = TokenEncoder(config.model_copy(update={"activation": activation})).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    names = [name for name, _ in encoder.named_parameters()]
    characters = torch.randint(0, 261, (2, 9))

    def run(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(encoder, dict(zip(names, parameters, strict=True)), (characters,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, tuple(encoder.parameters()), fast_mode=True)


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


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_initial_values(activation: str) -> None:
    """The distributions of the released trainer, as its untrained dumps show them."""
    torch.manual_seed(0)
    config = ElmoConfig(
        filters=((1, 64), (5, 192)), activation=activation, num_highways=1, cell_size=96, projection_size=64
    )
    encoder, stack, softmax = TokenEncoder(config), LstmStack(config), Softmax(1000, 64)
    for module in (encoder, stack, softmax):
        module.requires_grad_(False)
    assert encoder.characters.weight.abs().max() == pytest.approx(1, abs=0.01)
    wide = encoder.convolutions[1].weight
    if activation == "relu":
        assert wide.abs().max() == pytest.approx(0.05, abs=0.001)
        assert wide.std() == pytest.approx(0.05 / math.sqrt(3), rel=0.05)
    else:
        assert wide.std() == pytest.approx(1 / math.sqrt(16 * 5), rel=0.05)
    highway = encoder.highways[0]
    assert highway.transform.weight.std() == pytest.approx(1 / 16, rel=0.05)
    assert highway.carry.weight.std() == pytest.approx(1 / 16, rel=0.05)
    assert encoder.projection.weight.std() == pytest.approx(1 / 16, rel=0.05)
    assert (highway.carry.bias == -2).all()
    layer = stack.layers[0]
    assert layer.weight.abs().max() == pytest.approx(math.sqrt(6 / (128 + 384)), rel=0.01)
    assert layer.projection.abs().max() == pytest.approx(math.sqrt(6 / (96 + 64)), rel=0.01)
    assert softmax.weight.std() == pytest.approx(1 / 8, rel=0.05)
    biases = (highway.transform.bias, encoder.projection.bias, layer.bias, softmax.bias, encoder.convolutions[0].bias)
    assert all((bias == 0).all() for bias in biases)


def make_softmax() -> tuple[Softmax, Tensor, Tensor]:
    torch.manual_seed(4)
    softmax = Softmax(50, 4)
    nn.init.normal_(softmax.bias)
    targets = torch.randint(0, 50, (12,))
    targets[3] = -100
    return softmax, 2 * torch.randn(12, 4), targets


@pytest.mark.parametrize("at_once", [1, 150, 10**6])
def test_full_softmax(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(layers, "_LOGITS_AT_ONCE", at_once)
    softmax, hidden, targets = make_softmax()
    weight, bias = (p.detach().double().numpy() for p in softmax.parameters())
    expected = 0.0
    for h, target in zip(hidden.double().numpy(), targets.tolist(), strict=True):
        logits = weight @ h + bias
        expected += np.log(np.exp(logits).sum()) - logits[target] if target >= 0 else 0.0
    loss = softmax(hidden, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert softmax(hidden, torch.full((12,), -100)).item() == 0


@pytest.mark.parametrize("candidates", [[3, 0, 17, 8, 40, 1], list(range(49)), [7]])
def test_sampled_softmax(candidates: list[int]) -> None:
    """Logits less log expected counts; a candidate that is the target does not count as a negative."""
    softmax, hidden, targets = make_softmax()
    targets[0] = 7
    num_tries = 3 * len(candidates)
    weight, bias = (p.detach().double().numpy() for p in softmax.parameters())
    ids = np.arange(50)
    probability = (np.log(ids + 2) - np.log(ids + 1)) / np.log(51)
    log_expected = np.log(1 - (1 - probability) ** num_tries)
    expected = 0.0
    for h, target in zip(hidden.double().numpy(), targets.tolist(), strict=True):
        logits = weight @ h + bias - log_expected
        chosen = [target, *(c for c in candidates if c != target)]
        expected += np.log(np.exp(logits[chosen]).sum()) - logits[target] if target >= 0 else 0.0
    loss = softmax(hidden, targets, torch.tensor(candidates), num_tries)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in softmax.parameters() if p.grad is not None)


def test_sampled_softmax_makes_no_dense_logits() -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.elements = max(self.elements, result.numel())
            return result

    softmax = Softmax(2000, 4)
    with Largest() as largest:
        softmax(torch.randn(64, 4), torch.randint(0, 2000, (64,)), torch.arange(32), 40).backward()
    assert 64 * 32 <= largest.elements <= 2000 * 4, "a gradient of the weights, but not 64 x 2000 logits"
