"""One run: everything that decides it, and everything that decides how it is carried out."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.base import PathOption, Section
from pretrain.config.data import DataConfig
from pretrain.config.models import TOKENIZER_OF, ModelConfig, TokenizerConfig
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
    """Lightning's spelling of the arithmetic."""
    deterministic: bool = False
    """On CUDA: only deterministic kernels, so that a resumed run is bitwise equal (CPU always is)."""
    data: DataConfig
    """The corpus."""
    tokenizer: TokenizerConfig
    """How text is cut into tokens."""
    model: ModelConfig
    """The model."""
    batch: BatchConfig
    """Examples per step."""
    optimizer: OptimizerConfig
    """Optimizer and clipping."""
    schedule: ScheduleConfig
    """Length and learning rate."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out loss."""
    logging: LoggingConfig = LoggingConfig()
    """What is written down."""
    sharding: ShardingConfig = ShardingConfig()
    """How the run is spread over ranks."""

    @model_validator(mode="before")
    @classmethod
    def _default_tokenizer(cls, values: Any) -> Any:
        return with_tokenizer_kind(values)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems = []
        if self.name == "prepared":
            problems.append("name is prepared, the folder of prepared corpora: choose another")
        if not isinstance(self.tokenizer, TOKENIZER_OF[self.model.kind]):
            problems.append(f"tokenizer.kind is {self.tokenizer.kind}, which model.kind {self.model.kind} cannot read")
        if self.optimizer.kind == "lamb" and not self.model.decays_weights:
            problems.append(
                f"optimizer.kind is lamb, which scales what is decayed, and model.kind {self.model.kind} decays nothing"
            )
        size, lanes, micro_size = self.batch.global_size, self.data.lanes, self.batch.micro_size
        if size % lanes:
            problems.append(f"batch.global_size ({size}) is not a multiple of data.lanes ({lanes})")
        if size % micro_size:
            problems.append(f"batch.global_size ({size}) is not a multiple of batch.micro_size ({micro_size})")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run_root / self.name

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

    def deciding(self) -> dict[str, Any]:
        """The options that decide the result, by dotted path: a resumed run must have them as it began."""
        values = self.model_dump(mode="json")
        kept = {
            key: values[key] for key in ("seed", "precision", "data", "tokenizer", "model", "optimizer", "schedule")
        }
        for how in ("workers", "folder"):
            kept["data"].pop(how)
        for how in self.model.ways:
            kept["model"].pop(how)
        kept["batch"] = {"global_size": self.batch.global_size}
        return flatten(kept)


def with_tokenizer_kind(values: Any) -> Any:
    """`values` of a run with `tokenizer.kind` filled in, where it is left out, with the one that the model reads."""
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        return values
    kind, tokenizer = values["model"].get("kind"), values.get("tokenizer", {})
    if not isinstance(kind, str) or kind not in TOKENIZER_OF or not isinstance(tokenizer, dict) or "kind" in tokenizer:
        return values
    return values | {"tokenizer": {"kind": TOKENIZER_OF[kind].model_fields["kind"].default} | tokenizer}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dictionary of dotted paths; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat
