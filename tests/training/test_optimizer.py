"""The optimizers against their formulas in float64, and the learning rate that a run logs."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.plan import BYTES_PER_PARAMETER
from pretrain.config.training import AdagradConfig, AdamWConfig, LambConfig, MuonConfig, OptimizerConfig
from pretrain.models import get_family
from pretrain.train import train
from pretrain.training.adam import Lamb
from pretrain.training.muon import Muon, orthogonal, scaled_orthogonal
from pretrain.training.optimizer import STATES, build_optimizer, empty_states, update_kind
from pretrain.training.partitions import ParameterPart
from tests.tiny import metrics, tiny_config
from tests.training.formulas import Adam, formula, newton_schulz

RATES = [0.1, 0.2, 0.3, 0.2, 0.1]
ADAM = {"peak_learning_rate": 1.0, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-2, "weight_decay": 0.1}
CONFIGS: dict[str, OptimizerConfig] = {
    "adagrad": AdagradConfig(kind="adagrad", peak_learning_rate=1.0, initial_accumulator=0.7),
    "adamw": AdamWConfig(**ADAM),
    "adamw-uncorrected": AdamWConfig(**ADAM, bias_correction=False),
    "lamb": LambConfig(kind="lamb", **ADAM),
    "lamb-uncorrected": LambConfig(kind="lamb", **ADAM, bias_correction=False),
    "muon": MuonConfig(kind="muon", **ADAM, momentum=0.7),
    "muon-two-rates": MuonConfig(kind="muon", **ADAM, bias_correction=False, matrix_learning_rate=0.3),
    "lamb-bounded": LambConfig(kind="lamb", **ADAM, min_trust_ratio=0.4, max_trust_ratio=0.6),
}
NAMED = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


HIDDEN = {"dense.weight": 2, "nothing.weight": 1, "stack.gates": 3}
"""The small model's hidden matrices: how many lie side by side in each parameter."""


def small_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(config, model, get_family("bert").training.no_decay, lambda name: HIDDEN.get(name, 0))


