"""The module: its weights, and that a run of it is a plain loop over the same batches."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pretrain
from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus
from pretrain.data.prepare import ensure_prepared
from pretrain.data.stream import BlockOrder, StreamPosition, read_step_examples
from pretrain.models import get_family
from pretrain.runs.trained import read_tokenizer
from pretrain.runtime.seeding import seed_of
from pretrain.train import train
from pretrain.training.module import Pretraining
from tests.tiny import final_weights, metrics, tiny_config
from tests.training.formulas import clipped, formula

FAMILIES = ("elmo", "bert")
ONE = ["sharding.ranks=1", "sharding.zero_stage=0", "model.dropout=0"]
OPTIMIZERS = {
    "adagrad": "optimizer={kind: adagrad, peak_learning_rate: 0.05, clip_norm: 0}",
    # With an epsilon like the gradients, and clipped, they are not blind to the gradient's scale.
    "adamw": "optimizer={kind: adamw, peak_learning_rate: 0.05, epsilon: 0.1, weight_decay: 0.1, clip_norm: 0.5, "
    "bias_correction: false}",
    "lamb": "optimizer={kind: lamb, peak_learning_rate: 0.05, epsilon: 0.1, weight_decay: 0.1, clip_norm: 0.5}",
}


def prepared(config: RunConfig) -> PreparedCorpus:
    return ensure_prepared(config, get_family(config.model.kind))


def weights(config: RunConfig) -> dict[str, Tensor]:
    module = Pretraining(config, read_tokenizer(config, prepared(config).fetch_tokenizer()))
    return {name: p.detach() for name, p in module.model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_a_function_of_config_and_vocabulary(family: str, corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(family, corpus, tmp_path)
    torch.manual_seed(1)
    first, state = weights(config), torch.get_rng_state()
    torch.manual_seed(2)
    again = weights(tiny_config(family, corpus, tmp_path, "name=other", "sharding.ranks=4", "batch.micro_size=4"))
    assert all(torch.equal(again[name], value) for name, value in first.items())
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "making a module draws nothing from the caller's generator"
    other = weights(tiny_config(family, corpus, tmp_path, "seed=2"))
    assert not all(torch.equal(other[name], value) for name, value in first.items())


def test_public_modules_refuse_the_other_family(corpus: Path, tmp_path: Path) -> None:
    classes = {"elmo": pretrain.ElmoPretraining, "bert": pretrain.BertPretraining}
    for family, mine in classes.items():
        config = tiny_config(family, corpus, tmp_path)
        tokenizer = read_tokenizer(config, prepared(config).fetch_tokenizer())
        assert mine(config, tokenizer).family.kind == family
        (other,) = [theirs for theirs in classes.values() if theirs is not mine]
        with pytest.raises(ValueError, match=f"the config's model.kind is {family}"):
            other(config, tokenizer)


@dataclass
class Expected:
    """What a plain loop computes: a loss per step, and the weights after them."""

    losses: list[float]
    weights: dict[str, Tensor]
    norms: list[float]


def plain_loop(config: RunConfig, steps: int) -> Expected:
    """Whole steps in plain torch, updates by float64 formulas; candidates are drawn by the run's own key."""
    corpus, family = prepared(config), get_family(config.model.kind)
    tokenizer = read_tokenizer(config, corpus.fetch_tokenizer())
    maker = family.training.build_examples(config.model, config.objective, tokenizer, config.rows_per_lane)
    lanes = config.data.lanes
    order = BlockOrder(corpus.training, {0: maker}, config.seed, lanes)
    steps_examples = read_step_examples(order, range(lanes), config.rows_per_lane, StreamPosition.start(lanes))
    objective = family.training.build_objective(config.objective, tokenizer)
    model = Pretraining(config, tokenizer).model.train()
    names = [name for name, _ in model.named_parameters()]
    updates = {name: formula(config.optimizer, exempt=family.training.no_decay(name)) for name in names}
    scale = {"elmo": config.objective.tokens_per_example, "bert": 1}[config.model.kind]
    carried: Tensor | None = None
    losses, norms = [], []
    for step in range(steps):
        seed = seed_of(config.seed, "objective", step)
        terms, carried = objective(model, maker.collate(next(steps_examples).arrays), carried, seed=seed)
        carried = None if carried is None else carried.detach()
        loss = torch.stack([term.weight * term.total / term.count for term in terms.values()]).sum()
        model.zero_grad()
        (loss * scale).backward()
        rate = config.optimizer.peak_learning_rate * config.schedule.factor(step)
        found = {name: p.grad.double().numpy() for name, p in model.named_parameters()}
        for name, gradient in clipped(found, config.optimizer.clip_norm).items():
            p = model.get_parameter(name).data
            p.copy_(torch.from_numpy(updates[name](p.double().numpy(), gradient, rate)))
        losses.append(loss.item())
        norms.append(float(sum((gradient**2).sum() for gradient in found.values()) ** 0.5))
    return Expected(losses, {name: p.detach() for name, p in model.named_parameters()}, norms)


@pytest.mark.parametrize(
    ("family", "optimizer"), [("elmo", "adagrad"), ("bert", "adagrad"), ("bert", "adamw"), ("bert", "lamb")]
)
def test_a_run_is_a_plain_loop(family: str, optimizer: str, corpus: Path, tmp_path: Path) -> None:
    """The loss is sum ÷ global count, and the update has its scale, in one micro-batch and in four."""
    for micro_size in (32, 8):
        more = [*ONE, OPTIMIZERS[optimizer], f"batch.micro_size={micro_size}", f"name=micro-{micro_size}"]
        config = tiny_config(family, corpus, tmp_path, *more)
        train(config, stop_after=3)
        expected = plain_loop(config, 3)
        torch.testing.assert_close([line["loss"] for line in metrics(config)], expected.losses, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            [line["gradient_norm"] for line in metrics(config)], expected.norms, rtol=1e-5, atol=0
        )
        assert config.optimizer.clip_norm == 0 or max(expected.norms) > 1.5 * config.optimizer.clip_norm
        for name, value in final_weights(config).items():
            torch.testing.assert_close(value, expected.weights[name], rtol=1e-5, atol=1e-6)
