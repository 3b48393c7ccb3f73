"""Trains `BertForPreTraining` with transformers' `Trainer` on a prepared corpus: one side of compare.py, in a process.

`python train_with_trainer.py PLAN.json CONFIG [section.option=value …]` writes `result.json` beside the plan. The
corpus of the config must be prepared.
"""

import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sentence_pairs import PairDataset, draw_pairs, read_documents
from torch import Tensor, nn

from pretrain.config.load import load_config
from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus
from pretrain.data.prepare import find_prepared
from pretrain.data.stream import held_out_blocks
from pretrain.models.bert.baselines import padded
from pretrain.models.bert.pairs import NEXT, RANDOM
from pretrain.models.bert.published_config import write_config
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.family import ModelFolder
from pretrain.models.loss import IGNORE_INDEX, Batch, Losses, LossTerm
from pretrain.runs.held_out import held_out_batches, measure_held_out
from pretrain.runs.trained import build_untrained, read_tokenizer
from pretrain.runtime.machine import exact_float32, wait

WARM_UP_STEPS = 3
"""First steps that do not count where a step's time is measured: memory is taken, kernels are chosen."""


@dataclass(frozen=True)
class Plan:
    """How to train, and for how long."""

    learning_rate: float
    steps: int
    warmup_steps: int
    evaluate_every: int | None = None
    """Steps between evaluations, beside one at the end; None: not at all."""
    batch: int | None = None
    """Pairs of a step; None: as many as hold about the tokens of our step."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """More of `TrainingArguments`."""


class HeldOut:
    """The held-out text: the batches that pretrain evaluates its own models on, with the same masks and pairs."""

    def __init__(self, config: RunConfig, corpus: PreparedCorpus, ours: ModelFolder) -> None:
        assert ours.tokenizer is not None
        self._blocks = held_out_blocks(corpus.held_out, config.evaluation.blocks)
        self._batches_of = held_out_batches(ours, ours.tokenizer, corpus.held_out)

    def measure(self, model: nn.Module) -> Losses:
        """The losses of a `BertForPreTraining`, in `eval` mode and float32, over all predictions alike."""
        device = next(model.parameters()).device
        training = model.training
        model.eval()

        def step(batch: Batch, carried: Any) -> tuple[dict[str, LossTerm], None]:
            with torch.no_grad():
                return _losses(model, {name: tensor.to(device) for name, tensor in batch.items()}), None

        with exact_float32():
            losses = measure_held_out(step, self._blocks, self._batches_of, device=device)
        model.train(training)
        return losses


def _losses(model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
    inputs = padded(batch)
    words, sentences = inputs.pop("labels"), inputs.pop("next_sentence_label")
    output = model(**inputs)
    asked = words != IGNORE_INDEX
    classes = torch.stack([(sentences == NEXT).sum(), (sentences == RANDOM).sum()])
    return {
        "mlm": _term(output.prediction_logits[asked], words[asked]),
        "nsp": _term(output.seq_relationship_logits, sentences, predicts_tokens=False, classes=classes),
    }


def _term(logits: Tensor, labels: Tensor, **more: Any) -> LossTerm:
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    correct = (logits.argmax(dim=-1) == labels).sum()
    return LossTerm(total, torch.tensor(len(labels), device=labels.device), correct=correct, **more)


class Progress:
    """Time, tokens and held-out losses of a training; evaluations do not count as time."""

    def __init__(self, plan: Plan, held_out: HeldOut) -> None:
        self._plan, self._held_out = plan, held_out
        self._since = 0.0
        self.tokens = 0
        """Real tokens, special ones included, that were trained on."""
        self.step_seconds: list[float] = []
        self.curve: list[dict[str, float]] = []

    def count(self, model: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        """Before a forward pass: the real tokens of a training batch."""
        if model.training:
            self.tokens += int(inputs["attention_mask"].sum())

    def begin(self) -> None:
        """Starts the clock."""
        self._since = time.perf_counter()

    def end_step(self, step: int, model: Any) -> None:
        """Stops the clock, measures where that is due, and starts it again."""
        wait(model.device)
        self.step_seconds.append(time.perf_counter() - self._since)
        every = self._plan.evaluate_every
        if every is not None and (step % every == 0 or step == self._plan.steps):
            point = {"step": step, "minutes": sum(self.step_seconds) / 60, "tokens": self.tokens}
            self.curve.append(point | self._held_out.measure(model).metrics)
            print(json.dumps(self.curve[-1]), flush=True)
        self._since = time.perf_counter()

    @property
    def seconds_per_step(self) -> float:
        """After the first steps, where there are more."""
        counted = self.step_seconds[WARM_UP_STEPS:] or self.step_seconds
        return sum(counted) / len(counted)


def build_model(ours: ModelFolder, vocabulary_size: int, padding_id: int) -> Any:
    """A `BertForPreTraining` of our sizes and dropouts, initialised as transformers does."""
    from transformers import BertConfig, BertForPreTraining

    return BertForPreTraining(BertConfig(**write_config(ours, vocabulary_size, padding_id)))


def training_arguments(plan: Plan, config: RunConfig, batch: int, folder: Path) -> dict[str, Any]:
    """`TrainingArguments` by name: the optimizer's numbers are ours, except the rate; the rest is as it comes."""
    optimizer = config.optimizer
    assert optimizer.kind == "adamw"
    return {
        "output_dir": str(folder / "output"),
        "max_steps": plan.steps,
        "per_device_train_batch_size": batch,
        "learning_rate": plan.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": plan.warmup_steps,
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.epsilon,
        "max_grad_norm": optimizer.clip_norm,
        "bf16": config.precision == "bf16-mixed",
        "seed": config.seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,  # the collator wants special_tokens_mask
        **plan.arguments,
    }


