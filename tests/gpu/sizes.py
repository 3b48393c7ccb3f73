"""The sizes of the benchmarks and of the training runs, one a line: name, config, limit, overrides."""

import sys

from tests.gpu import DRY
from tests.tiny import TINY

FAST = "model.attention_dropout=0"
"""CUDA's quickest kernels for packs have none."""
COMPILED = "--compiled-baselines"
SMALL = [  # a BERT that two minutes teach something
    "model.num_layers=6", "batch.global_size=128", "batch.micro_size=128", "precision=bf16-mixed",
    "schedule.total_steps=1500", "schedule.warmup_steps=150",
]  # fmt: skip
MEDIUM = [  # an ELMo likewise
    "tokenizer.vocabulary_size=50000", "model.num_highways=2", "model.cell_size=1024", "model.projection_size=128",
    "objective.num_negatives=4096", "batch.global_size=128", "batch.micro_size=128",
    "schedule.total_steps=500",
]  # fmt: skip
WATCHED = ["sharding.ranks=auto", "logging.wandb=off", "evaluation.every_steps=250"]
WATCHED += ["checkpoint.every_steps=500", "checkpoint.keep_last=1"]
DRY_BENCH = ["data.lanes=8", "batch.global_size=16", "batch.micro_size=16"]
DRY_TRAIN = ["schedule.total_steps=4", "schedule.warmup_steps=0", "logging.every_steps=1", "logging.wandb=off"]

BENCH = {  # steps of 32,768 tokens for BERT, which one pass takes
    "bert-base-128": ("bert/base-128", 10, ["batch.micro_size=256"]),
    "bert-base-128-fast": ("bert/base-128", 10, ["batch.micro_size=256", FAST, COMPILED]),
    "bert-base-512-fast": ("bert/base-512", 10, ["batch.global_size=64", "batch.micro_size=64", FAST]),
    "bert-large-128-fast": ("bert/large-128", 5, ["batch.global_size=256", FAST]),
    "bert-large-512-fast": ("bert/large-512", 5, ["batch.global_size=64", FAST, COMPILED]),
    "elmo-original-bf16": ("elmo/original", 10, ["batch.micro_size=384", "precision=bf16-mixed"]),
    "elmo-original-float32": ("elmo/original", 5, ["batch.micro_size=384"]),
}
"""Config, timed steps, overrides and options."""
TRAIN = {
    "bert-small": ("bert/small", 55, [*SMALL, *WATCHED]),
    "elmo-medium": ("elmo/demo", 55, [*MEDIUM, *WATCHED]),
}
"""Config, most seconds, overrides."""


def lines(what: str) -> list[str]:
    """What `run.sh` reads."""
    found = []
    for name, (config, number, overrides) in {"bench": BENCH, "train": TRAIN}[what].items():
        if DRY:
            kept = [one for one in overrides if one == FAST or one.startswith("precision=")]
            tiny = [one for one in TINY[config.split("/")[0]] if not one.startswith("schedule.")]
            overrides = [*tiny, *kept, "sharding.ranks=auto", *(DRY_TRAIN if what == "train" else DRY_BENCH)]
            number = number if what == "train" else 1
        found.append(" ".join([name, f"configs/{config}.yaml", str(number), *overrides]))
    return found


if __name__ == "__main__":
    print("\n".join(lines(sys.argv[1])))
