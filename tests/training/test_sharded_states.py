"""A run's tensors by name: what is collected comes back, whatever holds it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.config.training import AdagradConfig, AdamWConfig, LambConfig, MuonConfig, OptimizerConfig
from pretrain.data.stream import StreamPosition
from pretrain.runs import checkpoints
from pretrain.runs.checkpoints import Best, State
from pretrain.training import sharded_states
from pretrain.training.optimizer import STATES, build_optimizer

STATE = State(3, StreamPosition({0: (1, 2), 1: (3, 4)}), "c0ffee", {"torch": "2"}, Best(2, 1.5, "text"))
ADAMW = AdamWConfig(peak_learning_rate=0.1)
CONFIGS = {
    "adamw": ADAMW,
    "adamw-uncorrected": AdamWConfig(peak_learning_rate=0.1, bias_correction=False),
    "lamb": LambConfig(kind="lamb", peak_learning_rate=0.1),
    "muon": MuonConfig(kind="muon", peak_learning_rate=0.1),
    "adagrad": AdagradConfig(kind="adagrad", peak_learning_rate=0.1),
}


def build(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a small model, in which the first layer's weight is a hidden matrix."""
    return build_optimizer(config, model, lambda name: name.endswith("bias"), lambda name: int(name == "0.weight"))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (i + step + 1))
        optimizer.step()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_round_trip(config: OptimizerConfig, tmp_path: Path) -> None:
    """Another model and optimizer, restored, go on as the saved ones do; bitwise."""

    def make(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        return model, build(config, model)

    model, optimizer = make(1)
    update(model, optimizer, 3)
    tensors = sharded_states.collect(model, optimizer, config, zero_stage=0, rank=0, ranks=1)
    path = checkpoints.save(tmp_path, STATE, tensors, torch.ones(4, 2), rank=0, ranks=1)
    assert path.name == "step-00000003" and checkpoints.incomplete(path) is None
    assert checkpoints.read_state(path) == STATE
    for name, value in checkpoints.read_weights(path).items():
        assert torch.equal(value, model.get_parameter(name))
    other, its_optimizer = make(2)
    sharded_states.restore(path, other, its_optimizer, config, zero_stage=0)
    update(model, optimizer, 2)
    update(other, its_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_each_rank_collects_its_share(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = build(ADAMW, model)
    update(model, optimizer, 1)
    parts = [sharded_states.collect(model, optimizer, ADAMW, zero_stage=0, rank=rank, ranks=2) for rank in range(2)]
    assert {key.partition("/")[2] for key in parts[0]} == {"0.weight", "1.weight"}
    assert {key.partition("/")[2] for key in parts[1]} == {"0.bias", "1.bias"}
    assert {key.partition("/")[0] for part in parts for key in part} == {"weight", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_model_can_be_saved_before_its_first_step(config: OptimizerConfig) -> None:
    """Its states are what the first step would have started from."""
    torch.manual_seed(1)
    models = [nn.Sequential(nn.Linear(3, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    begun, plain = (build(config, model) for model in models)
    sharded_states.begin(models[0], begun, config, zero_stage=0)
    tensors = sharded_states.collect(models[0], begun, config, zero_stage=0, rank=0, ranks=1)
    kinds = (config.kind, "adamw" if config.kind == "muon" else config.kind)  # of the weight and of the bias
    expected = {f"{key}/0.{name}" for name, kind in zip(("weight", "bias"), kinds, strict=True) for key in STATES[kind]}
    assert tensors.keys() == {"weight/0.weight", "weight/0.bias"} | expected
    for model, optimizer in zip(models, (begun, plain), strict=True):
        update(model, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
