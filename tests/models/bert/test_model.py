import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.models.bert import FAMILY
from pretrain.models.bert.export import published_name, read
from pretrain.models.bert.model import BertModel, encode, no_decay
from pretrain.models.bert.pairs import NEXT, RANDOM
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.family import Pieces
from pretrain.models.loss import IGNORE_INDEX, LossTerm
from tests.models.bert.conftest import tiny_configs

FIXTURE = "bert/hf_tiny_bert_pretraining_gelu.safetensors"


@pytest.fixture
def reference(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> tuple[BertModel, dict[str, Tensor], dict[str, str]]:
    """transformers' tiny model as a folder, read; its inputs, outputs and gradients; its losses."""
    with safe_open(shared_data(FIXTURE), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    weights = {name.removeprefix("w."): tensor for name, tensor in tensors.items() if name.startswith("w.")}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(metadata["config"])
    model = read(tmp_path).model
    assert isinstance(model, BertModel)
    return model, tensors, metadata


def batch_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    labels = tensors["in.labels"].flatten()
    masked = (labels != IGNORE_INDEX).nonzero()[:, 0]
    return {
        "input_ids": tensors["in.input_ids"],
        "segment_ids": tensors["in.token_type_ids"],
        "attention_mask": tensors["in.attention_mask"],
        "is_next": tensors["in.next_sentence_label"],
        "masked_positions": masked,
        "masked_labels": labels[masked],
    }


def losses(model: BertModel, batch: dict[str, Tensor]) -> dict[str, LossTerm]:
    objective = FAMILY.training.build_objective(model.objective, None)  # type: ignore[arg-type]
    terms, carried = objective(model, batch, None, seed=0)
    assert carried is None
    return terms


def test_hidden_states_and_logits_agree_with_transformers(
    reference: tuple[BertModel, dict[str, Tensor], dict[str, str]],
) -> None:
    model, tensors, _ = reference
    batch = batch_of(tensors)
    inputs = (batch["input_ids"], batch["segment_ids"], batch["attention_mask"])
    with torch.no_grad():
        vectors = model.encoder(*inputs)
        predictions = model(*inputs, batch["masked_positions"])
        (last,) = model.encoder(*inputs, all_layers=False).layers
    assert len(vectors.layers) == 3
    for index, layer in enumerate(vectors.layers):
        expected = tensors[f"out.hidden_{index}"]
        torch.testing.assert_close(layer[vectors.mask], expected[vectors.mask], atol=5e-5, rtol=0)
    assert torch.equal(last, vectors.layers[-1])
    torch.testing.assert_close(predictions.words, tensors["out.prediction_logits_at_masked"], atol=5e-5, rtol=0)
    torch.testing.assert_close(predictions.next_sentence, tensors["out.seq_relationship_logits"], atol=5e-5, rtol=0)


def test_losses_and_every_gradient_agree_with_transformers(
    reference: tuple[BertModel, dict[str, Tensor], dict[str, str]],
) -> None:
    model, tensors, metadata = reference
    terms = losses(model, batch_of(tensors))
    mean = {name: term.total / term.count for name, term in terms.items()}
    assert mean["mlm"].item() == pytest.approx(float(metadata["mlm"]), abs=5e-5)
    assert mean["nsp"].item() == pytest.approx(float(metadata["nsp"]), abs=5e-5)
    assert {name: term.predicts_tokens for name, term in terms.items()} == {"mlm": True, "nsp": False}
    sum(mean.values()).backward()  # type: ignore[union-attr]
    expected = {name.removeprefix("g."): tensor for name, tensor in tensors.items() if name.startswith("g.")}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected.pop(published_name(name)), atol=5e-5, rtol=0)
    assert not {name for name in expected if "decoder" not in name}, "gradients that no parameter has"


def test_head_on_masked_rows_is_the_head_on_all_rows(
    reference: tuple[BertModel, dict[str, Tensor], dict[str, str]],
) -> None:
    model, tensors, _ = reference
    batch = batch_of(tensors)
    inputs = (batch["input_ids"], batch["segment_ids"], batch["attention_mask"])
    with torch.no_grad():
        rows = model(*inputs, batch["masked_positions"]).words
        everything = model(*inputs, torch.arange(batch["input_ids"].numel())).words
    torch.testing.assert_close(rows, everything[batch["masked_positions"]], atol=1e-6, rtol=0)


def test_padding_does_not_change_results(model: BertModel) -> None:
    torch.manual_seed(1)
    ids = torch.randint(5, 200, (3, 24))
    mask = torch.ones_like(ids)
    segments = (torch.arange(24) > 9).long().expand(3, -1)

    def pad(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 8), value=value)

    with torch.no_grad():
        bare = model.encoder(ids, segments, mask).layers
        padded = model.encoder(pad(ids, 7), pad(segments, 1), pad(mask, 0))
    assert padded.mask.sum() == ids.numel()
    for one, other in zip(bare, padded.layers, strict=True):
        torch.testing.assert_close(one, other[:, :24], atol=1e-6, rtol=0)


