"""One run: everything that decides it, and everything that decides how it is carried out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.base import PathOption, Section
from pretrain.config.compute import ComputeConfig
from pretrain.config.data import DataConfig
from pretrain.config.models import TOKENIZER_OF, ModelConfig, TokenizerConfig
from pretrain.config.objectives import OBJECTIVE_OF, ObjectiveConfig
from pretrain.config.secrets import without_secrets
from pretrain.config.training import (
    BatchConfig,
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    ScheduleConfig,
    ShardingConfig,
)


class RunConfig(Section):
    """One complete run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$")]
    """The run's name; its folder is `run_root/name`. Not `prepared`, which is where prepared corpora are."""
    run_root: PathOption = Path("runs")
    """Where run folders are made."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Keys everything random: order of the data, masks, initial weights, dropout."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Float32, or matrix products in bfloat16; weights, sums of gradients and optimizer states are float32 in both."""
    deterministic: bool = False
    """On CUDA: only deterministic kernels, so that a resumed run is bitwise equal (CPU always is)."""
    data: DataConfig
    """The corpus."""
    tokenizer: TokenizerConfig
    """How text is cut into tokens."""
    model: ModelConfig
    """The architecture: what an exported folder holds."""
    objective: ObjectiveConfig
    """How examples are made and scored; by default what the model's family was published with."""
    batch: BatchConfig
    """Examples per step."""
    optimizer: OptimizerConfig
    """Optimizer and clipping."""
    schedule: ScheduleConfig
    """Length and learning rate."""
    compute: ComputeConfig = ComputeConfig()
    """How the model is computed."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out loss, and probes."""
    logging: LoggingConfig = LoggingConfig()
    """What is written down."""
    sharding: ShardingConfig = ShardingConfig()
    """How the run is spread over ranks."""

    @model_validator(mode="before")
    @classmethod
    def _default_kinds(cls, values: Any) -> Any:
        return with_kinds(values)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems = []
        if self.name == "prepared":
            problems.append("name is prepared, the folder of prepared corpora: choose another")
        if not isinstance(self.tokenizer, TOKENIZER_OF[self.model.kind]):
            problems.append(f"tokenizer.kind is {self.tokenizer.kind}, which model.kind {self.model.kind} cannot read")
        if self.objective.kind != self.model.kind:
            problems.append(f"objective.kind is {self.objective.kind}, and model.kind is {self.model.kind}")
        else:
            problems += self._objective.problems(self.model, self.compute)
        if self.optimizer.kind == "lamb" and not self.model.decays_weights:
            problems.append(
                f"optimizer.kind is lamb, which scales what is decayed, and model.kind {self.model.kind} decays nothing"
            )
        size, lanes, micro_size = self.batch.global_size, self.data.lanes, self.batch.micro_size
        if size % lanes:
            problems.append(f"batch.global_size ({size}) is not a multiple of data.lanes ({lanes})")
        if size % micro_size:
            problems.append(f"batch.global_size ({size}) is not a multiple of batch.micro_size ({micro_size})")
        if (self.evaluation.probe_every_steps or 0) % self.checkpoint.every_steps:
            problems.append(
                f"evaluation.probe_every_steps ({self.evaluation.probe_every_steps}) is not a multiple of "
                f"checkpoint.every_steps ({self.checkpoint.every_steps}): checkpoints are probed"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def _objective(self) -> Any:
        """The objective; that it is of the model's kind is checked, but no type says so."""
        return self.objective

    def parameters(self, vocabulary_size: int) -> int:
        """All trained parameters, for a vocabulary of that size."""
        count: int = self._objective.parameters(self.model, vocabulary_size)
        return count

    def flops_per_token(self, vocabulary_size: int, counts: Mapping[str, float] | None = None) -> float:
        """Training FLOPs (forward and backward) per real token; `counts` are those of examples, where known.

        Without, the mean over the tokens of the run's stages.
        """
        if counts is not None:
            flops: float = self._objective.flops_per_token(self.model, vocabulary_size, counts)
            return flops
        total: float = sum(
            steps * self.batch.global_size * one.tokens_per_example * one.flops_per_token(self.model, vocabulary_size)
            for steps, one in self.stages()
        )
        return total / self.total_tokens

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, at most: padding counts."""
        examples = self.batch.global_size
        total: int = sum(steps * examples * one.tokens_per_example for steps, one in self.stages())
        return total

    def stages(self) -> list[tuple[int, Any]]:
        """(steps, objective) of every stage that the run gets to."""
        objectives, total = self.objective.by_first_step(), self.schedule.total_steps
        ends = [min(end, total) for end in (*objectives, total)[1:]]
        spans = zip(objectives.items(), ends, strict=True)
        return [(end - first, objective) for (first, objective), end in spans if first < total]

    def unreached_stages(self) -> str | None:
        """A line about stages that the run ends before; None where it gets to all of them."""
        total = self.schedule.total_steps
        unreached = [first for first in self.objective.by_first_step() if first >= total]
        if not unreached:
            return None
        return f"schedule.total_steps is {total}: objective.stages has more after step {unreached[0]}, never reached"

    def activation_bytes(self, vocabulary_size: int) -> int:
        """Bytes, about, that the forward and backward pass of a micro-batch take beside the model's own memory."""
        micro_size = self.batch.micro_size
        sizes: list[int] = [
            objective.activation_bytes(self.model, self.compute, self.precision, micro_size, vocabulary_size)
            for _, objective in self.stages()
        ]
        return max(sizes)

    @property
    def advice(self) -> tuple[str, ...]:
        """What could be changed where the model has not learned more than the frequencies of words."""
        lines: list[str] = self._objective.advice(self.model)
        if self.optimizer.kind == "adagrad":
            lines.append("optimizer.kind=adamw")
        elif self.optimizer.kind == "adamw" and self.model.decays_weights:
            lines.append("optimizer.kind=muon")
        return (*lines, "more steps (schedule.total_steps, --extend)")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run_root / self.name

    def is_probed(self, step: int) -> bool:
        """Whether the checkpoint of a step is."""
        every = self.evaluation.probe_every_steps or self.checkpoint.every_steps
        return bool(self.evaluation.probes) and (step % every == 0 or step == self.schedule.total_steps)

    @property
    def rows_per_lane(self) -> int:
        """Examples that a step takes from each lane."""
        return self.batch.global_size // self.data.lanes

    def rank_problems(self, ranks: int) -> list[str]:
        """What keeps this run from being spread over `ranks` ranks; empty where nothing does."""
        problems = []
        if self.data.lanes % ranks:
            problems.append(f"data.lanes ({self.data.lanes}) is not a multiple of the ranks ({ranks})")
        if self.batch.global_size % (self.batch.micro_size * ranks):
            problems.append(
                f"batch.global_size ({self.batch.global_size}) is not a multiple of "
                f"batch.micro_size times the ranks ({self.batch.micro_size} × {ranks})"
            )
        return problems

    def accumulation(self, ranks: int) -> int:
        """Micro-batches per rank and step."""
        return self.batch.global_size // (self.batch.micro_size * ranks)

    def public(self) -> "RunConfig":
        """The same run without the secrets of its URLs: what may leave the machine."""
        return RunConfig.model_validate(without_secrets(self.model_dump(mode="json")))

    def result_options(self) -> dict[str, Any]:
        """The options that decide the result, by dotted path: a resumed run must have them as it began."""
        values = without_secrets(self.model_dump(mode="json"))
        kept = {section: values[section] for section in RESULT_SECTIONS}
        kept["data"] = {
            option: value for option, value in values["data"].items() if option not in ("workers", "folder")
        }
        kept["data"]["sources"] = {
            name: source | {"name": name}
            for name, source in zip(self.data.source_names(), values["data"]["sources"], strict=True)
        }
        kept["batch"] = {"global_size": self.batch.global_size}
        return flatten(kept)

    def runtime_options(self) -> dict[str, Any]:
        """The options that only decide how the run is carried out; they may differ from start to start."""
        return self.model_dump(mode="json", include=set(RUNTIME_SECTIONS)) | {
            "micro_size": self.batch.micro_size,
            "workers": self.data.workers,
        }


RESULT_SECTIONS = ("seed", "precision", "tokenizer", "model", "objective", "optimizer", "schedule")
"""What decides the result, beside `data` (but for its workers and folder) and `batch.global_size`."""
EXTENDABLE = {f"schedule.{option}" for option in ("total_steps", "decay", "final_share", "power", "decay_share")}
"""What of it a longer run may change."""
RUNTIME_SECTIONS = ("deterministic", "compute", "sharding", "checkpoint", "evaluation", "logging")
"""What only decides how a run is carried out, beside `batch.micro_size` and `data.workers`."""


def with_kinds(values: Any) -> Any:
    """`values` of a run with the kinds of `tokenizer` and `objective` filled in, where left out, from `model.kind`."""
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        return values
    kind = values["model"].get("kind")
    if not isinstance(kind, str) or kind not in TOKENIZER_OF:
        return values
    filled = dict(values)
    for section, kinds in (("tokenizer", TOKENIZER_OF), ("objective", OBJECTIVE_OF)):
        options = values.get(section, {})
        if isinstance(options, dict) and "kind" not in options:
            filled[section] = {"kind": kinds[kind].model_fields["kind"].default} | options
    return filled


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dictionary of dotted paths; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat
