"""How a run is optimised, saved, watched and spread over ranks."""

import math
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pretrain.config.base import Converted, PathOption, Section

Steps = Annotated[int, Field(gt=0)]


class BatchConfig(Section):
    """How many examples make a step."""

    global_size: Annotated[int, Field(gt=0)]
    """Examples per optimizer step, over all ranks; a multiple of `data.lanes` and of `micro_size` times the ranks."""
    micro_size: Annotated[int, Field(gt=0)]
    """Examples per rank per forward and backward pass."""


class AnyAdamConfig(Section):
    """What AdamW and LAMB have in common."""

    peak_learning_rate: Annotated[float, Field(gt=0)]
    """Learning rate after the warm-up."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the gradient's running mean."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the squared gradient's running mean."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the denominator, outside its root."""
    bias_correction: bool = True
    """Whether the running means, which start at zero, are scaled up in the first steps; the original BERT's are not."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay, times the learning rate."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 means no clipping."""


class AdamWConfig(AnyAdamConfig):
    """AdamW; no decay on biases and LayerNorm."""

    kind: Literal["adamw"] = "adamw"


class LambConfig(AnyAdamConfig):
    """LAMB (You et al. 2020), for very large batches: AdamW's update of each matrix, times its trust ratio.

    The trust ratio is the norm of the weights over the norm of their update, decay included; 1 where either is 0.
    Biases and LayerNorm are left out: neither decay nor ratio.
    """

    kind: Literal["lamb"]
    min_trust_ratio: Annotated[float, Field(ge=0)] = 0.0
    """Smaller trust ratios are raised to this."""
    max_trust_ratio: Annotated[float, Field(gt=0)] | None = None
    """Larger trust ratios are lowered to this; `null` means no bound."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        least, most = self.min_trust_ratio, self.max_trust_ratio
        if most is not None and least > most:
            raise ValueError(f"min_trust_ratio ({least}) is more than max_trust_ratio ({most})")
        return self


class AdagradConfig(Section):
    """Adagrad as the original ELMo used it: no epsilon, accumulators start above zero."""

    kind: Literal["adagrad"]
    peak_learning_rate: Annotated[float, Field(gt=0)]
    """Learning rate after the warm-up."""
    initial_accumulator: Annotated[float, Field(gt=0)] = 1.0
    """Start of the sum of squared gradients."""
    clip_norm: Annotated[float, Field(ge=0)] = 10.0
    """Largest global gradient norm; 0 means no clipping."""


OptimizerConfig = Annotated[AdamWConfig | LambConfig | AdagradConfig, Field(discriminator="kind")]


class ScheduleConfig(Section):
    """The learning rate as a pure function of the step."""

    total_steps: Steps
    """Optimizer steps of the whole run."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up; a total shorter than this ends in the ramp."""
    decay: Literal["constant", "linear", "polynomial", "cosine", "trapezoid"] = "linear"
    """After the warm-up: the peak for ever; or down to zero at the last step, along a line, a power or half a cosine;
    or the peak, and a line to zero over the last share of the steps."""
    final_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Not for constant: the share of the peak that is left at the end, instead of zero."""
    power: Annotated[float, Field(gt=0)] | None = None
    """Polynomial only: the power of the share of the decay that is left; 1 is linear."""
    decay_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Trapezoid only: the share of all steps in which the rate falls, but never before the warm-up's end."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        for name, owner in {"power": "polynomial", "decay_share": "trapezoid"}.items():
            value = getattr(self, name)
            if self.decay == owner and value is None:
                problems.append(f"decay is {owner}, which needs {name}")
            elif self.decay != owner and value is not None:
                problems.append(f"{name} is {value}, which decay {self.decay} does not have: only {owner} does")
        if self.decay == "constant" and self.final_share:
            problems.append(f"final_share is {self.final_share}, which decay constant does not have")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by in step `step` (the first is 0)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        return self.final_share + (1 - self.final_share) * self._left(step)

    def _left(self, step: int) -> float:
        """Of the decay from 1 to 0: what is left after the warm-up."""
        if step >= self.total_steps:
            return 0.0
        decaying: float = self.total_steps - self.warmup_steps
        if self.decay_share is not None:
            decaying = min(decaying, self.decay_share * self.total_steps)
        left = min(1.0, (self.total_steps - step) / decaying)
        if self.decay == "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        return left if self.power is None else left**self.power


class CheckpointConfig(Section):
    """When the run is saved; it always is at its last step."""

    every_steps: Steps = 1000
    """Steps between checkpoints."""
    keep_last: Annotated[int, Field(ge=1)] = 3
    """Newest checkpoints kept; the best is kept as well."""


class ProbeConfig(Section):
    """A probe of the layers' vectors while training: a quick look; `pretrain probe` measures what is trained."""

    task: Literal[
        "pos",
        "dependencies",
        "entities",
        "senses",
        "wic",
        "minimal-pairs",
        "similarity",
        "classification",
        "geometry",
    ]
    """What is probed, as in `pretrain probe --task`."""
    data: PathOption
    """The file to probe with."""
    test: PathOption | None = None
    """What is tested on; by default a fifth of `data`."""
    max_sentences: Annotated[int, Field(gt=0)] | None = 500
    """Sentences (lines, where a line holds a pair or a text) taken of each file, evenly spread; `null` takes all."""


class EvaluationConfig(Section):
    """Held-out loss, and probes, while training."""

    every_steps: Steps = 1000
    """Steps between evaluations; there is one at the last step too."""
    blocks: Annotated[int, Field(gt=0)] | None = None
    """Held-out blocks read each time, always the same; all by default."""
    probes: Annotated[tuple[ProbeConfig, ...], Converted] = ()
    """What is probed after a checkpoint is saved, each task once. Nothing of the run's result depends on it."""
    probe_every_steps: Steps | None = None
    """Steps between probes, a multiple of `checkpoint.every_steps`; by default each checkpoint is probed. The last
    step always is."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        tasks = [probe.task for probe in self.probes]
        if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
            raise ValueError(f"probes has {twice[0]} twice: a task is probed with one file")
        return self


class LoggingConfig(Section):
    """What is written down while training."""

    every_steps: Steps = 10
    """Steps between lines of `metrics.jsonl`, of the console and of W&B."""
    wandb: Literal["offline", "online", "off"] = "offline"
    """W&B: into the run folder only, to the server, or not at all."""
    wandb_project: str = "pretrain"
    """W&B project."""
    wandb_entity: str | None = None
    """W&B team or user."""


class ShardingConfig(Section):
    """How the run is spread over ranks."""

    ranks: Annotated[
        Annotated[Annotated[int, Field(gt=0)], Tag("number")] | Annotated[Literal["auto"], Tag("word")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "number"),
    ] = "auto"
    """Processes on this host; `auto` is one per GPU, or one."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 is one device or DDP; optimizer states (1), gradients (2), weights (3) are sharded."""
    persistence_threshold: Annotated[int, Field(ge=0)] = 100_000
    """ZeRO 3: parameters of fewer elements stay whole on every rank (`stage3_param_persistence_threshold`)."""
    bucket_elements: Annotated[int, Field(gt=0)] = 20_000_000
    """Elements reduced or gathered at a time."""