def test_a_batch_without_masks_has_no_loss_and_gradients_of_zero(model: BertModel) -> None:
    ids = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    empty = torch.zeros(0, dtype=torch.int64)
    terms = losses(
        model,
        {
            "input_ids": ids,
            "segment_ids": torch.zeros_like(ids),
            "attention_mask": torch.ones_like(ids),
            "is_next": torch.tensor([0, 1]),
            "masked_positions": empty,
            "masked_labels": empty,
        },
    )
    assert terms["mlm"].total.item() == 0 and terms["mlm"].count.item() == 0
    assert terms["nsp"].count.item() == 2
    (terms["mlm"].total + terms["nsp"].total).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.startswith("masked_words."):
            assert not parameter.grad.any(), name


@pytest.mark.parametrize("training", [False, True])
def test_correct_predictions_are_counted(training: bool, model: BertModel) -> None:
    """Labels that are ignored count for nothing; the words are left alone in training."""
    ids = torch.randint(5, 200, (6, 16), generator=torch.Generator().manual_seed(0))
    inputs = {
        "input_ids": ids,
        "segment_ids": torch.zeros_like(ids),
        "attention_mask": torch.ones_like(ids),
        "masked_positions": torch.arange(1, 96, 7),
    }
    model = BertModel(*tiny_configs(dropout=0), 200).train(training)
    predictions = model(**inputs)
    best = predictions.words.argmax(1)
    labels = torch.where(torch.arange(len(best)) % 3 == 0, best, best + 1)
    labels[3:5] = IGNORE_INDEX
    is_next = predictions.next_sentence.argmax(1)
    is_next[0], is_next[1] = 1 - is_next[0], IGNORE_INDEX
    terms = losses(model, {**inputs, "masked_labels": labels, "is_next": is_next})
    assert terms["nsp"].count == 5 and terms["nsp"].correct == 4
    assert terms["nsp"].classes is not None
    assert terms["nsp"].classes.tolist() == [is_next.tolist().count(NEXT), is_next.tolist().count(RANDOM)]
    assert terms["mlm"].classes is None
    assert terms["mlm"].count == len(best) - 2
    assert terms["mlm"].correct == (None if training else (labels == best).sum())


def test_losses_are_float32_where_the_model_is_not(model: BertModel) -> None:
    ids = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    batch = {
        "input_ids": ids,
        "segment_ids": torch.zeros_like(ids),
        "attention_mask": torch.ones_like(ids),
        "is_next": torch.tensor([0, 1]),
        "masked_positions": torch.tensor([1, 17, 20]),
        "masked_labels": torch.tensor([5, 6, 7]),
    }
    expected = losses(model, batch)
    actual = losses(model.bfloat16(), batch)
    for name, term in actual.items():
        assert term.total.dtype == torch.float32
        assert term.total.item() == pytest.approx(expected[name].total.item(), rel=0.02)
    assert model.encoder(ids, torch.zeros_like(ids), torch.ones_like(ids)).layers[-1].dtype == torch.bfloat16


def random_batch(rows: int, length: int) -> dict[str, Tensor]:
    """Full rows of random words, of which every seventh is predicted."""
    ids = torch.randint(5, 200, (rows, length), generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "segment_ids": torch.zeros_like(ids),
        "attention_mask": torch.ones_like(ids),
        "is_next": torch.arange(rows) % 2,
        "masked_positions": torch.arange(1, rows * length, 7),
        "masked_labels": ids.flatten()[1::7],
    }


def test_first_loss_is_that_of_a_guess(model: BertModel) -> None:
    terms = losses(model, random_batch(16, 32))
    assert (terms["mlm"].total / terms["mlm"].count).item() == pytest.approx(math.log(200), abs=0.1)
    assert (terms["nsp"].total / terms["nsp"].count).item() == pytest.approx(math.log(2), abs=0.05)


