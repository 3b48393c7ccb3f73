"""What each family learns from: how examples are made of text, and how they are scored.

Every number a plan needs before torch is imported (examples' tokens, parameters, FLOPs) is a method here.
"""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from pretrain.config.base import Converted, Section
from pretrain.config.compute import ComputeConfig
from pretrain.config.models import BertConfig, ElmoConfig, PositiveInt, Probability


class AnyObjectiveConfig(Section):
    """What every family's objective can be asked about the steps of a run."""

    def by_first_step(self) -> dict[int, Self]:
        """The objective that holds from a step on, up to the next one of these steps; the first is 0.

        The last one is what the model is built for, and what held-out text is always read with.
        """
        return {0: self}

    def at(self, step: int) -> Self:
        """The objective of a step."""
        objectives = self.by_first_step()
        return objectives[max(first for first in objectives if first <= step)]

    def staged_options(self, step: int) -> dict[str, float]:
        """The options that are not the same in all steps, as they are in `step`; empty where all are."""
        del step
        return {}

    def advice(self, model: Any) -> list[str]:
        """What has helped small models off the frequencies of words, and this run does not do; see docs/log.md."""
        del model
        return []

    def describe_stage(self, step: int) -> str:
        """The same, readable."""
        return ", ".join(f"{name} {json.dumps(value)}" for name, value in self.staged_options(step).items())


class ElmoObjectiveConfig(AnyObjectiveConfig):
    """ELMo's two language models (Peters et al. 2018, section 3.1)."""

    kind: Literal["elmo"] = "elmo"
    unroll_length: PositiveInt = 20
    """Tokens of a row per step (the window of truncated back-propagation)."""
    backward_text: Literal["same", "independent"] = "same"
    """What a row's backward direction reads: the forward one's text, or its block's documents in another order. Losses
    are sums over rows, so this only decides which texts meet in a step."""
    reset_probability: Probability = 0.3
    """How often a row starts a window from zero state, as every text does that is read by itself, and not from the
    state that the last window left; 0, as the original: states are carried for ever."""
    softmax: Literal["full", "sampled"] = "sampled"
    """Training softmax over the whole vocabulary, or over a sample of it."""
    num_negatives: PositiveInt = 8192
    """Sampled softmax: candidates drawn per direction and step."""

    @property
    def tokens_per_example(self) -> int:
        """Tokens of one example: a window of one row."""
        return self.unroll_length

    def parameters(self, model: ElmoConfig, vocabulary_size: int) -> int:
        """All trained parameters, with the softmax over `vocabulary_size` words."""
        return model.encoder_parameters() + vocabulary_size * (model.projection_size + 1)

    def flops_per_token(
        self, model: ElmoConfig, vocabulary_size: int, counts: Mapping[str, float] | None = None
    ) -> float:
        """As `ElmoConfig.flops_by_part`, with the softmax over `vocabulary_size` words or the candidates among them.

        All positions cost the same, whatever the `counts` of examples.
        """
        candidates = min(self.num_negatives, vocabulary_size) if self.softmax == "sampled" else vocabulary_size
        return sum(model.flops_by_part.values()) + 6.0 * 2 * model.projection_size * candidates

    def activation_bytes(
        self, model: ElmoConfig, compute: ComputeConfig, precision: str, micro_size: int, vocabulary_size: int
    ) -> int:
        """Bytes, about, that a micro-batch takes beside weights, gradients and optimizer states, in either precision.

        The distinct words of a batch, which the character CNN reads once each, are those of English.
        """
        del compute, precision  # the recurrence keeps float32
        positions = 2 * micro_size * self.unroll_length  # of both directions
        width, widest = sum(number for _, number in model.filters), max(number for _, number in model.filters)
        words = min(
            positions, 4.9 * math.pow(positions, 0.65)
        )  # 1,250 of 5,120 and 2,550 of 15,360: docs/benchmarks/elmo-cpu.md
        candidates = min(self.num_negatives, vocabulary_size) if self.softmax == "sampled" else 0
        elements = (
            # per layer: inputs, dropout, outputs (twice) and the sum of a skip connection; gates and three of the cell
            positions * model.num_layers * (5 * model.projection_size + 7 * model.cell_size)
            + words * width * (2 + 6 * model.num_highways)
            + min(words, 256) * widest * model.max_characters  # as many are convolved together
            + 4 * (candidates + positions / 2) * model.projection_size  # rows of the softmax, and their gradients
            + 2 * vocabulary_size * model.projection_size  # the softmax's gradient, by direction, before it is summed
            + 2 * 2**20  # a block of logits
        )
        return round(4 * elements)

    def advice(self, model: ElmoConfig) -> list[str]:
        """As every objective has it."""
        del model
        return [] if self.softmax == "full" else ["objective.softmax=full, unless the vocabulary is large"]

    def problems(self, model: ElmoConfig, compute: ComputeConfig) -> list[str]:
        """What does not go together with the model or the way it is computed, a line each."""
        return [
            f"compute.{option} is {value}: model.kind elmo has no use for it: leave {default}"
            for option, value, default in compute.given("attention", "compile", "activation_checkpointing")
        ]


