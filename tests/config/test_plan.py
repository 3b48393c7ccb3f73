"""The numbers that follow from a config, against models that are really built and against published ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.config.load import load_config
from pretrain.config.models import BertConfig, ElmoConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.config.plan import Prepared, Speed, duration, plan_run
from pretrain.models import FAMILIES, get_family
from tests.tiny import REPOSITORY, clean_environment

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("kind", FAMILIES)
def test_parameters_are_those_of_the_model_that_is_built(kind: str) -> None:
    # a multiple of 64: rows that fill BERT's word matrix up to one are not counted
    config = load_config(f"configs/{kind}/demo.yaml", ["tokenizer.vocabulary_size=6400"])
    with torch.device("meta"):
        model = get_family(kind).training.build_model(config.model, config.objective, config.tokenizer.vocabulary_size)
    built = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert plan_run(config, 2).parameters == built


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_config_has_a_plan(path: Path) -> None:
    """On as many ranks as it asks for, or one."""
    config = load_config(path)
    ranks = 1 if config.sharding.ranks == "auto" else config.sharding.ranks
    assert config.rank_problems(ranks) == []
    assert all(plan_run(config, ranks).lines())


@pytest.mark.parametrize(
    ("name", "published", "with_softmax"),
    [
        ("small", 13_593_296, 115_951_055),
        ("medium", 28_027_728, 231_949_775),
        ("original", 93_600_848, 500_651_471),
        ("original-5.5b", 93_600_848, 500_651_471),
    ],
)
def test_published_sizes_of_elmo(name: str, published: int, with_softmax: int) -> None:
    """The totals of the published HDF5 files (allennlp.org/elmo: 13.6, 28.0, 93.6 and 93.6 million).

    And with a softmax over the 793,471 words of Original's vocabulary; no other size's is published.
    """
    config = load_config(f"configs/elmo/{name}.yaml")
    assert isinstance(config.model, ElmoConfig)
    assert config.model.encoder_parameters() == published
    assert config.model == ElmoConfig(
        cell_size=config.model.cell_size,
        projection_size=config.model.projection_size,
        num_highways=config.model.num_highways,
    )
    assert config.tokenizer.vocabulary_size == 793_471
    assert plan_run(config, 1).parameters == with_softmax


def test_the_numbers_of_the_original_run() -> None:
    """Ten times the 768,648,884 words of its corpus, in whole steps of three GPUs of 128 rows of 20 words."""
    config = load_config("configs/elmo/original.yaml")
    assert config.schedule.total_steps == 10 * (768_648_884 // (3 * 128 * 20))
    assert plan_run(config, 3).accumulation == 1


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mini", 11_267_900),
        ("small", 29_058_876),
        ("base-128", 110_106_428),
        ("base-512", 110_106_428),
        ("large-128", 336_226_108),
        ("large-512", 336_226_108),
        ("large-24h", 335_174_458),
        ("roberta-base", 124_696_665),
    ],
)
def test_published_sizes_of_bert(name: str, published: int) -> None:
    """What transformers counts of the published shapes: `BertForPreTraining`, or `BertForMaskedLM` without pairs.

    The heads of all are 64 wide, which no count shows.
    """
    config = load_config(f"configs/bert/{name}.yaml")
    assert isinstance(config.model, BertConfig)
    assert plan_run(config, 1).parameters == published
    assert config.model.hidden_size == 64 * config.model.num_heads


@pytest.mark.parametrize(("length", "large", "base"), [(128, 1.880, 0.546), (512, 1.993, 0.589)])
def test_flops_of_published_sizes_of_bert(length: int, large: float, base: float) -> None:
    """10⁹ per token, by hand, of full sequences of which 20 in 128 tokens are predicted, as published."""
    counts = {"tokens": 3 * length, "attended": 3 * length**2, "mlm": 3 * 20 * length // 128}
    models = {
        large: BertConfig(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
        base: BertConfig(),
    }
    for expected, model in models.items():
        assert BertObjectiveConfig().flops_per_token(model, 30_522, counts) / 1e9 == pytest.approx(expected, abs=6e-4)


def test_flops_of_planned_and_of_real_sequences() -> None:
    """2 layers of 12·8² weights each; a predicted token costs 6·(8² + 8·100), and one that reads s tokens 12·2·8·s."""
    model = BertConfig(hidden_size=8, num_layers=2, num_heads=2, intermediate_size=32)
    objective = BertObjectiveConfig(max_sequence_length=64, mask_probability=0.25)
    layers, head = 6 * 2 * 12 * 64, 6 * (64 + 800)
    assert objective.flops_per_token(model, 100) == layers + 192 * 64 + 0.25 * head
    counts = {"tokens": 50, "attended": 40**2 + 10**2, "mlm": 7}
    assert objective.flops_per_token(model, 100, counts) == pytest.approx(layers + 192 * 34 + 0.14 * head)


FIXED = (
    "data.lanes=8",
    "batch={global_size: 32, micro_size: 8}",
    "model.dropout=0.1",
    "objective={max_sequence_length: 64, stages: []}",
    "schedule.total_steps=300",
    "optimizer={kind: adamw, peak_learning_rate: 1e-3}",
    "precision=32-true",
)


def test_derived_numbers_of_a_run() -> None:
    config = load_config("configs/bert/demo.yaml", FIXED)
    plan = plan_run(config, 2)
    assert plan.accumulation == 32 // (8 * 2) == config.accumulation(2)
    assert plan.tokens_per_step == 32 * 64
    assert plan.total_tokens == 300 * 32 * 64
    assert plan.total_flops == plan.flops_per_token * plan.total_tokens
    # 16 bytes a parameter (weights, gradients, two states of AdamW), of which each stage shards more.
    assert plan.memory == {0: 16 * plan.parameters, 1: 12 * plan.parameters, 2: 10 * plan.parameters} | {
        3: 8 * plan.parameters
    }
    muon = plan_run(
        load_config("configs/bert/demo.yaml", [*FIXED, "optimizer={kind: muon, peak_learning_rate: 1e-3}"]), 2
    )
    saved = 4 * (2 * 12 + 1) * 128**2  # one state, not two, of all matrices of both layers and of the head's
    assert muon.memory == {stage: size - (saved if stage == 0 else saved // 2) for stage, size in plan.memory.items()}
    assert plan.lines()[0] == ("step: 32 examples = 2 ranks × 2 micro-batches × 8 examples; at most 2,048 tokens")
    assert plan.lines()[1] == "run: 300 steps, at most 614,400 tokens"


def test_what_ranks_a_run_can_be_spread_over() -> None:
    config = load_config("configs/bert/demo.yaml", FIXED)
    assert config.rank_problems(1) == config.rank_problems(4) == []
    assert config.rank_problems(3) == [
        "data.lanes (8) is not a multiple of the ranks (3)",
        "batch.global_size (32) is not a multiple of batch.micro_size times the ranks (8 × 3)",
    ]
    assert config.rank_problems(8) == [
        "batch.global_size (32) is not a multiple of batch.micro_size times the ranks (8 × 8)"
    ]


def test_what_decides_a_run_and_what_does_not() -> None:
    path = "configs/bert/demo.yaml"
    decided = load_config(path, FIXED).result_options()
    free = ["data.workers=2", "data.folder=x", "batch.micro_size=4", "sharding.zero_stage=0", "run_root=elsewhere"]
    assert (
        load_config(path, [*FIXED, *free, "logging.every_steps=3", "checkpoint.keep_last=1"]).result_options()
        == decided
    )
    changed = load_config(
        path, [*FIXED, "seed=2", "data.lanes=4", "model.dropout=0", "batch.global_size=64"]
    ).result_options()
    assert {key for key in decided if decided[key] != changed[key]} == {
        "seed",
        "data.lanes",
        "model.dropout",
        "batch.global_size",
    }


def test_passes_and_the_vocabulary_once_the_corpus_is_prepared() -> None:
    """A source's passes are its share of the tokens, by weight, over the tokens that it has."""
    sources = "data.sources=[{kind: text, files: a, name: a, weight: 3}, {kind: text, files: b, name: b}]"
    config = load_config("configs/bert/demo.yaml", [*FIXED, sources])
    assert plan_run(config, 1).passes is None
    assert "passes over the corpus: known once it is prepared: pretrain prepare CONFIG" in plan_run(config, 1).lines()
    plan = plan_run(config, 1, Prepared(vocabulary_size=3_000, tokens={"a": 46_080, "b": 614_400}))
    assert plan.passes == {"a": 10.0, "b": 0.25}, "614,400 tokens, three of four from a"
    assert plan.parameters == config.parameters(3_000)
    assert "passes over the corpus: about 10 of a, 0.25 of b" in plan.lines()
    one = plan_run(load_config("configs/bert/demo.yaml", FIXED), 1, Prepared(3_000, {"python_docs-0": 300_000}))
    assert "passes over the corpus: about 2" in one.lines()


