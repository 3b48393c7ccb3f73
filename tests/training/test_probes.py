"""Probes of checkpoints while a run trains: what its metrics hold, when, and that training does not notice."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch
from click.testing import CliRunner

from pretrain.cli import TASKS, main
from pretrain.config.load import load_config
from pretrain.config.run import RunConfig
from pretrain.config.training import ProbeConfig
from pretrain.data.prepare import ensure_prepared
from pretrain.errors import ConfigError, DataError
from pretrain.models import get_family
from pretrain.probe import probe
from pretrain.probing import checkpoints
from pretrain.probing.checkpoints import CheckpointProbes, take_sentences
from pretrain.probing.tasks import MODULES, Inputs
from pretrain.train import train
from tests.probing.made_up_task import put_in_place
from tests.tiny import REPOSITORY, final_weights, metrics, run_on_ranks, tiny_config
from tests.training.wandb_file import read_wandb

ONE = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=6", "checkpoint.every_steps=2"]
TIMES = ("time", "tokens_per_second")


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "trees.conllu.gz"
    sentences = [f"word number{number} here\n\n" for number in range(12)]
    path.write_bytes(gzip.compress("".join(sentences).encode()))
    return path


def probes(data: Path, *more: str) -> list[str]:
    return [f"evaluation.probes=[{{task: pos, data: {json.dumps(str(data))}, max_sentences: 4}}]", *more]


@dataclass(frozen=True)
class Lines:
    """A run's metrics, those of probes apart."""

    training: list[dict[str, object]]
    probes: list[dict[str, object]]


def lines(config: RunConfig) -> Lines:
    found = metrics(config)
    probed = [line for line in found if any(name.startswith("probe_") for name in line)]
    training = [{k: v for k, v in line.items() if k not in TIMES} for line in found if line not in probed]
    return Lines(training, probed)


def test_the_tasks_are_the_same_everywhere() -> None:
    annotation = ProbeConfig.model_fields["task"].annotation
    assert set(get_args(annotation)) == set(TASKS) == set(MODULES)