SequenceLength = Annotated[int, Field(ge=8)]
MaskProbability = Annotated[float, Field(gt=0, lt=1)]


class BertStageConfig(Section):
    """Options that differ from the objective's up to a step. What a stage does not give is as in the objective."""

    until_step: PositiveInt
    """The last step of the stage, counted from the beginning of the run; the next stage begins after it."""
    max_sequence_length: SequenceLength | None = None
    """As in the objective, and not more than there."""
    mask_probability: MaskProbability | None = None
    """As in the objective."""
    shift_positions: bool = False
    """Whether a sequence begins at a position drawn at random, such that it ends within the objective's own
    `max_sequence_length`: so all positions are trained, and not only the first."""


class BertObjectiveConfig(AnyObjectiveConfig):
    """BERT's masked words and next sentences (Devlin et al. 2018, section 3.1)."""

    kind: Literal["bert"] = "bert"
    max_sequence_length: SequenceLength = 128
    """Tokens of a sequence, with [CLS] and all [SEP]."""
    next_sentence: bool = True
    """Whether sequences are pairs of segments, and the model learns whether the second follows the first; otherwise
    they are full sentences one after the other, also across documents, and there is one loss (RoBERTa)."""
    mask_probability: MaskProbability = 0.15
    """Share of a sequence's tokens that are predicted."""
    whole_word_masking: bool = False
    """Whether all pieces of a word are predicted, or none."""
    short_sequence_probability: Probability = 0.1
    """Share of documents whose pairs are shorter at random."""
    packing: bool = True
    """Whether an example is a pack, a row of several sequences that do not see each other; or else it is a sequence."""
    pack_length: PositiveInt | None = None
    """Tokens of a pack; `null`: max_sequence_length, which pairs fill to 98 %, or eight times as many for full
    sentences, which are all about as long."""
    stages: Annotated[tuple[BertStageConfig, ...], Converted] = ()
    """What is different in the first steps, such as shorter sequences: one stage after another, then the options above,
    which held-out text is read with throughout. A pack is as long in all stages, so a step has as many tokens."""
    _shifted_within: int | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pack_length is not None and self.pack_length < self.max_sequence_length:
            raise ValueError(
                f"pack_length ({self.pack_length}) is less than max_sequence_length ({self.max_sequence_length})"
            )
        return self

    @property
    def tokens_per_example(self) -> int:
        """Most tokens of one example: a full sequence, or a full pack."""
        if not self.packing:
            return self.max_sequence_length
        return self.pack_length or self.max_sequence_length * (1 if self.next_sentence else 8)

    @property
    def shifted_within(self) -> int | None:
        """In a stage that shifts positions, how many there are, within which a sequence may begin anywhere."""
        return self._shifted_within

    @property
    def sequences_per_pack(self) -> int:
        """Most sequences of a pack: so many that only documents of very short ones ever need more."""
        return -(-self.tokens_per_example // min(16, self.max_sequence_length // 2))

    @property
    def masked_per_pack(self) -> int:
        """Most predicted tokens of a pack: a twentieth more than its share, since every sequence rounds its own.

        Where full sequences round up by more than that, as many as those have.
        """
        full_sequence = max(1, round(self.mask_probability * self.max_sequence_length))
        full_pack = self.tokens_per_example // self.max_sequence_length * full_sequence
        return max(math.ceil(1.05 * self.mask_probability * self.tokens_per_example), full_pack)

    def by_first_step(self) -> dict[int, Self]:
        """As every objective has it: each stage as an objective of its own, without stages, then what follows them."""
        firsts = [0, *(stage.until_step for stage in self.stages)]
        return dict(zip(firsts, [*map(self._in_stage, self.stages), self._in_stage(None)], strict=True))

    def _in_stage(self, stage: BertStageConfig | None) -> Self:
        update: dict[str, object] = {"stages": ()}
        if stage is not None:
            update |= stage.model_dump(include=set(STAGED_OPTIONS), exclude_none=True)
            update |= {"pack_length": self.tokens_per_example} if self.packing else {}
        objective = self.model_copy(update=update)
        if stage is not None and stage.shift_positions:
            objective._shifted_within = self.max_sequence_length
        return objective

    def staged_options(self, step: int) -> dict[str, float]:
        """As every objective has it."""
        if not self.stages:
            return {}
        objective = self.at(step)
        options = {name: getattr(objective, name) for name in STAGED_OPTIONS}
        if any(stage.shift_positions for stage in self.stages):
            options["shift_positions"] = objective.shifted_within is not None
        return options

    def advice(self, model: BertConfig) -> list[str]:
        """As every objective has it."""
        lines = []
        if not self.stages and self.max_sequence_length > SHORT_SEQUENCE:
            lines.append("short sequences with many masks in the first part of the run (objective.stages)")
        if model.initializer_range < 0.5 * model.hidden_size**-0.5:
            lines.append(f"model.initializer_range={model.hidden_size**-0.5:.2f}")
        return lines

    def parameters(self, model: BertConfig, vocabulary_size: int) -> int:
        """All trained parameters, heads included, the decoder tied to the word embeddings."""
        h = model.hidden_size
        masked_words = (h * h + h) + 2 * h + vocabulary_size
        next_sentence = (h * h + h) + (2 * h + 2) if self.next_sentence else 0
        return model.encoder_parameters(vocabulary_size) + masked_words + next_sentence

    def flops_per_token(
        self, model: BertConfig, vocabulary_size: int, counts: Mapping[str, float] | None = None
    ) -> float:
        """Training FLOPs per real token: 6·N + 12·L·H·S, and the head on predicted tokens only.

        N are the layers' matrices, S the tokens that a token reads. `counts` of examples, as their maker has them, give
        the means over their tokens; without, sequences are full and `mask_probability` of each is predicted.
        """
        if counts is None:
            length = self.max_sequence_length
            counts = {"tokens": length, "attended": length * length, "mlm": self.mask_probability * length}
        h = model.hidden_size
        dense = model.num_layers * (4 * h * h + 2 * h * model.intermediate_size)
        attention = 12 * model.num_layers * h * counts["attended"] / counts["tokens"]
        head = 6 * (h * h + h * vocabulary_size) * counts["mlm"] / counts["tokens"]
        return 6.0 * dense + attention + head

    def activation_bytes(
        self, model: BertConfig, compute: ComputeConfig, precision: str, micro_size: int, vocabulary_size: int
    ) -> int:
        """Bytes, about, that a micro-batch takes beside weights, gradients and optimizer states.

        With `attention: auto`, float32 is taken for a CPU's, whose backend keeps the probabilities that dropout needs,
        and 16 bits for a GPU's, whose kernels draw them again.
        """
        h, wide, mixed = model.hidden_size, model.intermediate_size, precision == "bf16-mixed"
        tokens = micro_size * self.tokens_per_example
        # what linear layers, GELU and dropout keep, in the products' type; LayerNorms' inputs are float32 in any case
        layer = (2 if mixed else 4) * (11 * h + 2 * wide) + (8 * h if mixed else 0)
        if model.dropout_of_attention and compute.attention in (
            ("per_sequence",) if mixed else ("auto", "per_sequence")
        ):
            layer += 8 * model.num_heads * self.max_sequence_length  # probabilities, and what is dropped of them
        layers = model.num_layers * layer
        if compute.activation_checkpointing:
            layers = model.num_layers * 4 * h + layer  # every layer's input, and one layer anew
        predicted = micro_size * self.masked_per_pack if self.packing else math.ceil(self.mask_probability * tokens)
        return round(
            tokens * (layers + 12 * h + 4 * (wide + 4 * h))  # embeddings, and the gradients within a layer
            + predicted * vocabulary_size * (16 if mixed else 12)  # logits, their logarithms, and gradients
            + 8 * vocabulary_size * h  # the word matrix's gradient, of lookup and head, before it is summed
        )

    def problems(self, model: BertConfig, compute: ComputeConfig) -> list[str]:
        """What does not go together with the model or the way it is computed, a line each."""
        problems = []
        if self.max_sequence_length > model.max_positions:
            problems.append(
                f"objective.max_sequence_length ({self.max_sequence_length}) is more than "
                f"model.max_positions ({model.max_positions})"
            )
        if compute.attention != "auto" and not self.packing:
            problems.append(f"compute.attention is {compute.attention}, for packs, and objective.packing is false")
        return problems + self._stage_problems()

    def _stage_problems(self) -> list[str]:
        problems = []
        for number, stage in enumerate(self.stages):
            path = f"objective.stages.{number}"
            if number and stage.until_step <= (before := self.stages[number - 1].until_step):
                problems.append(
                    f"{path}.until_step ({stage.until_step}) is not more than that of the stage before ({before})"
                )
            if (stage.max_sequence_length or 0) > self.max_sequence_length:
                problems.append(
                    f"{path}.max_sequence_length ({stage.max_sequence_length}) is more than "
                    f"objective.max_sequence_length ({self.max_sequence_length})"
                )
            if not stage.model_dump(exclude={"until_step"}, exclude_defaults=True):
                options = "max_sequence_length, mask_probability, shift_positions"
                problems.append(f"{path}: nothing is different in it: give one of {options}")
        return problems


SHORT_SEQUENCE = 64
"""Tokens of sequences that a small model learns from at once."""
STAGED_OPTIONS = ("max_sequence_length", "mask_probability")
"""What of BERT's objective may be another in a stage."""


ObjectiveConfig = Annotated[ElmoObjectiveConfig | BertObjectiveConfig, Field(discriminator="kind")]

OBJECTIVE_OF: dict[str, type[ElmoObjectiveConfig] | type[BertObjectiveConfig]] = {
    "elmo": ElmoObjectiveConfig,
    "bert": BertObjectiveConfig,
}
"""What each family is trained on."""
BEFORE_IT_EXISTED: dict[str, dict[str, Any]] = {"elmo": {"reset_probability": 0.0}}
"""By family, what runs did whose config.yaml lacks an option, since they began before it existed."""
