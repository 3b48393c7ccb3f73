"""The losses of a batch, and how candidates are drawn."""

import numpy as np
import pytest
import torch

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.data.blocks import Block
from pretrain.errors import ConfigError, ExportError
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.objective import draw_candidates
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer
from pretrain.models.loss import IGNORE_INDEX, Batch

SAMPLED = {"softmax": "sampled", "num_negatives": 8}
TOKENIZER = WordTokenizer((*SPECIAL_WORDS, *(f"w{n}" for n in range(30))))


def make_batch(config: ElmoConfig, objective_config: ElmoObjectiveConfig, *, pad: bool = False) -> Batch:
    rng = np.random.default_rng(0)
    words = tuple(f"w{n}" for n in range(35))
    block = Block(
        tokens=rng.integers(0, 35, 40).astype(np.int32),
        sentence_starts=np.array([0, 9, 17, 33, 40]),
        document_starts=np.array([0, 4]),
        document_numbers=np.array([0]),
        words=words,
    )
    maker = FAMILY.training.build_examples(config, objective_config, TOKENIZER, 3)
    examples = maker.make(block, rng, pad=pad)
    return maker.collate(examples.take(len(examples) - 3, len(examples)))


def make_model(config: ElmoConfig) -> ElmoModel:
    torch.manual_seed(0)
    model = FAMILY.training.build_model(config, ElmoObjectiveConfig(), TOKENIZER.vocabulary_size)
    assert isinstance(model, ElmoModel)
    return model


@pytest.mark.parametrize("pad", [False, True])
def test_terms(config: ElmoConfig, objective_config: ElmoObjectiveConfig, pad: bool) -> None:
    """Against log-softmax over all logits, position by position."""
    model, batch = make_model(config), make_batch(config, objective_config, pad=pad)
    assert (batch["forward_labels"] == IGNORE_INDEX).any() == pad
    terms, carried = FAMILY.training.build_objective(objective_config, TOKENIZER)(model, batch, None, seed=0)
    *tops, state = model.encoder(batch["characters"], batch["forward_index"], batch["backward_index"])
    assert carried is not None and torch.equal(carried, state)
    for (name, term), top in zip(terms.items(), tops, strict=True):
        labels = batch[f"{name}_labels"]
        logits = (top.double() @ model.softmax.weight.double().T + model.softmax.bias.double()).log_softmax(-1)
        real = labels >= 0
        expected = -logits[real].gather(1, labels[real][:, None]).sum()
        assert (term.weight, term.count.dtype, term.count.item()) == (0.5, torch.int64, real.sum().item())
        assert (term.total.dtype, term.total.shape) == (torch.float32, ())
        assert term.total.item() == pytest.approx(expected.item(), rel=1e-6)
        assert term.losses is not None and not term.losses.requires_grad
        of_each = -logits.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0] * real
        torch.testing.assert_close(term.losses.double(), of_each.flatten().detach(), rtol=1e-5, atol=1e-6)
    assert list(terms) == ["forward", "backward"]


def test_a_row_that_begins_starts_from_zero(config: ElmoConfig, objective_config: ElmoObjectiveConfig) -> None:
    model, batch = make_model(config), make_batch(config, objective_config)
    objective = FAMILY.training.build_objective(objective_config, TOKENIZER)
    _, before = objective(model, batch, None, seed=0)
    fresh, fresh_state = objective(model, batch, None, seed=0)
    went_on, state = objective(model, batch, before, seed=0)
    mixed, mixed_state = objective(model, batch | {"begins": torch.tensor([0, 1, 0])}, before, seed=0)
    assert fresh_state is not None and state is not None and mixed_state is not None
    assert torch.equal(mixed_state[1], fresh_state[1]) and torch.equal(mixed_state[::2], state[::2])
    for name, term in mixed.items():
        losses, other, one = (t.losses.view(3, -1) for t in (term, went_on[name], fresh[name]) if t.losses is not None)
        assert torch.equal(losses[1], one[1]) and torch.equal(losses[::2], other[::2]) and (one != other).any()


