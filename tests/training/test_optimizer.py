"""The optimizers against their formulas in float64, and the learning rate that a run logs."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.plan import BYTES_PER_PARAMETER
from pretrain.config.training import AdagradConfig, AdamWConfig, LambConfig, OptimizerConfig
from pretrain.models import get_family
from pretrain.train import train
from pretrain.training.optimizer import STATES, Lamb, build_optimizer, empty_states
from tests.tiny import metrics, tiny_config
from tests.training.formulas import Adam, formula

RATES = [0.1, 0.2, 0.3, 0.2, 0.1]
ADAM = {"peak_learning_rate": 1.0, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-2, "weight_decay": 0.1}
CONFIGS: dict[str, OptimizerConfig] = {
    "adagrad": AdagradConfig(kind="adagrad", peak_learning_rate=1.0, initial_accumulator=0.7),
    "adamw": AdamWConfig(**ADAM),
    "adamw-uncorrected": AdamWConfig(**ADAM, bias_correction=False),
    "lamb": LambConfig(kind="lamb", **ADAM),
    "lamb-uncorrected": LambConfig(kind="lamb", **ADAM, bias_correction=False),
    "lamb-bounded": LambConfig(kind="lamb", **ADAM, min_trust_ratio=0.4, max_trust_ratio=0.6),
}
NAMED = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def small_model() -> nn.Module:
    """A model with weights, biases and a LayerNorm, whose names are as a BERT's."""
    torch.manual_seed(3)
    modules = {
        "dense": nn.Linear(4, 3),
        "layer_norm": nn.LayerNorm(3),
        "other": nn.Linear(3, 2),
        "nothing": nn.Linear(3, 3),
    }
    model = nn.ModuleDict(modules).to(torch.float64)
    nn.init.zeros_(model.get_parameter("nothing.weight"))
    return model


def gradients(model: nn.Module) -> list[dict[str, Tensor]]:
    """One gradient per parameter and step; they grow, so that bias correction shows, and differ by parameter."""
    generator = torch.Generator().manual_seed(5)
    return [
        {
            name: (step + 1) * (i + 1) * 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for i, (name, p) in enumerate(model.named_parameters())
        }
        for step in range(len(RATES))
    ]


def update(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: dict[str, Tensor], rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    for name, parameter in model.named_parameters():
        parameter.grad = gradient[name].clone()
    optimizer.step()


@NAMED
def test_every_optimizer_is_its_formula(config: OptimizerConfig) -> None:
    """Five steps of other learning rates; weights alone are decayed and scaled, not biases and LayerNorms."""
    model = small_model()
    optimizer = build_optimizer(config, model, get_family("bert").training.no_decay)
    decayed = {"dense.weight", "other.weight", "nothing.weight"}
    formulas = {name: formula(config, exempt=name not in decayed) for name, _ in model.named_parameters()}
    expected = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    ratios = set()
    for rate, gradient in zip(RATES, gradients(model), strict=True):
        update(model, optimizer, gradient, rate)
        for name, step in formulas.items():
            expected[name] = step(expected[name], gradient[name].numpy(), rate)
            found = model.get_parameter(name).detach()
            torch.testing.assert_close(found, torch.from_numpy(expected[name]), rtol=1e-12, atol=1e-14)
            if isinstance(step, Adam) and name in decayed:
                ratios.add(step.ratio)
    if isinstance(config, LambConfig):
        assert 1.0 in ratios and len(ratios) > 2, "a weight of zeros has no ratio, others have"
        bounds = {config.min_trust_ratio, config.max_trust_ratio}
        assert bounds == {0.0, None} or bounds < ratios, "both bounds are at work"


def test_the_original_berts_own_test_of_its_adam() -> None:
    """google-research/bert, optimization_test.py: after 100 steps, the minimum to two digits."""
    weight, target = nn.Parameter(torch.tensor([0.1, -0.2, -0.1])), torch.tensor([0.4, 0.2, -0.5])
    config = AdamWConfig(peak_learning_rate=0.2, bias_correction=False, weight_decay=0.0)
    optimizer = build_optimizer(config, nn.ParameterDict({"w": weight}), lambda name: False)
    for _ in range(100):
        optimizer.zero_grad()
        (target - weight).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), target, rtol=1e-2, atol=1e-2)


