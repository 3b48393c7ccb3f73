"""Stages of BERT's objective as options: what is asked of them, which objective holds when, and what a run takes."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pretrain.config.load import dump_config, load_config
from pretrain.config.objectives import BertObjectiveConfig, ElmoObjectiveConfig
from pretrain.config.plan import Prepared, plan_run
from pretrain.config.run import RunConfig
from tests.config.test_load import BERT, ELMO, problems

STAGES = (
    "objective.stages=[{until_step: 100, max_sequence_length: 32, mask_probability: 0.3, shift_positions: true}, "
    "{until_step: 250, mask_probability: 0.2}]"
)
FIXED = (
    "data.lanes=8",
    "batch={global_size: 32, micro_size: 8}",
    "objective.max_sequence_length=128",
    "schedule.total_steps=300",
)


def staged(*more: str) -> RunConfig:
    return load_config(BERT, [*FIXED, STAGES, *more])


def test_every_problem_of_stages_is_told_at_once() -> None:
    first = "{until_step: 200, max_sequence_length: 129}"
    second = "{until_step: 200, mask_probability: 0.3}"
    stages = f"objective.stages=[{first}, {second}, {{until_step: 300}}]"
    assert problems(stages, "objective.max_sequence_length=128", "batch.global_size=30", path=BERT) == [
        "objective.stages.0.max_sequence_length (129) is more than objective.max_sequence_length (128)",
        "objective.stages.1.until_step (200) is not more than that of the stage before (200)",
        "objective.stages.2: nothing is different in it: give one of max_sequence_length, mask_probability, "
        "shift_positions",
        "batch.global_size (30) is not a multiple of data.lanes (8)",
        "batch.global_size (30) is not a multiple of batch.micro_size (16)",
    ]
    wrong = "{until_step: 0, max_sequence_length: 7}, {mask_probability: 1.5, shift: true}, 3"
    assert problems(f"objective.stages=[{wrong}]", path=BERT) == [
        "objective.stages.0.until_step: must be more than 0 (given: 0)",
        "objective.stages.0.max_sequence_length: must be at least 8 (given: 7)",
        "objective.stages.1.until_step: missing",
        "objective.stages.1.mask_probability: must be less than 1.0 (given: 1.5)",
        "objective.stages.1.shift: no such option; did you mean objective.stages.shift_positions?",
        "objective.stages.2: must be a section of options (given: 3), as in "
        "'objective.stages=[{until_step: 1000, max_sequence_length: 32}]'",
    ]
    assert problems("objective.stages=[{until: 5}]", path=BERT) == [
        "objective.stages.0.until_step: missing",
        "objective.stages.0.until: no such option; did you mean objective.stages.until_step?",
    ]
    assert problems(STAGES) == ["objective.stages: no such option; only another objective.kind has it"]
    with pytest.raises(ValidationError):
        BertObjectiveConfig.model_validate({"stages": [{"until_step": True}]})


def test_the_objective_of_a_step() -> None:
    objective = staged().objective
    assert isinstance(objective, BertObjectiveConfig)
    assert list(objective.by_first_step()) == [0, 100, 250]
    found = {
        step: (one.max_sequence_length, one.mask_probability, one.shifted_within, one.tokens_per_example, one.stages)
        for step in (0, 99, 100, 249, 250, 10**9)
        for one in [objective.at(step)]
    }
    first, second, last = (32, 0.3, 128, 128, ()), (128, 0.2, None, 128, ()), (128, 0.15, None, 128, ())
    assert found == {0: first, 99: first, 100: second, 249: second, 250: last, 10**9: last}
    assert (objective.max_sequence_length, objective.mask_probability, objective.shifted_within) == (128, 0.15, None)
    unpacked = objective.model_copy(update={"packing": False})
    assert [one.tokens_per_example for one in unpacked.by_first_step().values()] == [32, 128, 128]
    full = objective.model_copy(update={"next_sentence": False})
    assert [one.tokens_per_example for one in full.by_first_step().values()] == [1024] * 3


@pytest.mark.parametrize("objective", [BertObjectiveConfig(), ElmoObjectiveConfig()])
def test_without_stages_all_steps_are_alike(objective: BertObjectiveConfig | ElmoObjectiveConfig) -> None:
    assert objective.by_first_step() == {0: objective}
    assert objective.at(10**9) == objective
    assert objective.staged_options(7) == {} and objective.describe_stage(7) == ""


def test_what_is_said_of_a_step() -> None:
    objective = staged().objective
    assert objective.staged_options(99) == {
        "max_sequence_length": 32,
        "mask_probability": 0.3,
        "shift_positions": True,
    }
    assert objective.describe_stage(250) == "max_sequence_length 128, mask_probability 0.15, shift_positions false"
    plain = load_config(BERT, ["objective.stages=[{until_step: 9, mask_probability: 0.3}]"])
    assert "shift_positions" not in plain.objective.staged_options(0)


def test_stages_are_part_of_the_result(tmp_path: Path) -> None:
    """And of the config that a run keeps."""
    config = staged()
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config == config.public()
    decided = config.result_options()
    for other in (staged(STAGES.replace("100", "101")), staged(STAGES.replace(", shift_positions: true", ""))):
        changed = other.result_options()
        assert {key for key in decided if changed[key] != decided[key]} == {"objective.stages"}


def test_what_a_run_with_stages_takes() -> None:
    """300 steps of 32 packs of 128 tokens; FLOPs are those of each stage by its tokens."""
    plan = plan_run(staged(), 1, Prepared(1000, {"python_docs-0": 1_228_800}))
    assert plan.tokens_per_step == 32 * 128 and plan.total_tokens == 300 * 32 * 128
    assert plan.passes == {"python_docs-0": 1.0}
    options = (("128", "0.15"), ("32", "0.3"), ("128", "0.2"))
    last, first, second = (
        plan_run(
            load_config(BERT, [*FIXED, f"objective={{max_sequence_length: {n}, mask_probability: {p}, stages: []}}"]), 1
        )
        for n, p in options
    )
    alone = [one.config.flops_per_token(1000) for one in (first, second, last)]
    assert len(set(alone)) == 3
    assert plan.flops_per_token == pytest.approx((100 * alone[0] + 150 * alone[1] + 50 * alone[2]) / 300, rel=1e-12)
    assert plan.total_flops == pytest.approx(plan.flops_per_token * plan.total_tokens)
    predicted = staged().objective.at(0)
    assert isinstance(predicted, BertObjectiveConfig) and predicted.masked_per_pack == 41
    assert plan.activations > last.config.activation_bytes(1000), "twice as many tokens are predicted at first"
    assert plan.lines()[2:5] == [
        "steps 1 to 100: max_sequence_length 32, mask_probability 0.3, shift_positions true",
        "steps 101 to 250: max_sequence_length 128, mask_probability 0.2, shift_positions false",
        "steps 251 to 300: max_sequence_length 128, mask_probability 0.15, shift_positions false",
    ]


def test_rows_are_as_short_as_their_stage() -> None:
    plan = plan_run(staged("objective.packing=false"), 1)
    assert plan.tokens_per_step == 32 * 128
    assert plan.total_tokens == 32 * (100 * 32 + 200 * 128)
    short, *_ = (steps * one.flops_per_token(plan.config.model, 1000) for steps, one in plan.config.stages())
    assert short == 100 * plan.config.objective.at(0).flops_per_token(plan.config.model, 1000)


@pytest.mark.parametrize(("steps", "first"), [(50, 100), (100, 100), (101, 250), (250, 250), (251, None)])
def test_a_quick_trial_may_end_before_its_stages(steps: int, first: int | None) -> None:
    config = staged(f"schedule.total_steps={steps}")
    plan = plan_run(config, 1)
    assert plan.total_tokens == steps * 32 * 128
    line = f"schedule.total_steps is {steps}: objective.stages has more after step {first}, never reached"
    assert config.unreached_stages() == (line if first else None)
    assert (line in plan.lines()) == (first is not None)
    assert sum(reached for reached, _ in config.stages()) == steps
    assert load_config(ELMO, ["schedule.total_steps=1"]).unreached_stages() is None