def small_model() -> nn.Module:
    """A model with weights, biases and a LayerNorm, whose names are as a BERT's, and the gates of a pair of LSTMs."""
    torch.manual_seed(3)
    modules = {
        "dense": nn.Linear(4, 3),
        "layer_norm": nn.LayerNorm(3),
        "other": nn.Linear(3, 2),
        "nothing": nn.Linear(3, 3),
        "stack": nn.ParameterDict({"gates": torch.randn(2, 5, 12)}),
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
        group["lr"] = rate * group["peak_lr"]
    for name, parameter in model.named_parameters():
        parameter.grad = gradient[name].clone()
    optimizer.step()


@NAMED
def test_every_optimizer_is_its_formula(config: OptimizerConfig) -> None:
    """Five steps of other learning rates; weights alone are decayed and scaled, not biases and LayerNorms."""
    model = small_model()
    optimizer = small_optimizer(config, model)
    decayed = {"dense.weight", "other.weight", "nothing.weight", "stack.gates"}
    formulas = {
        name: formula(config, exempt=name not in decayed, side_by_side=HIDDEN.get(name, 0))
        for name, _ in model.named_parameters()
    }
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
    optimizer = build_optimizer(config, nn.ParameterDict({"w": weight}), lambda name: False, lambda name: 0)
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
        optimizer = build_optimizer(config, nn.ParameterDict({"w": weight}), lambda name: False, lambda name: 0)
        weight.grad = torch.tensor([0.5])
        optimizer.step()
        assert weight.item() == pytest.approx(-1e-3 * length, rel=1e-5)


def test_lamb_of_partitions_is_lamb_of_parameters() -> None:
    """One after another in a vector, as ZeRO has them; what is between and after them may be anything."""
    model, config = small_model(), CONFIGS["lamb"]
    optimizer = small_optimizer(config, model)
    decayed = [model.get_parameter(name) for name in ("dense.weight", "other.weight", "nothing.weight")]
    padding = torch.full((2,), math.nan, dtype=torch.float64)
    flat = nn.Parameter(torch.cat([part for p in decayed for part in (p.detach().flatten(), padding)]))
    partitioned = Lamb([{"params": [flat], "scaled": True}], bounds=(0, math.inf), **optimizer.defaults)
    slices, start = [], 0
    for parameter in decayed:
        slices.append(slice(start, start + parameter.numel()))
        start += parameter.numel() + len(padding)
    parts = [ParameterPart(p, p.shape, where, 0) for p, where in zip(decayed, slices, strict=True)]
    nothing = ParameterPart(decayed[0], decayed[0].shape, slice(0, 0), 0)
    partitioned.set_partitions({flat: [*parts, nothing]})
    for rate, gradient in zip(RATES, gradients(model), strict=True):
        update(model, optimizer, gradient, rate)
        flat.grad = torch.cat([part for p in decayed for part in (p.grad.flatten(), padding)])  # type: ignore[union-attr]
        partitioned.param_groups[0]["lr"] = rate
        partitioned.step()
    for parameter, where in zip(decayed, slices, strict=True):
        torch.testing.assert_close(flat[where], parameter.flatten(), rtol=1e-14, atol=1e-14)


def test_muon_of_partitions_is_muon_of_parameters() -> None:
    """One rank holds everything here, in another order; what is between and after the parameters is left alone."""
    model, config = small_model(), CONFIGS["muon"]
    optimizer = small_optimizer(config, model)
    held = [model.get_parameter(name) for name in ("stack.gates", "nothing.weight", "dense.weight")]
    padding = torch.full((2,), math.nan, dtype=torch.float64)
    flat = nn.Parameter(torch.cat([part for p in held for part in (p.detach().flatten(), padding)]))
    group = next(group for group in optimizer.param_groups if group["matrices"]) | {"params": [flat]}
    side_by_side = {model.get_parameter(name): count for name, count in HIDDEN.items()}
    partitioned = Muon([group], matrices=side_by_side, **optimizer.defaults)
    parts, start = [], 0
    for p in held:
        parts.append(ParameterPart(p, p.shape, slice(start, start + p.numel()), 0))
        start += p.numel() + len(padding)
    partitioned.set_partitions({flat: parts})
    for rate, gradient in zip(RATES, gradients(model), strict=True):
        update(model, optimizer, gradient, rate)
        flat.grad = torch.cat([part for p in held for part in (p.grad.flatten(), padding)])  # type: ignore[union-attr]
        partitioned.param_groups[0]["lr"] = rate
        partitioned.step()
    for part in parts:
        torch.testing.assert_close(flat[part.where], part.parameter.flatten(), rtol=1e-12, atol=1e-14)
    assert flat.isnan().sum() == len(padding) * len(held)


@pytest.mark.parametrize("kind", ["lamb", "muon"])
def test_a_partition_is_not_taken_for_a_parameter(kind: str) -> None:
    """A LAMB that nobody told its slices would scale all parameters alike."""
    optimizer = small_optimizer(CONFIGS[kind], small_model())
    flat = nn.Parameter(torch.ones(30))
    flat.grad = torch.ones(30)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(KeyError):
        optimizer.step()


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48), (2, 3, 24, 40)])
def test_singular_values_come_near_1(shape: tuple[int, ...]) -> None:
    """In float32 as in float64. Jordan's coefficients trade nearness for speed: 0.01 to 1 ends within 0.68 and 1.14."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    kept = torch.linalg.svdvals(matrices / torch.linalg.matrix_norm(matrices, keepdim=True)) > 0.01
    assert kept.double().mean() > 0.95
    assert values[kept].min() > 0.68 and values[kept].max() < 1.14
    torch.testing.assert_close(orthogonal(matrices.float()).double(), found, rtol=0, atol=1e-5)
    one = matrices.reshape(-1, *shape[-2:])[-1].numpy()
    torch.testing.assert_close(found.reshape(-1, *shape[-2:])[-1], torch.from_numpy(newton_schulz(one)))


def test_a_matrix_is_as_orthogonal_however_small_its_gradient() -> None:
    """Down to where squares are lost; of less than that, and of zeros, nothing large is made."""
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    for size in (1e4, 1e-4, 1e-12):
        torch.testing.assert_close(orthogonal(matrix * size), orthogonal(matrix), rtol=1e-5, atol=1e-5)
    assert all(orthogonal(matrix * size).abs().max() < 1.2 for size in (1e-16, 1e-19, 1e-22, 1e-30))
    assert torch.equal(orthogonal(torch.zeros(6, 4)), torch.zeros(6, 4))


def test_muons_update_is_as_large_as_adamws() -> None:
    """0.2 is the root mean square of its elements, whatever the shape (Liu et al. 2025, §2.2)."""
    for shape, side_by_side in (((64, 64), 1), ((16, 256), 1), ((256, 16), 1), ((2, 32, 256), 4)):
        update = scaled_orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1)), side_by_side)
        assert update.shape == shape
        assert 0.68 * 0.2 < update.square().mean().sqrt() < 1.14 * 0.2, shape


@pytest.mark.parametrize("kind", ["elmo", "bert"])
def test_a_family_names_its_hidden_matrices(kind: str) -> None:
    """As many parameters as its config counts; each of whole matrices, and most of a model's."""
    training, config = get_family(kind).training, tiny_config(kind, Path("corpus.txt"), Path("runs"))
    with torch.device("meta"):
        model = training.build_model(config.model, config.objective, 200)
    found = {name: p for name, p in model.named_parameters() if training.hidden_matrices(name)}
    assert sum(p.numel() for p in found.values()) == config.model.hidden_matrix_parameters
    assert all(p.ndim >= 2 and p.shape[-1] % training.hidden_matrices(name) == 0 for name, p in found.items())
    assert not any("embedding" in name or "softmax" in name or "convolution" in name for name in found)


