"""The sizes of the benchmarks and of the training runs, one a line: name, family, limit, overrides."""

import sys

from tests.gpu import DRY
from tests.runs import TINY

BASE = [  # BERT-base at 128 tokens
    "tokenizer.vocabulary_size=30000", "model.hidden_size=768", "model.num_layers=12", "model.num_heads=12",
    "model.intermediate_size=3072", "model.max_positions=512", "model.max_sequence_length=128",
    "batch.global_size=256", "batch.micro_size=256", "optimizer.peak_learning_rate=1e-4",
]  # fmt: skip
ORIGINAL = [  # ELMo as published, over the words of the text at hand
    "tokenizer.vocabulary_size=50000", "model.num_highways=2", "model.cell_size=4096", "model.projection_size=512",
    "model.filters=[[1,32],[2,32],[3,64],[4,128],[5,256],[6,512],[7,1024]]", "model.num_negatives=8192",
    "batch.global_size=384", "batch.micro_size=384",
]  # fmt: skip
SMALL = [  # a BERT that two minutes teach something
    "tokenizer.vocabulary_size=8000", "model.hidden_size=512", "model.num_layers=6", "model.num_heads=8",
    "model.intermediate_size=2048", "model.max_positions=128", "model.max_sequence_length=128",
    "batch.global_size=128", "batch.micro_size=128", "optimizer.peak_learning_rate=5e-4",
    "schedule.total_steps=1500", "schedule.warmup_steps=150",
]  # fmt: skip
MEDIUM = [  # an ELMo likewise
    "tokenizer.vocabulary_size=50000", "model.num_highways=2", "model.cell_size=1024", "model.projection_size=128",
    "model.num_negatives=4096", "batch.global_size=128", "batch.micro_size=128",
    "schedule.total_steps=500",
]  # fmt: skip
WATCHED = ["sharding.ranks=auto", "logging.wandb=off", "evaluation.every_steps=250"]
WATCHED += ["checkpoint.every_steps=500", "checkpoint.keep_last=1"]
DRY_RUN = ["schedule.total_steps=4", "schedule.warmup_steps=0", "logging.every_steps=1", "logging.wandb=off"]

BENCH = {
    "bert-base-128-bf16": ("bert", 20, [*BASE, "precision=bf16-mixed"]),
    "elmo-original-bf16": ("elmo", 10, [*ORIGINAL, "precision=bf16-mixed"]),
    "elmo-original-float32": ("elmo", 5, ORIGINAL),
}
"""Family, timed steps, overrides."""
TRAIN = {
    "bert-small": ("bert", 55, [*SMALL, *WATCHED, "precision=bf16-mixed"]),
    "elmo-medium": ("elmo", 55, [*MEDIUM, *WATCHED]),
}
"""Family, most seconds, overrides."""


def lines(what: str) -> list[str]:
    """What `run.sh` reads."""
    found = []
    for name, (kind, number, overrides) in {"bench": BENCH, "train": TRAIN}[what].items():
        if DRY:
            precision = [one for one in overrides if one.startswith("precision=")]
            tiny = [one for one in TINY[kind] if not one.startswith("schedule.")]
            overrides = [*tiny, *precision, "sharding.ranks=auto", *(DRY_RUN if what == "train" else [])]
            number = number if what == "train" else 1
        found.append(" ".join([name, kind, str(number), *overrides]))
    return found


if __name__ == "__main__":
    print("\n".join(lines(sys.argv[1])))
