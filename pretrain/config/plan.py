"""The numbers that follow from a config; what `pretrain config` prints below it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pretrain.config.models import WordsConfig
from pretrain.config.run import RunConfig

BYTES_PER_PARAMETER = {"adamw": 8, "lamb": 8, "muon": 4, "adagrad": 4}
"""Float32 optimizer states; Muon's are those of hidden matrices, and the rest has AdamW's."""


@dataclass(frozen=True)
class Prepared:
    """What is known of a corpus once it is prepared."""

    vocabulary_size: int
    tokens: Mapping[str, int]
    """Training tokens by source."""


@dataclass(frozen=True)
class Speed:
    """How fast a run trains."""

    tokens_per_second: float
    """Of all ranks together."""
    source: str
    """Where the number is from, as a line says it."""
    step: int = 0
    """The last step that is done already."""


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a run over a number of ranks. Memory is in bytes per rank."""

    config: RunConfig
    ranks: int
    accumulation: int
    tokens_per_step: int
    """At most: padding counts."""
    total_tokens: int
    vocabulary_size: int
    """That of the prepared corpus; else the largest that the config allows."""
    parameters: int
    flops_per_token: float
    total_flops: float
    memory: dict[int, int]
    """For weights, gradients and optimizer states, by ZeRO stage."""
    activations: int
    """For the forward and backward pass of a micro-batch, about."""
    passes: dict[str, float] | None
    """How often each source is read, about; None where the corpus is not prepared."""

    def lines(self, speed: Speed | None = None) -> list[str]:
        """One readable line per number; `speed` gives the last of them, the time."""
        batch, steps = self.config.batch, self.config.schedule.total_steps
        stage = self.config.sharding.zero_stage
        states = self.memory[stage]
        others = [f"{size(self.memory[other])} at stage {other}" for other in self.memory if other != stage]
        sharded = f" ({', '.join(others)})" if self.ranks > 1 else ""
        known = "" if self.passes else "at most "
        return [
            f"step: {batch.global_size:,} examples = {self.ranks} {_plural('rank', self.ranks)} × {self.accumulation} "
            f"{_plural('micro-batch', self.accumulation)} × {batch.micro_size} examples; "
            f"at most {self.tokens_per_step:,} tokens",
            f"run: {steps:,} steps, at most {self.total_tokens:,} tokens",
            *self._stages(),
            f"passes over the corpus: {self._passes()}",
            f"parameters: {known}{self.parameters:,}, with a vocabulary of {known}{self.vocabulary_size:,}",
            f"computation: {self.flops_per_token:.2e} FLOPs per token, {self.total_flops:.2e} FLOPs in all",
            f"memory per rank: about {size(states + self.activations)}, beside Python and its libraries: "
            f"{size(self.activations)} for the activations of a micro-batch, "
            f"{size(states)} for weights, gradients and optimizer states at ZeRO stage {stage}{sharded}",
            f"time: {self._time(speed)}",
        ]

    def _stages(self) -> Iterator[str]:
        """Where they are not all alike."""
        objective, first = self.config.objective, 0
        for steps, _ in self.config.stages():
            if options := objective.describe_stage(first):
                yield f"steps {first + 1:,} to {first + steps:,}: {options}"
            first += steps
        if (unreached := self.config.unreached_stages()) is not None:
            yield unreached

    def _passes(self) -> str:
        if self.passes is None:
            return "known once it is prepared: pretrain prepare CONFIG"
        if len(self.passes) == 1:
            return f"about {_rounded(next(iter(self.passes.values())))}"
        return "about " + ", ".join(f"{_rounded(passes)} of {name}" for name, passes in self.passes.items())

    def _time(self, speed: Speed | None) -> str:
        if speed is None:
            return (
                "known once the speed is: pretrain bench CONFIG --json bench.json, then pretrain config CONFIG "
                "--bench bench.json; or give --speed TOKENS_PER_SECOND"
            )
        seconds = self.total_tokens / speed.tokens_per_second
        said = f"about {duration(seconds)} at {speed.tokens_per_second:,.0f} tokens/s ({speed.source})"
        if not speed.step:
            return said
        left = max(0.0, 1 - speed.step / self.config.schedule.total_steps)
        return f"{said}; {duration(seconds * left)} of it left after step {speed.step:,}"


def plan_run(config: RunConfig, ranks: int, prepared: Prepared | None = None) -> Plan:
    """The derived numbers of `config` over `ranks` ranks; raises ConfigError for a file of words that is not there."""
    vocabulary = prepared.vocabulary_size if prepared else _largest_vocabulary(config)
    parameters = config.parameters(vocabulary)
    total = config.total_tokens
    flops = config.flops_per_token(vocabulary)
    return Plan(
        config=config,
        ranks=ranks,
        accumulation=config.accumulation(ranks),
        tokens_per_step=config.batch.global_size * config.objective.tokens_per_example,
        total_tokens=total,
        vocabulary_size=vocabulary,
        parameters=parameters,
        flops_per_token=flops,
        total_flops=flops * total,
        memory={stage: _memory(config, parameters, ranks, stage) for stage in range(4)},
        activations=config.activation_bytes(vocabulary),
        passes=_passes(config, total, prepared) if prepared else None,
    )


def _largest_vocabulary(config: RunConfig) -> int:
    """All words of the file that `tokenizer.vocabulary` names, or `tokenizer.vocabulary_size`."""
    words = config.tokenizer.vocabulary_bytes() if isinstance(config.tokenizer, WordsConfig) else None
    return config.tokenizer.vocabulary_size if words is None else len(words.rstrip(b"\n").split(b"\n"))


def _passes(config: RunConfig, total_tokens: int, prepared: Prepared) -> dict[str, float]:
    """Each source's share of the tokens, by its weight, over the tokens that it has."""
    weights = {
        name: source.weight for name, source in zip(config.data.source_names(), config.data.sources, strict=True)
    }
    share = total_tokens / sum(weights.values())
    return {name: share * weights[name] / max(tokens, 1) for name, tokens in prepared.tokens.items()}


def _memory(config: RunConfig, parameters: int, ranks: int, stage: int) -> int:
    """Bytes per rank: weights, gradients and optimizer states, all float32 in either precision."""
    per_parameter = 4 / (ranks if stage >= 3 else 1) + 4 / (ranks if stage >= 2 else 1)
    return round(parameters * per_parameter + _state_bytes(config, parameters) / (ranks if stage >= 1 else 1))


def _state_bytes(config: RunConfig, parameters: int) -> int:
    """Bytes of the optimizer's states, over all ranks where they are sharded."""
    kind = config.optimizer.kind
    if kind != "muon":
        return parameters * BYTES_PER_PARAMETER[kind]
    matrices = config.model.hidden_matrix_parameters
    return matrices * BYTES_PER_PARAMETER["muon"] + (parameters - matrices) * BYTES_PER_PARAMETER["adamw"]


def size(number: float) -> str:
    """Bytes, readable."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """A time, readable."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours < 2:
        return f"{minutes:,.0f} minutes" if minutes >= 2 else f"{seconds:,.0f} seconds"
    return f"{hours:,.1f} hours" if hours < 48 else f"{hours:,.0f} hours ({hours / 24:,.0f} days)"


def _rounded(number: float) -> str:
    """Two digits where it is small."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}es" if word.endswith("ch") else f"{word}s"
