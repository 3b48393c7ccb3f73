"""What a stage of the objective makes of the examples: lengths, budgets of packs, and positions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.data.blocks import Arrays, Block
from pretrain.models.bert.examples import BertExampleMaker, build_examples
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.objective import BertObjective
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.loss import IGNORE_INDEX
from tests.models.bert.conftest import TINY

MakeBlock = Callable[[list[int], list[int]], Block]
LENGTH, SHORT = 64, 16
KINDS = [{"packing": True}, {"packing": True, "next_sentence": False}, {"packing": False}]


def objective(stage: dict[str, object], **options: object) -> BertObjectiveConfig:
    """One with a first stage of ten steps."""
    return BertObjectiveConfig.model_validate(
        {"max_sequence_length": LENGTH, "stages": [{"until_step": 10} | stage]} | options
    )


def shifted(**options: object) -> BertObjectiveConfig:
    return objective({"max_sequence_length": SHORT, "shift_positions": True}, **options)


def make(config: BertObjectiveConfig, block: Block, tokenizer: WordPieceTokenizer) -> tuple[BertExampleMaker, Arrays]:
    maker = build_examples(BertConfig(), config, tokenizer, 1)
    examples = maker.make(block, np.random.default_rng(0))
    return maker, examples.take(0, len(examples))


@pytest.fixture(scope="module")
def block(make_block: MakeBlock) -> Block:
    return make_block([40] * 20, list(range(20)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_shifted_sequences_are_spread_over_all_positions(
    kind: dict[str, object], block: Block, tokenizer: WordPieceTokenizer
) -> None:
    """Each begins anywhere such that it ends in time, in one piece; padding is at position 0."""
    maker, arrays = make(shifted(**kind).at(0), block, tokenizer)
    batch = maker.collate(arrays)
    lengths, firsts = arrays["lengths"].reshape(-1), arrays["first_positions"].reshape(-1)
    positions, mask = (batch[name].numpy().reshape(-1) for name in ("positions", "attention_mask"))
    assert not positions[mask == 0].any()
    expected = [first + np.arange(length) for first, length in zip(firsts, lengths, strict=True)]
    np.testing.assert_array_equal(positions[mask == 1], np.concatenate(expected))
    assert set(positions) == set(range(LENGTH))
    assert (lengths <= SHORT).all() and (firsts + lengths <= LENGTH)[lengths > 0].all()
    full = firsts[lengths == SHORT]
    assert full.max() == LENGTH - SHORT and full.min() == 0
    # uniform over 49 numbers, whose standard deviation is 14.1
    assert len(full) > 200 and full.mean() == pytest.approx((LENGTH - SHORT) / 2, abs=4 * 14.1 / len(full) ** 0.5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_shifting_changes_positions_alone(kind: dict[str, object], block: Block, tokenizer: WordPieceTokenizer) -> None:
    """Sequences, masks and packs are the same; after the stage, and without one, none is shifted."""
    plain = objective({"max_sequence_length": SHORT}, **kind)
    (maker, one), (_, other) = (make(config.at(0), block, tokenizer) for config in (shifted(**kind), plain))
    assert one.keys() == other.keys() | {"first_positions"}
    assert all(np.array_equal(array, one[name]) for name, array in other.items())
    batches = [maker.collate(arrays) for arrays in (one, other)]
    assert all(torch.equal(tensor, batches[0][name]) for name, tensor in batches[1].items() if name != "positions")
    for config in (shifted(**kind).at(10), shifted(**kind)):  # the latter makes held-out text
        (_, later), (_, final) = (make(c, block, tokenizer) for c in (config, plain.model_copy(update={"stages": ()})))
        assert later.keys() == final.keys()
        assert all(np.array_equal(array, later[name]) for name, array in final.items())


def predictions(model: BertModel, batch: dict[str, Tensor]) -> Tensor:
    """Logits of the words that are predicted, in order."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("masked_labels", "is_next")}
    words: Tensor = model(**inputs).words
    return words[batch["masked_labels"] != IGNORE_INDEX]