def test_hidden_matrices_by_name() -> None:
    bert, elmo = (get_family(kind).training.hidden_matrices for kind in ("bert", "elmo"))
    layer = "encoder.layers.0"
    assert bert(f"{layer}.attention.query.weight") == bert(f"{layer}.output.weight") == 1
    assert bert("masked_words.transform.weight") == 1
    others = [
        "encoder.embeddings.positions.weight",
        "masked_words.norm.weight",
        "pooler.weight",
        "next_sentence.weight",
    ]
    assert not any(map(bert, [*others, f"{layer}.attention.query.bias", f"{layer}.output_norm.weight"]))
    assert elmo("encoder.stack.layers.1.weight") == 4, "a gate each"
    assert elmo("encoder.stack.layers.1.projection") == elmo("encoder.token_encoder.highways.0.carry.weight") == 1
    assert elmo("encoder.token_encoder.projection.weight") == 1
    others = [
        "softmax.weight",
        "encoder.token_encoder.convolutions.0.weight",
        "encoder.token_encoder.characters.weight",
    ]
    assert not any(map(elmo, [*others, "encoder.stack.layers.0.bias", "encoder.token_encoder.projection.bias"]))


@pytest.mark.parametrize("kind", ["elmo", "bert"])
def test_a_config_says_whether_its_family_decays_weights(kind: str) -> None:
    training, config = get_family(kind).training, tiny_config(kind, Path("corpus.txt"), Path("runs"))
    with torch.device("meta"):
        model = training.build_model(config.model, config.objective, 200)
    names = [name for name, _ in model.named_parameters()]
    assert any(not training.no_decay(name) for name in names) == config.model.decays_weights


def test_a_family_that_decays_nothing_has_one_group() -> None:
    training = get_family("elmo").training
    config = AdamWConfig(peak_learning_rate=1.0)
    optimizer = build_optimizer(config, small_model(), training.no_decay, training.hidden_matrices)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


def test_bert_names_what_is_not_decayed() -> None:
    no_decay = get_family("bert").training.no_decay
    assert no_decay("encoder.layers.0.attention.query.bias")
    assert no_decay("encoder.embeddings.norm.weight")
    assert not no_decay("encoder.embeddings.words.weight")
    assert not no_decay("pooler.weight")


@NAMED
@pytest.mark.parametrize("side_by_side", [0, 1])
def test_empty_states_are_what_the_optimizer_makes(config: OptimizerConfig, side_by_side: int) -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    parameter.grad = torch.zeros(3, 2)
    model = nn.ParameterDict({"weight": parameter})
    optimizer = build_optimizer(config, model, lambda name: True, lambda name: side_by_side)
    for _ in range(4):
        optimizer.step()
    kind = update_kind(config, optimizer, parameter)
    assert kind == ("adamw" if config.kind == "muon" and not side_by_side else config.kind)
    ours = empty_states(config, kind, parameter, 4)
    theirs = optimizer.state[parameter]
    assert ours.keys() == theirs.keys() >= set(STATES[kind])
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
