"""What no published fixture covers: every layer, losses by direction, gradients of all parameters, one step of Adagrad.

Models are random and large in their weights, so that clips are met on both sides; the reference is in numpy.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.data.blocks import Block
from pretrain.data.prepare import ensure_prepared
from pretrain.data.stream import StreamPosition
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.objective import draw_candidates
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer
from pretrain.models.family import ModelFolder
from pretrain.models.loss import Batch
from pretrain.runs.trained import read_tokenizer
from pretrain.runtime.seeding import seed_of
from pretrain.runtime.world import World
from pretrain.train import train
from pretrain.training.module import Pretraining
from pretrain.training.trainer import build_loader
from tests.models.elmo.reference import BACKWARD, BEGIN, END, FORWARD, Floats, ReferenceBilm
from tests.tiny import final_weights, metrics, tiny_config

SENTENCES = (("a", "strange", "dog"), ("b", "c", "b", "e"), ("the",), ("f", "a", "unseen", "a", "d", "e"))
TOKENIZER = WordTokenizer((*SPECIAL_WORDS, *dict.fromkeys(itertools.chain(*SENTENCES)), "more"))
CLIPPED = {"cell_clip": 0.6, "projection_clip": 0.25}
ROWS = 2


def make_model(config: ElmoConfig, seed: int = 0) -> ElmoModel:
    """A model of large random weights."""
    torch.manual_seed(seed)
    model = ElmoModel(config, TOKENIZER.vocabulary_size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def reference(folder: Path, model: ElmoModel, config: ElmoConfig) -> ReferenceBilm:
    FAMILY.format.write(folder, ModelFolder(model, TOKENIZER, config, ElmoObjectiveConfig()))
    return ReferenceBilm(folder)


def windows(config: ElmoConfig, objective_config: ElmoObjectiveConfig) -> Iterator[Batch]:
    """The sentences as rows of held-out text, cut into windows."""
    words = [word for sentence in SENTENCES for word in sentence]
    distinct = sorted(set(words))
    block = Block(
        tokens=np.array([distinct.index(word) for word in words], np.int32),
        sentence_starts=np.cumsum([0, *map(len, SENTENCES)]),
        document_starts=np.array([0, len(SENTENCES)]),
        document_numbers=np.array([0]),
        words=tuple(distinct),
    )
    maker = FAMILY.training.build_examples(config, objective_config, TOKENIZER, ROWS)
    examples = maker.make(block, np.random.default_rng(0), pad=True)
    for start in range(0, len(examples), ROWS):
        yield maker.collate(examples.take(start, start + ROWS))


@pytest.mark.parametrize(
    "changes",
    [
        CLIPPED,
        {"num_layers": 1, "num_highways": 0, "activation": "tanh"},
        {"num_layers": 3, "skip_connections": False, "projection_clip": 0.25, "cell_clip": 0.0},
    ],
)
def test_every_layer(config: ElmoConfig, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Texts of unlike lengths in one batch, then more of them with the states carried; words beyond 48 bytes."""
    config = config.model_copy(update=changes)
    model = make_model(config).eval()
    expected = reference(tmp_path, model, config)
    beyond = ["x" * 47 + "é" * 2, "x" + "字" * 20, "y" * 48 + "one", "y" * 48 + "two"]  # 48 bytes end within é and 字
    batches = [[["a", *beyond, "dog"], ["never", "<S>"]], [["b"], [*beyond[::-1], "a", "c"]]]
    carried, states, clipped = None, [None, None], []
    for texts in batches:
        pieces = [TOKENIZER.pieces(text) for text in texts]
        vectors, carried = FAMILY.encode(model.encoder, pieces, carried)
        for row, text in enumerate(texts):
            layers, states[row] = expected.layers(text, states[row])
            assert len(vectors.layers) == len(layers) == config.num_layers + 1
            for ours, theirs in zip(vectors.layers, layers, strict=True):
                found = ours[row][vectors.mask[row]].numpy()
                np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=2e-5)
            clipped.append(np.abs(layers[1]) == config.projection_clip)
    assert np.array_equal(expected.token(beyond[2]), expected.token(beyond[3])), "what is cut off is not seen"
    if changes.get("projection_clip"):
        assert 0.05 < np.concatenate(clipped).mean() < 0.95, "both sides of the bound are tried"


def sampled_losses(bilm: ReferenceBilm, top: Floats, targets: list[int], candidates: list[int], tries: int) -> Floats:
    """Losses [n] of a softmax over the target and the candidates that are not it (Jean et al. 2015)."""
    size = len(bilm.vocabulary)
    losses = []
    for hidden, target in zip(top, targets, strict=True):
        chosen = [target, *(candidate for candidate in candidates if candidate != target)]
        share = np.array([math.log((i + 2) / (i + 1)) / math.log(size + 1) for i in chosen])
        logits = bilm.weights["softmax/W"][chosen] @ hidden + bilm.weights["softmax/b"][chosen]
        logits -= np.log(1 - (1 - share) ** tries)
        losses.append(np.log(np.exp(logits).sum()) - logits[0])
    return np.array(losses)


@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_losses_of_each_direction(config: ElmoConfig, tmp_path: Path, softmax: str) -> None:
    """Window by window with the states carried, in float64; the rows' text is written out here."""
    config = config.model_copy(update=CLIPPED)
    objective_config = ElmoObjectiveConfig.model_validate({"softmax": softmax, "num_negatives": 6, "unroll_length": 5})
    model = make_model(config)
    bilm = reference(tmp_path, model, config)
    objective = FAMILY.training.build_objective(objective_config, TOKENIZER)
    drawn: list[tuple[Any, ...]] = []
    model.softmax.register_forward_pre_hook(lambda _, inputs: drawn.append(inputs[2:4]))
    text = {
        FORWARD: [[BEGIN, *sentence, END] for sentence in SENTENCES],
        BACKWARD: [[END, *sentence[::-1], BEGIN] for sentence in SENTENCES[::-1]],
    }
    inputs = {direction: [w for s in sentences for w in s[:-1]] for direction, sentences in text.items()}
    targets = {direction: [w for s in sentences for w in s[1:]] for direction, sentences in text.items()}
    half = len(inputs[FORWARD]) // ROWS
    rows = {FORWARD: [slice(0, half), slice(half, None)], BACKWARD: [slice(half, None), slice(0, half)]}
    carried, states = None, {place: bilm.zero_state() for place in itertools.product((FORWARD, BACKWARD), range(ROWS))}
    for number, batch in enumerate(windows(config, objective_config)):
        terms, carried = objective(model.double(), batch, carried, seed=number)
        for direction, term in enumerate(terms.values()):
            total, count = 0.0, 0
            for row, piece in enumerate(rows[direction]):
                window = slice(number * 5, number * 5 + 5)
                read, predicted = inputs[direction][piece][window], targets[direction][piece][window]
                before, place = states[direction, row], (direction, row)
                if softmax == "full":
                    losses, states[place] = bilm.losses(direction, read, predicted, before)
                else:
                    outputs, states[place] = bilm.read(direction, read, before)
                    candidates, tries = drawn[2 * number + direction]
                    losses = sampled_losses(bilm, outputs[-1], bilm.ids(predicted), candidates.tolist(), tries)
                total, count = total + losses.sum(), count + len(losses)
            assert term.count.item() == count > 0
            assert term.total.item() == pytest.approx(total, rel=1e-10)
    assert number == 1 and terms["forward"].count < 2 * 5, "two windows, the second padded"


Values = dict[str, Tensor]


def slope(loss: Callable[[Values], float], values: Values, direction: Values, step: float = 1e-6) -> float:
    """The derivative of a loss along a direction of its parameters, by a central difference.

    The step is small, lest a maximum, a clip or a relu changes sides within it.
    """
    after, before = ({name: v + d * direction[name] for name, v in values.items()} for d in (step, -step))
    return (loss(after) - loss(before)) / (2 * step)


def parameters(model: ElmoModel) -> Values:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def random_direction(values: Values, seed: int) -> Values:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(v.shape, generator=generator, dtype=v.dtype) for name, v in values.items()}


@pytest.mark.parametrize("softmax", ["full", "sampled"])
@pytest.mark.parametrize("changes", [CLIPPED, {"num_layers": 3, "skip_connections": False, "activation": "tanh"}])
def test_gradients_of_all_parameters(config: ElmoConfig, softmax: str, changes: dict[str, Any]) -> None:
    """Of the whole loss, parameter by parameter, in float64: from the softmax to the characters' embedding.

    Through a window that goes on from another's state, with padding, and with dropout, whose masks the seed fixes.
    """
    config = config.model_copy(update={**changes, "dropout": 0.2})
    objective_config = ElmoObjectiveConfig.model_validate({"softmax": softmax, "num_negatives": 6, "unroll_length": 5})
    model = make_model(config, seed=1).double()
    objective = FAMILY.training.build_objective(objective_config, TOKENIZER)
    first, second = windows(config, objective_config)
    _, carried = objective(model, first, None, seed=0)
    assert carried is not None and carried.abs().min() > 0

    def loss() -> Tensor:
        torch.manual_seed(5)
        terms, _ = objective(model, second, carried, seed=1)
        return torch.stack([term.weight * term.total / term.count for term in terms.values()]).sum()

    def loss_at(values: Values) -> float:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(values[name])
            return loss().item()

    loss().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    values = parameters(model)
    directions = random_direction(values, seed=2)
    for name, gradient in gradients.items():
        assert gradient is not None
        along = {other: d if other == name else torch.zeros_like(d) for other, d in directions.items()}
        expected = slope(loss_at, values, along)
        assert abs(expected) > 1e-6, name
        assert (gradient * along[name]).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_what_truncated_back_propagation_leaves_out(config: ElmoConfig) -> None:
    """Two windows of 5 have the losses of one of 10; the second one's gradient takes the state before it as given."""
    config, losses = config.model_copy(update=CLIPPED), {}
    model = make_model(config).double()
    values = parameters(model)
    direction = random_direction(values, seed=3)

    def run(unroll_length: int, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The losses of each window, and the state after the first; `given` replaces that in the second."""
        objective_config = ElmoObjectiveConfig(softmax="full", unroll_length=unroll_length)
        objective = FAMILY.training.build_objective(objective_config, TOKENIZER)
        carried: Tensor | None = None
        totals, states = [], []
        for number, batch in enumerate(windows(config, objective_config)):
            carried = given if number and given is not None else carried
            terms, carried = objective(model, batch, carried, seed=0)
            assert carried is not None and not carried.requires_grad
            totals.append(torch.stack([term.total for term in terms.values()]).sum())
            states.append(carried)
        return torch.stack(totals), states[0]

    def loss_at(values: Values, *arguments: Any) -> float:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(values[name])
            return run(*arguments)[0].sum().item()

    whole, _ = run(10)
    two, state = run(5)
    assert (len(whole), len(two)) == (1, 2)
    torch.testing.assert_close(two.sum(), whole[0], rtol=1e-12, atol=1e-12)
    for name, total in (("whole", whole), ("two", two)):
        gradients = torch.autograd.grad(total.sum(), list(model.parameters()))
        losses[name] = sum((g * d).sum().item() for g, d in zip(gradients, direction.values(), strict=True))
    assert losses["whole"] == pytest.approx(slope(lambda v: loss_at(v, 10), values, direction), rel=1e-6)
    assert losses["two"] == pytest.approx(slope(lambda v: loss_at(v, 5, state), values, direction), rel=1e-6)
    assert abs(losses["whole"] - losses["two"]) > 0.01 * abs(losses["whole"]), "the two differ"


@pytest.mark.parametrize("unroll_length", [8, 60])
def test_a_step_of_adagrad(corpus: Path, tmp_path: Path, unroll_length: int) -> None:
    """A run's first step is w - 0.2 g / sqrt(1 + g²), g being the gradient of the mean loss times the window's length.

    It is scaled down to a norm of 10 if it is above, which only that of the long window is.
    """
    config = tiny_config(
        "elmo",
        corpus,
        tmp_path,
        *("sharding.ranks=1", "sharding.zero_stage=0", "model.dropout=0", "batch.micro_size=32"),
        f"objective.unroll_length={unroll_length}",
        "optimizer={kind: adagrad, peak_learning_rate: 0.2}",
    )
    train(config, stop_after=1)
    prepared = ensure_prepared(config, FAMILY)
    tokenizer, start = read_tokenizer(config, prepared.fetch_tokenizer()), StreamPosition.start(config.data.lanes)
    batch = next(iter(build_loader(config, tokenizer, prepared, start, World(0, 0, 1, 1)))).tensors
    model = Pretraining(config, tokenizer).model.train()
    objective = FAMILY.training.build_objective(config.objective, tokenizer)
    terms, _ = objective(model, batch, None, seed=seed_of(config.seed, "objective", 0))
    loss = torch.stack([term.total / term.count for term in terms.values()]).mean()
    weights = dict(model.named_parameters())
    gradients = [g.double() for g in torch.autograd.grad(unroll_length * loss, list(weights.values()))]
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    assert (norm > 11) if unroll_length == 60 else (0.1 < norm < 9)
    (line,) = metrics(config)
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    found = final_weights(config)
    for (name, before), whole in zip(weights.items(), gradients, strict=True):
        g = whole * min(1.0, 10 / norm)
        expected = before.detach().double() - 0.2 * g / (1 + g.square()).sqrt()
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(found[name], before)


def test_one_candidate_is_drawn_log_uniformly() -> None:
    """Chi-square over 30 ids, 29 degrees of freedom: above 70 once in 30,000 times."""
    rng, draws = np.random.default_rng(0), 20_000
    ids = np.array([draw_candidates(rng, 30, 1)[0][0] for _ in range(draws)])
    expected = draws * np.log((np.arange(30) + 2) / (np.arange(30) + 1)) / np.log(31)
    assert ((np.bincount(ids, minlength=30) - expected) ** 2 / expected).sum() < 70


@pytest.mark.parametrize(("vocabulary_size", "number"), [(100, 10), (1000, 300), (10_000, 1000), (300, 250)])
def test_candidates_of_every_frequency(vocabulary_size: int, number: int) -> None:
    """From the most to the least frequent tenth of ids, as many are drawn as 1 - (1 - P)^tries says, with its noise."""
    draws, tenths = 300, vocabulary_size // 10
    share = np.log1p(1 / (np.arange(vocabulary_size) + 1)) / np.log(vocabulary_size + 1)
    found, expected = np.zeros((draws, 10)), np.zeros((draws, 10))
    for seed in range(draws):
        ids, tries = draw_candidates(np.random.default_rng(seed), vocabulary_size, number)
        found[seed] = np.bincount(ids // tenths, minlength=10)
        expected[seed] = -np.expm1(tries * np.log1p(-share)).reshape(10, tenths).sum(axis=1)
    off = (found - expected).mean(axis=0)
    noise = (found - expected).std(axis=0) / math.sqrt(draws)
    assert (np.abs(off) < 4 * noise + 0.01 * expected.mean(axis=0)).all()