def test_windows_that_begin_within_a_run(config: ElmoConfig, objective_config: ElmoObjectiveConfig) -> None:
    """States carried and put to zero, window after window: losses and gradients are those of a loop over rows, each by
    itself, through the reference recurrence."""
    config = config.model_copy(update={"cell_clip": 0.5, "projection_clip": 0.3})
    model = make_model(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rng = np.random.default_rng(1)
    words = tuple(f"w{n}" for n in range(35))
    block = Block(
        tokens=rng.integers(0, 35, 100).astype(np.int32),
        sentence_starts=np.arange(0, 101, 10),
        document_starts=np.array([0, 10]),
        document_numbers=np.array([0]),
        words=words,
    )
    objective_config = objective_config.model_copy(update={"reset_probability": 0.4})
    maker = FAMILY.training.build_examples(config, objective_config, TOKENIZER, 3)
    examples = maker.make(block, rng)
    batches = [maker.collate(examples.take(start, start + 3)) for start in range(0, len(examples), 3)]
    begins = torch.stack([batch["begins"] for batch in batches[1:]])
    assert 0 < begins.sum() < begins.numel(), "some rows go on, and some begin"

    objective = FAMILY.training.build_objective(objective_config, TOKENIZER)
    losses, carried = [], None
    for batch in batches:
        terms, carried = objective(model, batch, carried, seed=0)
        losses.append([term.losses.view(3, -1) for term in terms.values() if term.losses is not None])
        sum(term.total for term in terms.values()).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()

    states = torch.zeros(3, model.encoder.state_size, dtype=torch.float64)
    for batch, ours in zip(batches, losses, strict=True):
        for row in range(3):
            state = torch.zeros(1, model.encoder.state_size, dtype=torch.float64)
            if not batch["begins"][row]:
                state = states[row : row + 1].clone()
            spelled = model.encoder.token_encoder(batch["characters"])
            inputs = torch.stack([spelled[batch[f"{d}_index"][row]] for d in ("forward", "backward")])[:, :, None]
            layers, after = model.encoder.run(inputs, state, torch.tensor([inputs.shape[1]]))
            states[row] = after.detach()
            for direction, name in enumerate(("forward", "backward")):
                logits = layers[-1][direction, :, 0] @ model.softmax.weight.T + model.softmax.bias
                loss = torch.nn.functional.cross_entropy(logits, batch[f"{name}_labels"][row], reduction="none")
                torch.testing.assert_close(loss.detach(), ours[direction][row].double(), rtol=1e-5, atol=1e-6)
                loss.sum().backward(retain_graph=True)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-6)


def test_sampled_softmax_depends_on_the_seed_alone(config: ElmoConfig, objective_config: ElmoObjectiveConfig) -> None:
    objective_config = objective_config.model_copy(update=SAMPLED)
    model, batch = make_model(config), make_batch(config, objective_config)
    objective = FAMILY.training.build_objective(objective_config, TOKENIZER)

    def losses(seed: int) -> list[float]:
        terms, _ = objective(model, batch, None, seed=seed)
        return [term.total.item() for term in terms.values()]

    first = losses(1)
    torch.manual_seed(99)
    np.random.seed(99)
    assert losses(1) == first
    assert all(a != b for a, b in zip(losses(2), first, strict=True))
    model.eval()
    full, _ = FAMILY.training.build_objective(objective_config.model_copy(update={"softmax": "full"}), TOKENIZER)(
        model, batch, None, seed=3
    )
    assert losses(1) == losses(2) == [term.total.item() for term in full.values()], "exact where it is held out"


def test_the_two_directions_draw_apart(config: ElmoConfig, objective_config: ElmoObjectiveConfig) -> None:
    objective_config = objective_config.model_copy(update=SAMPLED)
    model, batch = make_model(config), make_batch(config, objective_config)
    drawn = []
    model.softmax.register_forward_pre_hook(lambda _, inputs: drawn.append(inputs[2].tolist()))
    FAMILY.training.build_objective(objective_config, TOKENIZER)(model, batch, None, seed=4)
    forward, backward = drawn
    assert len(set(forward)) == len(set(backward)) == 8
    assert set(forward) != set(backward)


