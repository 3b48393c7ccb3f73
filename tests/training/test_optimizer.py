"""The optimizers against their formulas in float64, and the learning rate that a run logs."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.training import AdagradConfig, AdamWConfig, ScheduleConfig
from pretrain.models import get_family
from pretrain.train import train
from pretrain.training.optimizer import STATES, build_optimizer, empty_states
from tests.runs import metrics, tiny_config

STEPS = 5


def small_model() -> nn.Module:
    """A model with weights, biases and a LayerNorm."""
    torch.manual_seed(3)
    model = nn.ModuleDict({"dense": nn.Linear(4, 3), "layer_norm": nn.LayerNorm(3)})
    return model.to(torch.float64)


def gradients(model: nn.Module) -> list[dict[str, Tensor]]:
    """One gradient per parameter and step."""
    generator = torch.Generator().manual_seed(5)
    return [
        {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in model.named_parameters()}
        for _ in range(STEPS)
    ]


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, rates: list[float]) -> dict[str, Tensor]:
    """The parameters after a step with each learning rate."""
    for rate, gradient in zip(rates, gradients(model), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name]
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


RATES = [0.1, 0.2, 0.3, 0.2, 0.1]


def test_adagrad() -> None:
    model = small_model()
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    sums = {name: torch.full_like(p, 0.7) for name, p in expected.items()}
    for rate, gradient in zip(RATES, gradients(model), strict=True):
        for name, value in expected.items():
            sums[name] += gradient[name] ** 2
            value -= rate * gradient[name] / sums[name].sqrt()
    config = AdagradConfig(kind="adagrad", peak_learning_rate=1.0, initial_accumulator=0.7)
    optimizer = build_optimizer(config, model, get_family("elmo").no_decay)
    found = trained(model, optimizer, RATES)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(optimizer.state[model.get_parameter(name)]["sum"], sums[name])


def test_adamw_decays_all_but_biases_and_layer_norms() -> None:
    model = small_model()
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    means = {name: torch.zeros_like(p) for name, p in expected.items()}
    squares = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step, (rate, gradient) in enumerate(zip(RATES, gradients(model), strict=True), 1):
        for name, value in expected.items():
            value *= 1 - rate * (0.1 if name == "dense.weight" else 0.0)
            means[name] = 0.8 * means[name] + 0.2 * gradient[name]
            squares[name] = 0.95 * squares[name] + 0.05 * gradient[name] ** 2
            mean, square = means[name] / (1 - 0.8**step), squares[name] / (1 - 0.95**step)
            value -= rate * mean / (square.sqrt() + 1e-4)
    config = AdamWConfig(peak_learning_rate=1.0, beta1=0.8, beta2=0.95, epsilon=1e-4, weight_decay=0.1)
    found = trained(model, build_optimizer(config, model, get_family("bert").no_decay), RATES)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


def test_a_family_that_decays_nothing_has_one_group() -> None:
    optimizer = build_optimizer(AdamWConfig(peak_learning_rate=1.0), small_model(), get_family("elmo").no_decay)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


def test_bert_names_what_is_not_decayed() -> None:
    no_decay = get_family("bert").no_decay
    assert no_decay("encoder.layers.0.attention.query.bias")
    assert no_decay("encoder.embeddings.norm.weight")
    assert not no_decay("encoder.embeddings.words.weight")
    assert not no_decay("pooler.weight")


@pytest.mark.parametrize(
    "config", [AdamWConfig(peak_learning_rate=1.0), AdagradConfig(kind="adagrad", peak_learning_rate=1.0)]
)
def test_empty_states_are_what_the_optimizer_makes(config: AdamWConfig | AdagradConfig) -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    optimizer = build_optimizer(config, nn.ParameterDict({"weight": parameter}), lambda name: True)
    for _ in range(4):
        optimizer.step()
    ours = empty_states(config, parameter, 4)
    theirs = optimizer.state[parameter]
    assert ours.keys() == theirs.keys() >= set(STATES[config.kind])
    for key, value in theirs.items():  # after gradients of zero
        torch.testing.assert_close(ours[key], value)


def test_the_schedule() -> None:
    linear = ScheduleConfig(total_steps=10, warmup_steps=4)
    assert [linear.factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [linear.factor(step) for step in (4, 7, 9, 10)] == pytest.approx([1.0, 0.5, 1 / 6, 0.0])
    constant = ScheduleConfig(total_steps=10, warmup_steps=2, decay="constant")
    assert [constant.factor(step) for step in (0, 1, 9, 99)] == [0.5, 1.0, 1.0, 1.0]


def test_a_run_logs_the_learning_rate_of_each_step(corpus: Path, tmp_path: Path) -> None:
    overrides = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=8", "schedule.warmup_steps=3"]
    config = tiny_config("bert", corpus, tmp_path, *overrides)
    train(config, stop_after=5)
    train(config)
    peak = config.optimizer.peak_learning_rate
    expected = [peak * (step / 3 if step <= 3 else (9 - step) / 5) for step in range(1, 9)]
    lines = metrics(config)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected, rel=1e-12)
    assert all(math.isfinite(line["gradient_norm"]) for line in lines)