def test_the_time_a_run_takes() -> None:
    plan = plan_run(load_config("configs/bert/demo.yaml", FIXED), 2)  # 614,400 tokens
    assert plan.lines()[-1].startswith("time: known once the speed is: pretrain bench CONFIG --json")
    assert plan.lines(Speed(64, "given"))[-1] == "time: about 2.7 hours at 64 tokens/s (given)"
    begun = plan.lines(Speed(1_024, "measured", step=225))[-1]
    assert begun == "time: about 10 minutes at 1,024 tokens/s (measured); 2 minutes of it left after step 225"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (9, "9 seconds"),
        (119, "119 seconds"),
        (600, "10 minutes"),
        (7200, "2.0 hours"),
        (864_000, "240 hours (10 days)"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


MEASURE = """
import sys, torch
from pretrain.bench import TimedModel, read_steps
from pretrain.config.load import load_config
from pretrain.config.plan import Prepared, plan_run
from pretrain.data.prepare import ensure_prepared
from pretrain.data.stream import StreamPosition
from pretrain.models import get_family
from pretrain.models.baselines import Baseline
from pretrain.runs.trained import build_initial_model, read_tokenizer, select_backends
from pretrain.runtime.world import World
from pretrain.training.steps import build_loader

torch.set_num_threads(1)

def measure(overrides):
    config = load_config(sys.argv[1], overrides)
    family, alone = get_family(config.model.kind), World(rank=0, local_rank=0, size=1, local_size=1)
    corpus = ensure_prepared(config, family, log_report=False)
    tokenizer = read_tokenizer(config, corpus.fetch_tokenizer())
    loader = build_loader(config, tokenizer, corpus, StreamPosition.start(config.data.lanes), alone)
    steps = read_steps(loader, config.accumulation(1), 2)
    model = build_initial_model(config, tokenizer)
    select_backends(config, model, torch.device("cpu"))
    objective = family.training.build_objective(config.objective, tokenizer)
    measured = TimedModel(config, Baseline("ours", model, objective, {}), torch.device("cpu"), steps).peak_memory
    plan = plan_run(config, 1, Prepared(tokenizer.vocabulary_size, {}))
    return measured, plan.memory[0] + plan.activations

measure(sys.argv[3].split("|"))  # libraries take memory of their own when they are first used
print(*measure(sys.argv[2].split("|")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("configs/bert/mini.yaml", ["batch={global_size: 16, micro_size: 16}"]),
        (
            "configs/bert/mini.yaml",
            ["batch={global_size: 16, micro_size: 16}", "compute.activation_checkpointing=true"],
        ),
        ("configs/bert/mini.yaml", ["batch={global_size: 16, micro_size: 16}", "precision=bf16-mixed"]),
        ("configs/elmo/little.yaml", ["model.cell_size=1024", "objective.num_negatives=64"]),
    ],
    ids=["bert", "bert-checkpointing", "bert-bf16", "elmo"],
)
def test_memory_is_about_what_training_takes(path: str, more: list[str], corpus: Path, tmp_path: Path) -> None:
    """The peak of a step in a process of its own, as `pretrain bench` measures it, within 30 %.

    What is freed goes back to the system at once, so that fragments do not count.
    """
    text = [f"data.sources=[{{kind: text, files: {corpus}}}]", "data.block_tokens=4096", f"run_root={tmp_path}"]
    small = ["batch={global_size: 8, micro_size: 1}"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path, "|".join([*text, *more]), "|".join([*text, *more, *small])],
        cwd=REPOSITORY,
        env=clean_environment() | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    measured, planned = map(float, done.stdout.split()[-2:])
    assert planned == pytest.approx(measured, rel=0.3)