@pytest.mark.parametrize("table", ["words", "positions", "segments"])
def test_gradients_of_16_bit_lookups_are_added_up_in_float32(table: str, model: BertModel) -> None:
    """As under ZeRO, where parameters are bf16: a row that is looked up thousands of times is rounded once."""
    lookup = model.bfloat16().encoder.embeddings.get_submodule(table)
    ids = torch.zeros(4, 1024, dtype=torch.int64)
    ids[:, ::8] = 1
    upstream = 1 + torch.rand(4, 1024, 32, generator=torch.Generator().manual_seed(0))
    vectors = lookup(ids)
    torch.testing.assert_close(vectors.float(), lookup.weight.float()[ids], rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(vectors, lookup.weight, upstream.to(vectors.dtype))
    assert gradient.dtype == torch.bfloat16
    expected = torch.zeros(gradient.shape, dtype=torch.float64)
    expected.index_add_(0, ids.flatten(), upstream.double().flatten(0, 1))
    torch.testing.assert_close(gradient.double(), expected, rtol=2**-8, atol=0)


def test_a_16_bit_encoder_computes_in_16_bits(model: BertModel) -> None:
    ids = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    vectors = model.bfloat16().encoder(ids, torch.zeros_like(ids), torch.ones_like(ids))
    assert {layer.dtype for layer in vectors.layers} == {torch.bfloat16}


def test_initialisation() -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=128, num_layers=2, num_heads=2, intermediate_size=256)
    model = BertModel(config, BertObjectiveConfig(), 3000)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert parameter.abs().max() <= 0.04, name
            if parameter.numel() > 10_000:
                # A normal distribution cut at two deviations has 0.88 of its deviation.
                assert parameter.std().item() == pytest.approx(0.88 * 0.02, rel=0.03), name
                assert parameter.mean().item() == pytest.approx(0, abs=5e-4), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


def test_parameters_are_as_many_as_planned_and_tied(model: BertModel) -> None:
    # 200 words in 256 rows, each of them with a bias
    padding = 56 * (model.config.hidden_size + 1)
    assert sum(p.numel() for p in model.parameters()) == model.objective.parameters(model.config, 200) + padding
    assert model.masked_words.decoder.weight is model.encoder.embeddings.words.weight
    assert BertObjectiveConfig().parameters(BertConfig(), 30522) == pytest.approx(110e6, rel=0.01)


def test_rows_without_a_word_are_never_predicted_and_stay_0(model: BertModel) -> None:
    batch = random_batch(4, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        terms = losses(model, batch)
        (terms["mlm"].total + terms["nsp"].total).backward()
        optimizer.step()
    words, bias = model.encoder.embeddings.words.weight, model.masked_words.decoder.bias
    assert len(words) == len(bias) == 256
    assert words[:200].any(dim=1).all() and bias[:200].all()
    assert not words[200:].any() and not bias[200:].any()
    predictions = model(**{name: batch[name] for name in batch if name not in ("is_next", "masked_labels")}).words
    assert predictions.shape == (9, 256)
    assert predictions[:, :200].isfinite().all() and (predictions[:, 200:] == -torch.inf).all()


def test_dropout_of_attention_is_that_of_hidden_states_or_its_own() -> None:
    assert BertConfig(dropout=0.2).dropout_of_attention == 0.2
    config = BertConfig(dropout=0.2, attention_dropout=0.0, hidden_size=32, num_heads=2, num_layers=1)
    model = BertModel(config, BertObjectiveConfig(), 100)
    assert [model.encoder.layers[0].attention.dropout, model.encoder.layers[0].dropout.probability] == [0.0, 0.2]


def test_biases_and_layer_norms_do_not_decay(model: BertModel) -> None:
    for name, parameter in model.named_parameters():
        assert no_decay(name) == (parameter.ndim == 1), name


def test_forward_is_deterministic_and_dropout_follows_the_seed(model: BertModel) -> None:
    ids = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    arguments = (ids, torch.zeros_like(ids), torch.ones_like(ids))
    model.train()

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        output: Tensor = model.encoder(*arguments).layers[-1]
        return output

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_encode_aligns_vectors_with_pieces(model: BertModel, tokenizer: WordPieceTokenizer) -> None:
    texts = [tokenizer.pieces("ab cd ef"), tokenizer.pieces("a")]
    vectors, carried = FAMILY.encode(model.encoder, texts, None)
    assert carried is None
    assert len(vectors.layers) == 3 and not vectors.layers[0].requires_grad
    assert vectors.layers[0].shape == (2, len(texts[0].tokens), 32)
    assert vectors.mask.sum(dim=1).tolist() == [len(text.tokens) for text in texts]
    alone, _ = FAMILY.encode(model.encoder, texts[1:], None)
    for one, other in zip(vectors.layers, alone.layers, strict=True):
        torch.testing.assert_close(one[1:, : len(texts[1].tokens)], other, atol=1e-6, rtol=0)


def test_encode_refuses_texts_longer_than_the_model(model: BertModel) -> None:
    text = Pieces(tokens=[5] * 65, word_of=np.zeros(65, dtype=np.int64), words=["a"])
    short = Pieces(tokens=[5] * 64, word_of=np.zeros(64, dtype=np.int64), words=["a"])
    with pytest.raises(ValueError, match=r"text 1 has 65 pieces.*64 positions"):
        encode(model.encoder, [short, text])


def test_checkpoint_folder_of_the_fixture_has_its_config(
    reference: tuple[BertModel, dict[str, Tensor], dict[str, str]],
) -> None:
    model, _, metadata = reference
    published = json.loads(metadata["config"])
    assert model.config.num_heads == published["num_attention_heads"]
    assert model.config.dropout == 0
    assert model.objective.max_sequence_length == model.config.max_positions == 64