def test_the_first_step_without_bias_correction() -> None:
    """m is a tenth of the gradient and √v its thirty-second part: a step is 3.16 times as long as a corrected one."""
    for correction, length in {True: 1.0, False: 0.1 / math.sqrt(0.001)}.items():
        weight = nn.Parameter(torch.zeros(1))
        config = AdamWConfig(peak_learning_rate=1e-3, bias_correction=correction, epsilon=1e-12)
        optimizer = build_optimizer(config, nn.ParameterDict({"w": weight}), lambda name: False)
        weight.grad = torch.tensor([0.5])
        optimizer.step()
        assert weight.item() == pytest.approx(-1e-3 * length, rel=1e-5)


def test_lamb_of_partitions_is_lamb_of_parameters() -> None:
    """One after another in a vector, as ZeRO has them; what is between and after them may be anything."""
    model, config = small_model(), CONFIGS["lamb"]
    optimizer = build_optimizer(config, model, get_family("bert").training.no_decay)
    decayed = [model.get_parameter(name) for name in ("dense.weight", "other.weight", "nothing.weight")]
    padding = torch.full((2,), math.nan, dtype=torch.float64)
    flat = nn.Parameter(torch.cat([part for p in decayed for part in (p.detach().flatten(), padding)]))
    partitioned = Lamb([{"params": [flat], "scaled": True}], bounds=(0, math.inf), **optimizer.defaults)
    slices, start = [], 0
    for parameter in decayed:
        slices.append(slice(start, start + parameter.numel()))
        start += parameter.numel() + len(padding)
    partitioned.set_partitions({flat: [*slices, slice(0, 0)]})
    for rate, gradient in zip(RATES, gradients(model), strict=True):
        update(model, optimizer, gradient, rate)
        flat.grad = torch.cat([part for p in decayed for part in (p.grad.flatten(), padding)])  # type: ignore[union-attr]
        partitioned.param_groups[0]["lr"] = rate
        partitioned.step()
    for parameter, where in zip(decayed, slices, strict=True):
        torch.testing.assert_close(flat[where], parameter.flatten(), rtol=1e-14, atol=1e-14)


def test_lamb_does_not_take_a_partition_for_a_parameter() -> None:
    """One that nobody told its slices would scale all parameters alike."""
    optimizer = build_optimizer(CONFIGS["lamb"], small_model(), get_family("bert").training.no_decay)
    flat = nn.Parameter(torch.ones(30))
    flat.grad = torch.ones(30)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(KeyError):
        optimizer.step()


@pytest.mark.parametrize("kind", ["elmo", "bert"])
def test_a_config_says_whether_its_family_decays_weights(kind: str) -> None:
    training, config = get_family(kind).training, tiny_config(kind, Path("corpus.txt"), Path("runs"))
    with torch.device("meta"):
        model = training.build_model(config.model, config.objective, 200)
    names = [name for name, _ in model.named_parameters()]
    assert any(not training.no_decay(name) for name in names) == config.model.decays_weights


def test_a_family_that_decays_nothing_has_one_group() -> None:
    optimizer = build_optimizer(
        AdamWConfig(peak_learning_rate=1.0), small_model(), get_family("elmo").training.no_decay
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


def test_bert_names_what_is_not_decayed() -> None:
    no_decay = get_family("bert").training.no_decay
    assert no_decay("encoder.layers.0.attention.query.bias")
    assert no_decay("encoder.embeddings.norm.weight")
    assert not no_decay("encoder.embeddings.words.weight")
    assert not no_decay("pooler.weight")


@NAMED
def test_empty_states_are_what_the_optimizer_makes(config: OptimizerConfig) -> None:
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


def test_the_plan_counts_the_bytes_of_every_optimizers_states() -> None:
    assert {kind: 4 * len(states) for kind, states in STATES.items()} == BYTES_PER_PARAMETER


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
