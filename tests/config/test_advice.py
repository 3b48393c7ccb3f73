"""What could be changed where a model has learned no more than the frequencies of words."""

from pretrain.config.load import load_config

MORE = "more steps (schedule.total_steps, --extend)"
ADAMW = "optimizer={kind: adamw, peak_learning_rate: 1e-3}"
ADAGRAD = "optimizer={kind: adagrad, peak_learning_rate: 0.2}"


def test_the_demos_do_all_of_it() -> None:
    for family in ("elmo", "bert"):
        assert load_config(f"configs/{family}/demo.yaml").advice == (MORE,)


def test_what_a_run_does_not_do() -> None:
    bert = load_config(
        "configs/bert/demo.yaml",
        ["objective.stages=[]", "objective.max_sequence_length=128", "model.initializer_range=0.02", ADAMW],
    )
    assert bert.advice == (
        "short sequences with many masks in the first part of the run (objective.stages)",
        "model.initializer_range=0.09",
        "optimizer.kind=muon",
        MORE,
    )
    elmo = load_config("configs/elmo/demo.yaml", ["objective.softmax=sampled", "objective.num_negatives=64", ADAGRAD])
    assert elmo.advice == ("objective.softmax=full, unless the vocabulary is large", "optimizer.kind=adamw", MORE)
