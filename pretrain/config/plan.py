"""The numbers that follow from a config; what `pretrain config` prints below it."""

from dataclasses import dataclass

from pretrain.config.models import WordsConfig
from pretrain.config.run import RunConfig

BYTES_PER_PARAMETER = {"adamw": 8, "lamb": 8, "adagrad": 4}
"""Float32 optimizer states."""


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a run over a number of ranks.

    Parameters and FLOPs are for a full vocabulary (`tokenizer.vocabulary_size`, or all words of the file that
    `tokenizer.vocabulary` names); memory is in bytes per rank, for weights, gradients and optimizer states, without
    activations.
    """

    ranks: int
    accumulation: int
    tokens_per_step: int
    total_tokens: int
    parameters: int
    flops_per_token: float
    total_flops: float
    memory: dict[int, int]
    """Bytes per rank by ZeRO stage."""

    def lines(self) -> list[str]:
        """One readable line per number."""
        memory = ", ".join(f"stage {stage} {size / 2**20:,.0f} MiB" for stage, size in self.memory.items())
        return [
            f"ranks: {self.ranks}",
            f"accumulation: {self.accumulation} micro-batches per step and rank",
            f"tokens per step: {self.tokens_per_step:,} at most",
            f"tokens in all: {self.total_tokens:,} at most",
            f"parameters: {self.parameters:,} with the full vocabulary",
            f"FLOPs per token: {self.flops_per_token:.3e} (forward and backward)",
            f"FLOPs in all: {self.total_flops:.3e}",
            f"memory per rank by ZeRO stage, without activations: {memory}",
        ]


def plan_run(config: RunConfig, ranks: int) -> Plan:
    """The derived numbers of `config` over `ranks` ranks."""
    words = config.tokenizer.vocabulary_bytes() if isinstance(config.tokenizer, WordsConfig) else None
    vocabulary = config.tokenizer.vocabulary_size if words is None else len(words.rstrip(b"\n").split(b"\n"))
    parameters = config.parameters(vocabulary)
    tokens = config.batch.global_size * config.objective.tokens_per_example
    flops = config.flops_per_token(vocabulary)
    return Plan(
        ranks=ranks,
        accumulation=config.accumulation(ranks),
        tokens_per_step=tokens,
        total_tokens=tokens * config.schedule.total_steps,
        parameters=parameters,
        flops_per_token=flops,
        total_flops=flops * tokens * config.schedule.total_steps,
        memory={stage: _memory(config, parameters, ranks, stage) for stage in range(4)},
    )


def _memory(config: RunConfig, parameters: int, ranks: int, stage: int) -> int:
    """Bytes per rank: weights, gradients and optimizer states, all float32 in either precision."""
    per_parameter = (
        4 / (ranks if stage >= 3 else 1)
        + 4 / (ranks if stage >= 2 else 1)
        + BYTES_PER_PARAMETER[config.optimizer.kind] / (ranks if stage >= 1 else 1)
    )
    return round(parameters * per_parameter)
