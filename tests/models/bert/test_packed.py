"""A pack is a way to lay sequences out, and nothing else: in float64, packed equals padded."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.data.blocks import Block
from pretrain.models.bert.attention import MaskedAttention, PerSequenceAttention, packed_attention
from pretrain.models.bert.examples import build_examples
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.objective import BertObjective
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.loss import IGNORE_INDEX, LossTerm
from tests.models.bert.conftest import tiny_configs

MakeBlock = Callable[[list[int], list[int]], Block]
LENGTHS = (64, 256)
"""Tokens of packs, of sequences that have 64 at most."""


def build(tokenizer: WordPieceTokenizer, **options: object) -> BertModel:
    """A small model whose outputs are far from alike."""
    torch.manual_seed(0)
    model = BertModel(*tiny_configs(**{"dropout": 0.0} | options), tokenizer.vocabulary_size).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch_of(
    model: BertModel, block: Block, tokenizer: WordPieceTokenizer, rows: int | None = None
) -> dict[str, Tensor]:
    """All examples of the block, or the first of them."""
    maker = build_examples(model.config, model.objective, tokenizer, 1)
    examples = maker.make(block, np.random.default_rng(0))
    return dict(maker.collate(examples.take(0, rows or len(examples))))


def losses(model: BertModel, batch: dict[str, Tensor]) -> dict[str, LossTerm]:
    return BertObjective()(model, batch, None, seed=0)[0]


def gradients(model: BertModel, terms: dict[str, LossTerm]) -> dict[str, Tensor]:
    total = torch.stack([term.total for term in terms.values()]).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


@pytest.fixture
def block(make_block: MakeBlock) -> Block:
    return make_block([12] * 8, list(range(8)))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("next_sentence", [True, False])
def test_packed_equals_padded(next_sentence: bool, length: int, block: Block, tokenizer: WordPieceTokenizer) -> None:
    padded_model = build(tokenizer, packing=False, next_sentence=next_sentence)
    packed_model = build(tokenizer, pack_length=length, next_sentence=next_sentence)
    padded, packed = (batch_of(model, block, tokenizer) for model in (padded_model, packed_model))
    assert type(packed_attention("auto", packed["sequence_lengths"], length, 64)) is PerSequenceAttention
    assert (packed["sequence_lengths"] > 0).sum() == len(padded["input_ids"]) > len(packed["input_ids"])
    expected, terms = losses(padded_model, padded), losses(packed_model, packed)
    assert set(terms) == set(expected) == ({"mlm", "nsp"} if next_sentence else {"mlm"})
    for name, term in terms.items():
        torch.testing.assert_close(term.total, expected[name].total, rtol=1e-12, atol=0)
        assert term.count == expected[name].count > 0
    theirs = gradients(padded_model, expected)
    for name, gradient in gradients(packed_model, terms).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    # The rows of the positions that no sequence reaches have none; everything else learns.
    assert all(gradient.any() for gradient in theirs.values())


def permuted(batch: dict[str, Tensor], row: int, order: list[int]) -> tuple[dict[str, Tensor], Tensor]:
    """The batch with the sequences of a row in another order, and where each token of the flattened rows went."""
    lengths = batch["sequence_lengths"][row]
    pieces = torch.arange(batch["input_ids"].shape[1])[: lengths.sum()].split(lengths[: len(order)].tolist())
    source = torch.cat([pieces[number] for number in order])
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    for name in ("input_ids", "segment_ids", "positions"):
        changed[name][row, : len(source)] = batch[name][row, source]
    changed["sequence_lengths"][row, : len(order)] = lengths[order]
    classes = batch["is_next"].view_as(batch["sequence_lengths"])
    changed["is_next"].view_as(classes)[row, : len(order)] = classes[row, order]
    went = torch.arange(batch["input_ids"].numel())
    start = row * batch["input_ids"].shape[1]
    went[start + source] = start + torch.arange(len(source))
    changed["masked_positions"] = went[batch["masked_positions"]]
    return changed, went


@pytest.mark.parametrize("length", LENGTHS)
def test_the_order_of_sequences_in_a_pack_changes_nothing(
    length: int, block: Block, tokenizer: WordPieceTokenizer
) -> None:
    model = build(tokenizer, pack_length=length)
    batch = batch_of(model, block, tokenizer)
    used = (batch["sequence_lengths"] > 0).sum(dim=1)
    row = int(used.argmax())
    order = torch.randperm(int(used[row]), generator=torch.Generator().manual_seed(1)).tolist()
    assert len(order) > 1 and order != sorted(order)
    changed, went = permuted(batch, row, order)
    assert not torch.equal(changed["input_ids"], batch["input_ids"])
    inputs = [{n: t for n, t in one.items() if n not in ("masked_labels", "is_next")} for one in (batch, changed)]
    before, after = (model(**one) for one in inputs)
    real = batch["masked_labels"] != IGNORE_INDEX
    torch.testing.assert_close(after.words[real], before.words[real], rtol=1e-12, atol=1e-12)
    slots = torch.arange(used.shape[0] * batch["sequence_lengths"].shape[1]).view_as(batch["sequence_lengths"])
    slots[row, : len(order)] = slots[row, order]
    there = (changed["sequence_lengths"] > 0).flatten()
    torch.testing.assert_close(
        after.next_sentence[there], before.next_sentence[slots.flatten()][there], rtol=1e-12, atol=1e-12
    )
    vectors = [model.encoder(**{n: t for n, t in one.items() if n != "masked_positions"}) for one in inputs]
    tokens = batch["attention_mask"].flatten().bool()
    for one, other in zip(vectors[0].layers, vectors[1].layers, strict=True):
        torch.testing.assert_close(other.flatten(0, 1)[went][tokens], one.flatten(0, 1)[tokens], rtol=1e-12, atol=1e-12)
    terms, expected = losses(model, changed), losses(model, batch)
    theirs = gradients(model, expected)
    for name, gradient in gradients(model, terms).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", LENGTHS)
def test_sequences_do_not_see_each_other_nor_padding(length: int, block: Block, tokenizer: WordPieceTokenizer) -> None:
    model = build(tokenizer, pack_length=length)
    batch = batch_of(model, block, tokenizer)
    row = int((batch["sequence_lengths"] > 0).sum(dim=1).argmax())
    first, second = batch["sequence_lengths"][row, :2].tolist()
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][row, first : first + second] = 7
    other["input_ids"][batch["attention_mask"] == 0] = 9
    vectors = [
        model.encoder(
            one["input_ids"],
            one["segment_ids"],
            one["attention_mask"],
            positions=one["positions"],
            sequence_lengths=one["sequence_lengths"],
        )
        for one in (batch, other)
    ]
    same = batch["attention_mask"].bool()
    same[row, first : first + second] = False
    assert torch.equal(vectors[0].layers[-1][same], vectors[1].layers[-1][same])
    assert not torch.equal(vectors[0].layers[-1][row, first], vectors[1].layers[-1][row, first])
    assert all(layer.isfinite().all() for layer in vectors[0].layers), "what padding yields is no NaN"


@pytest.mark.parametrize("length", LENGTHS)
def test_both_backends_of_the_cpu_agree(length: int, block: Block, tokenizer: WordPieceTokenizer) -> None:
    """Whatever the length, and whichever rows are full."""
    model = build(tokenizer, pack_length=length)
    batch = batch_of(model, block, tokenizer)
    query, key, value = torch.randn(3, *batch["input_ids"].shape, 32, dtype=torch.float64)
    outputs = []
    for backend, expected in (("masked", MaskedAttention), ("per_sequence", PerSequenceAttention)):
        attend = packed_attention(backend, batch["sequence_lengths"], length, 64)
        assert type(attend) is expected
        outputs.append(attend(query, key, value, num_heads=4, dropout=0.0))
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(outputs[0][real], outputs[1][real], rtol=1e-12, atol=1e-12)
    assert not outputs[1][~real].any()


@pytest.mark.parametrize("length", LENGTHS)
def test_packs_without_masks_have_no_loss_and_gradients_of_zero(
    length: int, block: Block, tokenizer: WordPieceTokenizer
) -> None:
    model = build(tokenizer, pack_length=length)
    batch = batch_of(model, block, tokenizer)
    batch["masked_labels"].fill_(IGNORE_INDEX)
    terms = losses(model, batch)
    assert terms["mlm"].total.item() == 0 and terms["mlm"].count.item() == 0 < terms["nsp"].count.item()
    parameters = [*model.encoder.parameters(), *model.masked_words.parameters()]
    assert not any(gradient.any() for gradient in torch.autograd.grad(terms["mlm"].total, parameters))
    assert all(gradient.isfinite().all() for gradient in gradients(model, losses(model, batch)).values())


def test_dropout_is_at_work_in_packs(block: Block, tokenizer: WordPieceTokenizer) -> None:
    for length in LENGTHS:
        model = build(tokenizer, pack_length=length, dropout=0.3).train()
        batch = batch_of(model, block, tokenizer)
        torch.manual_seed(1)
        first = losses(model, batch)["mlm"].total
        torch.manual_seed(1)
        assert torch.equal(first, losses(model, batch)["mlm"].total)
        assert not torch.equal(first, losses(model, batch)["mlm"].total)
