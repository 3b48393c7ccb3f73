"""Lightning strategies from our config: one device, DDP, or DeepSpeed ZeRO on CUDA/NCCL and on CPU/gloo."""

import importlib
import math
import os
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy

from pretrain.config.run import RunConfig
from pretrain.runtime.collectives import TIMEOUT
from pretrain.training.callbacks import check_finite


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed on any device. Lightning refuses CPUs; DeepSpeed itself runs there, over gloo."""

    def setup_environment(self) -> None:
        """Gives CPU ranks the device index that DeepSpeed asks for, and skips Lightning's CUDA check."""
        if isinstance(self.accelerator, CPUAccelerator):
            assert self.parallel_devices is not None
            self.parallel_devices = [torch.device("cpu", i) for i in range(len(self.parallel_devices))]
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Ends a micro-batch, the last of a step with an update.

        Raises TrainingError, on all ranks alike, for a gradient with NaN or infinity: DeepSpeed would skip that step
        and go on, whatever its overflow check is set to.
        """
        result = super().optimizer_step(*args, **kwargs)
        engine: Any = self.model
        if engine.optimizer.overflow:
            module: Any = self.lightning_module
            check_finite(module.step + 1, "the norm of the gradient", math.inf)
        return result


def build_strategy(config: RunConfig, ranks: int, device: torch.device) -> Strategy:
    """The strategy of a run over `ranks` ranks in all."""
    sharding = config.sharding
    if sharding.zero_stage > 0:
        prepare_deepspeed(device)
        return ZeroStrategy(
            config=deepspeed_config(config),
            timeout=TIMEOUT,
            process_group_backend="nccl" if device.type == "cuda" else "gloo",
        )
    if ranks > 1:
        return DDPStrategy(process_group_backend="nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return SingleDeviceStrategy(device=device)


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """What DeepSpeed is told; Lightning adds the accumulation. Nothing that decides the result is left to a default.

    DeepSpeed trains in float32: weights, and gradients summed over micro-batches and ranks. `precision` is that of the
    products alone, and the step's (`steps.autocast`); DeepSpeed's own bf16 rounds weights and gradients too.

    Our optimizers are given as they are ("untested"). Buckets are far below DeepSpeed's default, which reserves
    gigabytes that a BERT does not need, and under ZeRO 3 would keep every weight of one gathered.
    """
    sharding = config.sharding
    return {
        "train_micro_batch_size_per_gpu": config.batch.micro_size,
        "gradient_clipping": config.optimizer.clip_norm,  # 0 is none; the default is 1.0
        "bf16": {"enabled": False, "check_grad_overflow": False},
        "fp16": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": sharding.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_bucket_size": sharding.bucket_elements,
            "allgather_bucket_size": sharding.bucket_elements,
            "stage3_param_persistence_threshold": sharding.persistence_threshold,
            "stage3_prefetch_bucket_size": sharding.bucket_elements,
            "stage3_max_live_parameters": sharding.bucket_elements,
            "stage3_max_reuse_distance": sharding.bucket_elements,
        },
    }


def prepare_deepspeed(device: torch.device) -> None:
    """Makes DeepSpeed start without compiling anything.

    On CPU it would compile a shared-memory all-reduce first, which needs a compiler and can hang for ever on a lock
    that a killed build leaves behind. gloo does the same work.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    backend: Any = importlib.import_module("deepspeed.comm.torch")  # as an attribute, that name is torch itself
    if device.type == "cpu":
        backend.build_shm_op = lambda: None
