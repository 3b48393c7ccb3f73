"""The numbers that follow from a config, against models that are really built and against published ones."""

from pathlib import Path

import pytest
import torch

from pretrain.config.load import load_config
from pretrain.config.models import BertConfig, ElmoConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.config.plan import plan_run
from pretrain.models import FAMILIES, get_family
from tests.tiny import REPOSITORY

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
    "objective.max_sequence_length=64",
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
    assert len(plan.lines()) == 8


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