def test_every_parameter_gets_a_gradient_and_learns(config: ElmoConfig, objective_config: ElmoObjectiveConfig) -> None:
    objective_config = objective_config.model_copy(update=SAMPLED)
    model, batch = make_model(config), make_batch(config, objective_config)
    objective = FAMILY.training.build_objective(objective_config, TOKENIZER)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses, carried = [], None
    for step in range(30):
        terms, _ = objective(model, batch, carried, seed=step)
        loss = sum(term.weight * term.total / term.count for term in terms.values())
        optimizer.zero_grad()
        (loss * FAMILY.training.gradient_scale(objective_config)).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_same_seed_same_bits(config: ElmoConfig, objective_config: ElmoObjectiveConfig) -> None:
    config = config.model_copy(update={"dropout": 0.3})
    objective_config = objective_config.model_copy(update=SAMPLED)
    gradients = []
    for _ in range(2):
        model = make_model(config)
        terms, _ = FAMILY.training.build_objective(objective_config, TOKENIZER)(
            model, make_batch(config, objective_config), None, seed=7
        )
        sum(term.total for term in terms.values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(config: ElmoConfig, objective_config: ElmoObjectiveConfig, autocast: bool) -> None:
    objective_config = objective_config.model_copy(update=SAMPLED)
    model, batch = make_model(config), make_batch(config, objective_config)
    objective = FAMILY.training.build_objective(objective_config, TOKENIZER)
    exact, _ = objective(model, batch, None, seed=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        rough, carried = objective(model if autocast else model.bfloat16(), batch, None, seed=0)
    assert carried is not None and carried.dtype == torch.float32
    for name, term in rough.items():
        assert term.total.dtype == torch.float32
        assert term.total.item() == pytest.approx(exact[name].total.item(), rel=0.02)
    torch.stack([term.total for term in rough.values()]).sum().backward()


def test_candidates_are_as_frequent_as_expected() -> None:
    """Mean presence of each id over draws, against 1 - (1 - P)^tries, which is what the logits are corrected by."""
    size, number, draws = 1000, 60, 600
    probability = (np.log(np.arange(size) + 2) - np.log(np.arange(size) + 1)) / np.log(size + 1)
    present, expected = np.zeros(size), np.zeros(size)
    for seed in range(draws):
        ids, num_tries = draw_candidates(np.random.default_rng(seed), size, number)
        assert len(set(ids.tolist())) == number and 0 <= ids.min() <= ids.max() < size
        assert num_tries >= number
        present[ids] += 1 / draws
        expected += -np.expm1(num_tries * np.log1p(-probability)) / draws
    assert present.sum() == pytest.approx(number)
    assert expected.sum() == pytest.approx(number, rel=0.02)
    error = np.sqrt(expected * (1 - expected) / draws) + 1e-3
    assert np.abs((present - expected) / error)[:100].max() < 4.5


def test_number_of_tries_of_the_original_size() -> None:
    """About 16,041 draws for 8,192 of 793,471 words (elmo.md 3.3); nearly all of a vocabulary can be drawn, too."""
    _, num_tries = draw_candidates(np.random.default_rng(0), 793_471, 8192)
    assert 15_800 < num_tries < 16_500
    ids, num_tries = draw_candidates(np.random.default_rng(0), 300, 299)
    assert len(set(ids.tolist())) == 299 and num_tries > 1000


def test_errors(config: ElmoConfig, objective_config: ElmoObjectiveConfig) -> None:
    sampled = objective_config.model_copy(update={"softmax": "sampled", "num_negatives": 33})
    with pytest.raises(ConfigError, match=r"objective.num_negatives \(33\) .* 33 words: set objective.softmax to full"):
        FAMILY.training.build_objective(sampled, TOKENIZER)
    objective, batch = (
        FAMILY.training.build_objective(objective_config, TOKENIZER),
        make_batch(config, objective_config),
    )
    with pytest.raises(ExportError, match=r"no \*softmax_weights.hdf5"):
        objective(ElmoModel(config, None), batch, None, seed=0)
    with pytest.raises(ExportError, match="predicts 40 words, the vocabulary has 33"):
        objective(ElmoModel(config, 40), batch, None, seed=0)


def test_weights_are_read_by_their_own_module_only(config: ElmoConfig, objective_config: ElmoObjectiveConfig) -> None:
    """What ZeRO-3 asks for: here a parameter exists only while its own module's forward runs."""
    objective_config = objective_config.model_copy(update=SAMPLED)
    model, batch = make_model(config), make_batch(config, objective_config)
    objective = FAMILY.training.build_objective(objective_config, TOKENIZER)
    expected, _ = objective(model, batch, None, seed=0)
    for module in model.modules():
        whole = dict(module.named_parameters(recurse=False))
        sharded = {name: torch.nn.Parameter(torch.empty(0)) for name in whole}
        module._parameters.update(sharded)
        module.register_forward_pre_hook(lambda m, _, whole=whole: m._parameters.update(whole))
        module.register_forward_hook(lambda m, *_, sharded=sharded: m._parameters.update(sharded))
    terms, _ = objective(model, batch, None, seed=0)
    assert {name: term.total for name, term in terms.items()} == {name: term.total for name, term in expected.items()}
    FAMILY.encode(model.encoder.eval(), [TOKENIZER.pieces("w1 w2")], None)
