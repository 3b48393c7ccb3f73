"""What DeepSpeed is told, as it reads it; and what autocast leaves in float32."""

from pathlib import Path

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from torch import nn

from pretrain.training.steps import autocast
from pretrain.training.strategy import deepspeed_config
from tests.tiny import tiny_config


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("clip_norm", [0, 0.5])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_is_left_no_default_that_decides_the_result(precision: str, clip_norm: float, stage: int) -> None:
    """Its defaults would clip to a norm of 1, and take the precision of weights for that of sums."""
    options = [
        f"precision={precision}",
        f"sharding.zero_stage={stage}",
        f"optimizer={{kind: adagrad, peak_learning_rate: 0.1, clip_norm: {clip_norm}}}",
    ]
    told = deepspeed_config(tiny_config("bert", Path("corpus.txt"), Path("runs"), *options))
    read = DeepSpeedConfig(told | {"gradient_accumulation_steps": 1})
    assert read.gradient_clipping == clip_norm
    assert read.zero_config.stage == stage
    assert read.grad_accum_dtype == "fp32" and read.communication_data_type == torch.float32
    assert not read.bfloat16_config.enabled and not read.float16_config.enabled and not read.torch_autocast_enabled
    assert not read.bfloat16_config.check_grad_overflow, "a step that is left out is an error, not a habit"
    explicit = {"gradient_clipping", "bf16", "fp16", "data_types", "communication_data_type"}
    assert explicit <= told.keys()


@pytest.mark.parametrize("uses", [1, 64])
def test_gradients_of_a_weight_add_up_in_float32(uses: int) -> None:
    """A weight that is used 64 times gets 64 gradients, each rounded to bfloat16, and their sum is not."""
    config = tiny_config("bert", Path("corpus.txt"), Path("runs"), "precision=bf16-mixed")
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 8, bias=False), torch.rand(uses, 4, 8)
    with autocast(config, torch.device("cpu")):
        outputs = [layer(part) for part in inputs]
    assert outputs[0].dtype == torch.bfloat16 and layer.weight.dtype == torch.float32
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    rounded = [part.bfloat16().float().sum(0).bfloat16().float().expand(8, 8) for part in inputs]
    torch.testing.assert_close(layer.weight.grad, torch.stack(rounded).sum(0), rtol=1e-6, atol=0)
