"""The token encoder's gradients; initial values against the original's."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.config.models import ElmoConfig
from pretrain.models.elmo import layers
from pretrain.models.elmo.layers import CharacterEmbedding, TokenEncoder
from pretrain.models.elmo.model import ElmoEncoder
from pretrain.models.elmo.recurrence import LstmStack
from pretrain.models.elmo.softmax import Softmax
from pretrain.models.elmo.tokens import character_ids

Floats = NDArray[np.float64]


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


def test_words_by_length_are_words_together(config: ElmoConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, of words of all lengths in any order, the longest filling every column."""
    torch.manual_seed(9)
    encoder = TokenEncoder(config.model_copy(update={"filters": ((1, 4), (3, 4), (7, 3))})).double()
    words = ["a" * length for length in torch.randint(0, 60, (40,)).tolist()] + ["<S>", "é" * 30]
    characters = torch.from_numpy(character_ids(words, 50).astype(np.int64))
    results = []
    for at_once in (10**6, 41, 16, 1):
        monkeypatch.setattr(layers, "WORDS_AT_ONCE", at_once)
        vectors = encoder(characters)
        results.append((vectors, *torch.autograd.grad(vectors.square().sum(), tuple(encoder.parameters()))))
    for other in results[1:]:
        for ours, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_gradients_of_a_frequent_word_are_summed_in_float32(
    config: ElmoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 times one word in each direction: a sum of 1,200 gradients of about 1, of which bfloat16 would lose most."""
    torch.manual_seed(4)
    encoder = ElmoEncoder(config).bfloat16()
    monkeypatch.setattr(encoder, "run", lambda inputs, carried: ([inputs], torch.zeros(20, 1)))
    made = []
    encoder.token_encoder.register_forward_hook(lambda module, inputs, words: made.append(words))
    index = torch.zeros(20, 30, dtype=torch.int64)
    forward, backward, _ = encoder(torch.full((1, 8), 5), index, index)
    assert forward.dtype == backward.dtype == made[0].dtype == torch.bfloat16
    gradients = [(torch.rand(20, 30, 4) + 0.5).bfloat16() for _ in range(2)]
    (gradient,) = torch.autograd.grad([forward, backward], made[0], gradients)
    expected = torch.cat(gradients).double().sum(dim=(0, 1))
    torch.testing.assert_close(gradient[0].double(), expected, rtol=2**-8, atol=0)


def test_gradients_of_a_frequent_character_are_summed_in_float32() -> None:
    torch.manual_seed(4)
    characters = CharacterEmbedding(3).bfloat16()
    vectors = characters(torch.full((500, 8), 5))
    gradients = (torch.rand(500, 8, 3) + 0.5).bfloat16()
    vectors.backward(gradients)
    assert vectors.dtype == torch.bfloat16 and characters.weight.grad is not None
    expected = gradients.double().sum(dim=(0, 1))
    torch.testing.assert_close(characters.weight.grad[5].double(), expected, rtol=2**-8, atol=0)