@pytest.mark.parametrize("family", [pytest.param("elmo", marks=pytest.mark.slow), "bert"])
def test_training_does_not_notice(
    family: str, corpus: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit for bit: examples, losses, weights; the made-up task draws from every generator and seeds them anew."""
    plain = tiny_config(family, corpus, tmp_path, *ONE, "name=plain")
    probed = tiny_config(family, corpus, tmp_path, *ONE, "name=probed", *probes(data))
    with caplog.at_level("INFO"):
        for config in (plain, probed):
            train(config)
    assert lines(plain).training == lines(probed).training
    assert len({line["data_digest"] for line in lines(plain).training}) == 6
    weights, expected = final_weights(probed), final_weights(plain)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert lines(plain).probes == []

    found = lines(probed).probes
    assert [line["step"] for line in found] == [2, 4, 6]
    own = {f"probe_pos_{name}" for name in ("layer_0", "layer_1", "layer_2", "mix")}
    floors = {"probe_pos_majority", "probe_pos_untrained"}
    assert [line.keys() - {"step", "time"} for line in found] == [own | floors, own, own]
    shown = [record.getMessage() for record in caplog.records if "probe_pos_mix 0.900" in record.getMessage()]
    assert [row.split()[0] for row in shown] == ["2", "4", "6"] and "probe_pos_majority 0.400" in shown[0]
    taken = tmp_path / "taken.conllu"
    assert take_sentences(data, taken, 4, blocks=True) == f"4 of 12 sentences of {data}"
    for line in found:  # the figures are those of the checkpoint, as the command finds them
        results = probe([probed.folder], "pos", Inputs(taken), str(line["step"]), start="zero").results
        layers = {f"probe_pos_layer_{r.layer}": r.value for r in results if r.model == str(probed.folder)}
        assert {name: line[name] for name in own - {"probe_pos_mix"}} == {n: layers[n] for n in own - {"probe_pos_mix"}}


def test_when_checkpoints_are_probed(corpus: Path, data: Path, tmp_path: Path) -> None:
    seldom = probes(data, "evaluation.probe_every_steps=4", "schedule.total_steps=6")
    config = tiny_config("bert", corpus, tmp_path, *ONE, *seldom)
    train(config, stop_after=5)  # an end of a start is saved; it is probed only where its turn has come
    assert [line["step"] for line in lines(config).probes] == [4]
    train(config)
    found = lines(config).probes
    assert [line["step"] for line in found] == [4, 6]
    assert all("probe_pos_majority" in line for line in found), "once for each start"
    more = tiny_config("bert", corpus, tmp_path, *ONE, "schedule.total_steps=8")
    train(more, extend=True)  # probes may differ from start to start
    assert [line["step"] for line in lines(config).probes] == [4, 6]
    shown = CliRunner().invoke(main, ["config", str(config.folder)])
    assert shown.exit_code == 0, "a line without a speed does not disturb"


def refused(config: RunConfig) -> str:
    """What is said of a run that may not begin."""
    with pytest.raises((ConfigError, DataError)) as error:
        train(config)
    assert not (config.folder / "checkpoints").exists() and not metrics(config)
    return str(error.value)


def test_what_cannot_be_probed_is_refused_before_the_first_step(corpus: Path, data: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.conllu"
    few.write_text("one\n\ntwo\n", encoding="utf-8")
    empty = tmp_path / "empty.conllu"
    empty.write_text("\n", encoding="utf-8")
    missing = tmp_path / "missing.conllu"
    said = {
        missing: f"evaluation.probes: {missing}: no such file",
        few: f"evaluation.probes, task pos: {few}: too few sentences",
        empty: f"evaluation.probes: {empty}: no sentence",
    }
    for number, (path, line) in enumerate(said.items()):
        config = tiny_config("bert", corpus, tmp_path, *ONE, *probes(path), f"name=run-{number}")
        assert refused(config) == line
        if path == missing:
            assert not (config.run_root / "prepared").exists(), "before anything is prepared"
    two = [f"evaluation.probes=[{{task: pos, data: {data}, max_sentences: 2}}]"]
    assert refused(tiny_config("bert", corpus, tmp_path, *ONE, *two)) == (
        f"evaluation.probes, task pos: 2 of 12 sentences of {data}: too few sentences"
    )


def test_a_file_that_goes_away_meanwhile(corpus: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_config("bert", corpus, tmp_path, *ONE, *probes(data))
    train(config, stop_after=0)
    probing = CheckpointProbes(config, tmp_path / "taken")
    (tmp_path / "taken").mkdir()
    probing.rehearse(config.folder / "tokenizer")
    data.unlink()
    assert probing(0)["probe_pos_mix"] == 0.9
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["pos-data-trees.conllu"], "vectors do not pile up"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["evaluation.probe_every_steps=3", "checkpoint.every_steps=2"],
            "evaluation.probe_every_steps (3) is not a multiple of checkpoint.every_steps (2): checkpoints are probed",
        ),
        (
            ["evaluation.probes=[{task: pos, data: a}, {task: wic, data: a}, {task: pos, data: b}]"],
            "probes has pos twice",
        ),
        (["evaluation.probes=[{task: po, data: a}]"], "evaluation.probes.0.task: must be 'pos'"),
    ],
)
def test_options_that_do_not_fit(options: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(REPOSITORY / "configs" / "bert" / "demo.yaml", options)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("text", "blocks", "most", "taken"),
    [
        ("a\nb\n\nc\n\n\nd\n", True, 2, "a\nb\n\nc\n\n\n"),
        ("\n\na\n\nb\n", True, None, "a\n\nb\n\n"),
        ("head\n1\n2\n3\n\n4\n5\n", False, 3, "head\n2\n4\n"),
        ("only\n", False, 500, "only\n"),
    ],
)
def test_sentences_are_taken_evenly(text: str, blocks: bool, most: int | None, taken: str, tmp_path: Path) -> None:
    path, copy = tmp_path / "text.tsv", tmp_path / "copy.tsv"
    path.write_text(text, encoding="utf-8")
    take_sentences(path, copy, most, blocks=blocks)
    assert copy.read_text(encoding="utf-8") == taken


def test_the_generators_go_on_where_they_were() -> None:
    before = torch.get_rng_state()
    with checkpoints.own_randomness():
        torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_several_ranks(corpus: Path, tmp_path: Path) -> None:
    """Under every kind of ZeRO the weights are whole, and the ranks wait for the one that probes them."""
    words = corpus.read_text(encoding="utf-8").split()
    common = max(set(words), key=words.count)
    senses = tmp_path / "senses.tsv"
    rows = [f"{common}\t{'ab'[number % 2]}\t{common} {words[number]} {words[number + 9]}" for number in range(8)]
    senses.write_text("\n".join(rows) + "\n", encoding="utf-8")
    asked = f"evaluation.probes=[{{task: senses, data: {json.dumps(str(senses))}}}]"
    both = ["schedule.total_steps=4", "checkpoint.every_steps=2", "sharding.ranks=2", "logging.wandb=offline"]
    runs = {}
    for stage in (0, 3):
        more = [*both, f"sharding.zero_stage={stage}"]
        runs[stage] = (
            tiny_config("bert", corpus, tmp_path, *more, f"name=plain-{stage}"),
            tiny_config("bert", corpus, tmp_path, *more, f"name=probed-{stage}", asked),
        )
    ensure_prepared(runs[0][0], get_family("bert"))
    run_on_ranks([(config, None) for pair in runs.values() for config in pair], 2, tmp_path)
    for plain, probed in runs.values():
        assert lines(plain).training == lines(probed).training
        weights, expected = final_weights(probed), final_weights(plain)
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        found = lines(probed).probes
        assert [line["step"] for line in found] == [2, 4]
        for line in found:
            results = probe([probed.folder], "senses", Inputs(senses), str(line["step"])).results
            own = [r for r in results if r.model == str(probed.folder) and r.metric == "nearest_sense" and not r.group]
            assert {f"probe_senses_layer_{r.layer}": r.value for r in own}.items() <= line.items()
            assert len(own) == 3
    recorded = {line["_step"]: line for line in read_wandb(probed.folder).history}
    assert list(recorded) == [1, 2, 3, 4], "in the row of their step"
    assert all(line.items() <= (recorded[line["step"]] | {"time": line["time"]}).items() for line in found)


def test_a_checkpoint_that_cannot_be_probed_does_not_end_the_run(
    corpus: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the device is full; what is wrong with the data has been said before the first step."""

    def full(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(checkpoints, "open_subject", full)
    config = tiny_config("bert", corpus, tmp_path, *ONE, *probes(data))
    assert train(config).code == 0
    found = lines(config)
    assert found.training[-1]["step"] == 6 and not found.probes
    assert "step 6 is not probed: out of memory" in caplog.text


def test_words_in_two_senses_are_taken_whole(tmp_path: Path) -> None:
    rows = [f"{word}\t{sense}\tthe {word} {number}\n" for word in "abc" for sense in "xy" for number in range(3)]
    (tmp_path / "senses").write_text("# a comment\n" + "".join(rows), encoding="utf-8")
    said = take_sentences(tmp_path / "senses", tmp_path / "copy", 13, blocks=False, words=True)
    assert (tmp_path / "copy").read_text(encoding="utf-8") == "".join(rows[:12])
    assert said.startswith("12 of 19 sentences")
    take_sentences(tmp_path / "senses", tmp_path / "copy", 2, blocks=False, words=True)
    assert (tmp_path / "copy").read_text(encoding="utf-8") == "".join(rows[:6]), "one word at least"


def test_labels_that_lie_beside_their_pairs(tmp_path: Path) -> None:
    """Of Word-in-Context, the labels of the pairs that are taken are taken."""
    pairs, gold = tmp_path / "dev.data.txt", tmp_path / "dev.gold.txt"
    pairs.write_text("".join(f"key\tN\t0-{number}\tkey\tkey\n" for number in range(9)), encoding="utf-8")
    gold.write_text("T\nF\nF\nT\nF\nF\nT\nF\nF\n", encoding="utf-8")
    asked = f"evaluation.probes=[{{task: wic, data: {json.dumps(str(pairs))}, max_sentences: 3}}]"
    config = load_config(REPOSITORY / "configs" / "bert" / "demo.yaml", [asked])
    (found,) = config.evaluation.probes
    probing = CheckpointProbes(config, tmp_path / "taken")
    (tmp_path / "taken").mkdir()
    copy, names = probing._copied(found, "data", found.data)
    assert [line.split("\t")[2] for line in copy.read_text(encoding="utf-8").splitlines()] == ["0-0", "0-3", "0-6"]
    beside = copy.with_name("wic-data-dev.gold.txt")
    assert beside.read_text(encoding="utf-8") == "T\nT\nT\n"
    assert names == {copy: f"3 of 9 sentences of {pairs}", beside: str(gold)}