def build(config: BertObjectiveConfig, tokenizer: WordPieceTokenizer, backend: str = "auto") -> BertModel:
    torch.manual_seed(0)
    model = BertModel(TINY, config, tokenizer.vocabulary_size).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.encoder.attention = backend
    return model


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("backend", ["masked", "per_sequence"])
def test_a_position_is_where_its_embedding_is_and_nothing_else(
    backend: str, kind: dict[str, object], block: Block, tokenizer: WordPieceTokenizer
) -> None:
    """With embeddings of positions that are all alike, shifting changes nothing; with others, it does."""
    config, plain = shifted(**kind), objective({"max_sequence_length": SHORT}, **kind)
    batches = []
    for one in (config, plain):
        maker, arrays = make(one.at(0), block, tokenizer)
        batches.append(dict(maker.collate({name: array[:4] for name, array in arrays.items()})))
    model = build(config, tokenizer, backend)
    ours, theirs = (predictions(model, batch) for batch in batches)
    assert not torch.allclose(ours, theirs, atol=1e-3)
    positions = model.encoder.embeddings.positions.weight
    positions.data[:] = positions.data[:1]
    ours, theirs = (predictions(model, batch) for batch in batches)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_shifted_pack_equals_shifted_rows(block: Block, tokenizer: WordPieceTokenizer) -> None:
    """Losses, and gradients: of all positions, of which a stage that is not shifted leaves most untrained."""
    gradients, totals = [], []
    for config in (shifted(), shifted(packing=False), objective({"max_sequence_length": SHORT})):
        model = build(config, tokenizer)
        maker, arrays = make(config.at(0), block, tokenizer)
        terms, _ = BertObjective()(model, maker.collate(arrays), None, seed=0)
        total = torch.stack([term.total for term in terms.values()]).sum()
        (gradient,) = torch.autograd.grad(total, [model.encoder.embeddings.positions.weight])
        totals.append(total.detach())
        gradients.append(gradient)
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-10)
    assert gradients[0].any(dim=1).all()
    assert gradients[2].any(dim=1).tolist() == [True] * SHORT + [False] * (LENGTH - SHORT)


@pytest.mark.parametrize("length", [8, 10, 13, 16, 32])
@pytest.mark.parametrize("next_sentence", [True, False])
@pytest.mark.parametrize("mask_probability", [0.15, 0.4])
def test_packs_of_short_sequences_are_full(
    length: int, next_sentence: bool, mask_probability: float, block: Block, tokenizer: WordPieceTokenizer
) -> None:
    """What a pack may hold follows from the stage: more sequences, and as many predicted tokens as those round to."""
    stage = {"max_sequence_length": length, "mask_probability": mask_probability}
    config = objective(stage, next_sentence=next_sentence, pack_length=256, short_sequence_probability=0.0).at(0)
    assert config.tokens_per_example == 256
    maker, arrays = make(config, block, tokenizer)
    counts = maker.counts(arrays)
    assert arrays["input_ids"].shape[1] == 256
    assert arrays["lengths"].shape[1] == config.sequences_per_pack
    assert arrays["labels"].shape[1] == config.masked_per_pack
    assert counts["tokens"] / counts["token_slots"] > 0.9
    slack = 1.4 if length < 16 else 1.15  # a short sequence rounds by much
    assert counts["mlm"] / counts["tokens"] <= slack * mask_probability


def test_packs_of_a_run_without_stages_are_as_they_were() -> None:
    """Budgets that decide a run's examples: from 32 tokens on, whatever is predicted (the numbers of 0.2.0)."""
    for length, packs, sequences, masked in ((32, 32, 2, 6), (64, 64, 4, 11), (128, 128, 8, 21), (512, 512, 32, 81)):
        config = BertObjectiveConfig(max_sequence_length=length)
        assert (config.tokens_per_example, config.sequences_per_pack, config.masked_per_pack) == (
            packs,
            sequences,
            masked,
        )
    full = BertObjectiveConfig(max_sequence_length=512, next_sentence=False)
    assert (full.tokens_per_example, full.sequences_per_pack, full.masked_per_pack) == (4096, 256, 646)