def train(config: RunConfig, plan: Plan, folder: Path) -> dict[str, Any]:
    """Trains on the text of a config; returns the curve and what it was made with. `Trainer` may write to `folder`."""
    import transformers
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    corpus = find_prepared(config)
    assert corpus is not None
    tokenizer = read_tokenizer(config, corpus.fetch_tokenizer())
    assert isinstance(tokenizer, WordPieceTokenizer)
    ours = build_untrained(config, tokenizer)
    objective: Any = config.objective
    began = time.perf_counter()
    (source,) = corpus.training
    drawn = draw_pairs(
        read_documents(source),
        random.Random(config.seed),
        objective.max_sequence_length,
        objective.short_sequence_probability,
    )
    pairs = PairDataset(list(drawn), tokenizer)
    pair_seconds = time.perf_counter() - began
    batch = plan.batch or _pairs_per_step(config, pairs)
    arguments = training_arguments(plan, config, batch, folder)

    transformers.set_seed(config.seed)
    model = build_model(ours, tokenizer.vocabulary_size, tokenizer.padding_id)
    progress = Progress(plan, HeldOut(config, corpus, ours))
    model.register_forward_pre_hook(progress.count, with_kwargs=True)

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.end_step(state.global_step, kwargs["model"])

    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        data_collator=DataCollatorForLanguageModeling(
            AutoTokenizer.from_pretrained(corpus.fetch_tokenizer()), mlm_probability=objective.mask_probability
        ),
        train_dataset=pairs,
        callbacks=[Clock()],
    )
    trainer.train()
    return {
        "learning_rate": plan.learning_rate,
        "steps": plan.steps,
        "warmup_steps": plan.warmup_steps,
        "batch": batch,
        "pairs": len(pairs),
        "mean_pair_length": pairs.mean_length,
        "seconds_making_pairs": pair_seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds_per_step": progress.seconds_per_step,
        "tokens": progress.tokens,
        "optimizer": trainer.args.optim.value,
        "arguments": {name: value for name, value in arguments.items() if name != "output_dir"},
        "curve": progress.curve,
    }


def _pairs_per_step(config: RunConfig, pairs: PairDataset) -> int:
    """As many pairs as hold the tokens of one of our steps: of full packs, or of as many sequences."""
    objective: Any = config.objective
    if not objective.packing:
        return config.batch.global_size
    tokens: int = config.batch.global_size * objective.tokens_per_example
    return max(1, round(tokens / pairs.mean_length))


def write_plan(plan: Plan, folder: Path) -> Path:
    """The plan as a file that this program takes."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.json"
    file.write_text(json.dumps(asdict(plan), indent=1) + "\n", encoding="utf-8")
    return file


def main() -> None:
    """Trains as the command line says."""
    file, config, *overrides = sys.argv[1:]
    folder = Path(file).parent
    plan = Plan(**json.loads(Path(file).read_text(encoding="utf-8")))
    result = train(load_config(config, overrides), plan, folder)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
