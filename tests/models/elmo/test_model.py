"""The encoder: published vectors, batches of unlike lengths, carried states. Its values: `test_oracle.py`."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.errors import ConfigError
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.model import ElmoEncoder, build_model
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer, character_ids
from pretrain.models.family import Pieces

SharedData = Callable[[str], Path]


def pieces(*texts: str) -> list[Pieces]:
    return [WordTokenizer(SPECIAL_WORDS).pieces(text) for text in texts]


def test_published_vectors(shared_data: SharedData) -> None:
    """30 sentences, three rows, states carried: what AllenNLP and bilm-tf agree on (the fixture's README)."""
    folder = shared_data("elmo_fixtures/skip_and_clips")
    model = FAMILY.format.read(folder)
    rows = json.loads((folder / "sentences.json").read_text(encoding="utf-8"))
    carried, compared = None, 0
    for number, texts in enumerate(zip(*rows, strict=True)):
        vectors, carried = FAMILY.encode(model.model.encoder, pieces(*texts), carried)
        assert len(vectors.layers) == 3
        for row in range(3):
            with h5py.File(folder / f"lm_embeddings_{row}.hdf5") as file:
                expected = np.concatenate(list(file[str(number)]), axis=-1)
            ours = vectors.layers[-1][row][vectors.mask[row]].numpy()
            assert ours.shape == expected.shape
            assert np.allclose(ours, expected, rtol=1e-5, atol=1e-6)
            compared += 1
    assert compared == 30


def test_published_token_vectors(shared_data: SharedData) -> None:
    folder = shared_data("elmo_fixtures/skip_and_clips")
    model = FAMILY.format.read(folder)
    words = (folder / "vocab_test.txt").read_text(encoding="utf-8").split("\n")
    with h5py.File(folder / "elmo_token_embeddings.hdf5") as file:
        expected = np.asarray(file["embedding"])
    assert len(words) == len(expected) == 458
    characters = torch.from_numpy(character_ids(words, 50).astype(np.int64))
    assert np.allclose(model.model.encoder.token_encoder(characters).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    vectors, _ = FAMILY.encode(model.model.encoder, [Pieces(words[:20], np.arange(20), words[:20])], None)
    doubled = np.concatenate([expected[:20]] * 2, axis=1)
    assert np.allclose(vectors.layers[0][0].numpy(), doubled, rtol=1e-5, atol=1e-6)


@pytest.fixture
def encoder(config: ElmoConfig) -> ElmoEncoder:
    torch.manual_seed(0)
    encoder = ElmoEncoder(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


def test_a_text_has_the_same_vectors_in_any_batch(encoder: ElmoEncoder) -> None:
    texts = ("the cat sat on the mat", "", "dogs", "x" * 60 + " a cat")
    together, state = FAMILY.encode(encoder, pieces(*texts), None)
    assert together.mask.tolist() == [[column < len(text.split()) for column in range(6)] for text in texts]
    for row, text in enumerate(texts):
        alone, alone_state = FAMILY.encode(encoder, pieces(text), None)
        words = len(text.split())
        assert [layer.shape for layer in alone.layers] == [(1, words, 8)] * 3
        torch.testing.assert_close(state[row], alone_state[0])
        for layer, layer_alone in zip(together.layers, alone.layers, strict=True):
            torch.testing.assert_close(layer[row, :words], layer_alone[0])
            assert (layer[row, words:] == 0).all()


def test_carried_rows(encoder: ElmoEncoder) -> None:
    first, state = FAMILY.encode(encoder, pieces("a b c", "d e"), None)
    second, after = FAMILY.encode(encoder, pieces("a b c"), state)
    assert not torch.allclose(first.layers[1][0], second.layers[1][0]), "row 0 goes on"
    assert torch.equal(after[1], state[1]), "row 1 waits"
    alone, _ = FAMILY.encode(encoder, pieces("d e"), state[1:])
    grown, grown_state = FAMILY.encode(encoder, pieces("a b c", "d e", "a b c"), state)
    torch.testing.assert_close(grown.layers[2][1, :2], alone.layers[2][0])
    torch.testing.assert_close(grown.layers[2][2], first.layers[2][0])
    assert (len(after), len(grown_state)) == (2, 3)
    zeros, _ = FAMILY.encode(encoder, pieces("a b c"), torch.zeros_like(state))
    torch.testing.assert_close(zeros.layers[2][0], first.layers[2][0])


def test_two_windows_of_ten_are_one_of_twenty(encoder: ElmoEncoder) -> None:
    torch.manual_seed(1)
    characters = torch.from_numpy(character_ids(list("abcdefgh"), 50).astype(np.int64))
    forward, backward = torch.randint(0, 8, (2, 3, 20))
    *whole, state = encoder(characters, forward, backward)
    *first, carried = encoder(characters, forward[:, :10], backward[:, :10])
    assert not carried.requires_grad and carried.shape == (3, encoder.state_size)
    *second, carried = encoder(characters, forward[:, 10:], backward[:, 10:], carried)
    for one, *two in zip(whole, first, second, strict=True):
        torch.testing.assert_close(one, torch.cat(two, dim=1))
    torch.testing.assert_close(carried, state)


def test_bfloat16_parameters(encoder: ElmoEncoder) -> None:
    """As DeepSpeed casts them: vectors near those of float32, the state kept in float32."""
    texts = pieces("the cat sat on the mat", "a dog")
    exact, _ = FAMILY.encode(encoder, texts, None)
    rough, state = FAMILY.encode(encoder.bfloat16(), texts, None)
    assert state.dtype == torch.float32
    assert rough.layers[2].dtype == torch.bfloat16
    torch.testing.assert_close(rough.layers[2].float(), exact.layers[2], rtol=0.1, atol=0.1)


def test_top_dropout_applies_in_training_only(config: ElmoConfig) -> None:
    torch.manual_seed(0)
    encoder = ElmoEncoder(config.model_copy(update={"dropout": 0.5}))
    index = torch.zeros(8, 5, dtype=torch.int64)
    characters = torch.from_numpy(character_ids(["a"], 50).astype(np.int64))
    forward, backward, _ = encoder(characters, index, index)
    assert all(0.3 < (top == 0).float().mean() < 0.7 for top in (forward, backward))
    assert all((top != 0).all() for top in encoder.eval()(characters, index, index)[:2])


def test_initialisation_follows_the_seed(config: ElmoConfig) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(build_model(config, ElmoObjectiveConfig(), 9))
    for ours, theirs in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(ours, theirs)
    assert sum(p.numel() for p in models[0].parameters()) == ElmoObjectiveConfig().parameters(config, 9)


def test_sizes_that_the_format_cannot_hold(config: ElmoConfig) -> None:
    with pytest.raises(ConfigError, match=r"projection_size \(7\) must be less than model.cell_size \(7\)"):
        build_model(config.model_copy(update={"projection_size": 7}), ElmoObjectiveConfig(), 9)
    with pytest.raises(ConfigError, match=r"projection_size \(4\) must be less than model.filters, in all \(3\)"):
        build_model(config.model_copy(update={"filters": ((1, 3),)}), ElmoObjectiveConfig(), 9)
