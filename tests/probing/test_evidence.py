"""What was probed of a run is kept in its folder, and told in the card of exports; model folders stay as they are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.errors import ExportError
from pretrain.export import export
from pretrain.probe import probe
from pretrain.probing import tasks
from pretrain.probing.evidence import card_section, evidence_of, read_evidence
from pretrain.probing.results import Outcome, Result
from pretrain.probing.subjects import open_subject
from pretrain.probing.tasks import Inputs
from pretrain.runs.checkpoints import sha256
from pretrain.runs.folder import RunFolder
from pretrain.train import train
from tests.probing.made_up_task import put_in_place
from tests.tiny import tiny_config

ONE = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=4", "checkpoint.every_steps=2"]


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_config("bert", corpus, tmp_path_factory.mktemp("runs"), *ONE, "data.held_out=0")).folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put_in_place(monkeypatch)
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "tree`bank.conllu"
    path.write_text("one two\n\nthree\n\nfour five\n", encoding="utf-8")
    return path


def values(path: Path) -> list[tuple[str, bytes]]:
    return [(str(file), file.read_bytes()) for file in sorted(path.rglob("*")) if file.is_file()]


def test_a_run_keeps_what_was_probed_and_its_export_tells_it(run: Path, data: Path, tmp_path: Path) -> None:
    outcome = probe([run], "pos", Inputs(data, seed=3), "2")
    path = run / "probes" / "pos-step-00000002.json"
    assert outcome.notes == ("3 sentences of tree`bank.conllu", f"recorded in {path}, for the card of exports")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["files"] == {"data": {"name": data.name, "sha256": sha256(data)}}
    assert kept["weights"] == sha256(run / "checkpoints" / "step-00000002" / "complete.json")
    assert kept["results"] == [result.values() for result in outcome.results]
    assert kept["details"] == {"mixing_weights": {str(run): [0.2, 0.3, 0.5]}}, "no sentences"

    card = (export(run, tmp_path / "two", checkpoint="2") / "README.md").read_text(encoding="utf-8")
    section = card[card.index("## Probes") : card.index("## Use")]
    layers = {r.layer: r for r in outcome.results if r.model == str(run)}
    best = max((layers[1], layers[2]), key=lambda result: result.value)
    assert f"### pos\n\ndata `tree'bank.conllu` (SHA-256 `{sha256(data)[:16]}…`), seed 3.\n" in section
    assert f"Best contextual layer {best.layer}: accuracy {best.value:.3f} [" in section
    assert f"| best contextual layer, {best.layer} | {best.value:.3f} [{best.low:.3f}, {best.high:.3f}] |" in section
    assert "| learned mix of all layers | 0.900 [0.890, 0.910] |" in section
    assert f"| layer 0 | {layers[0].value:.3f} [" in section
    assert "| the majority | 0.400 [0.390, 0.410] |" in section
    assert "| the untrained model | 0." in section
    assert str(run) not in section
    card = (export(run, tmp_path / "four", checkpoint="4") / "README.md").read_text(encoding="utf-8")
    assert "## Probes\n\n* nothing was probed\n" in card


def test_where_files_lie_is_not_told(run: Path, data: Path) -> None:
    subject = open_subject(run, "2")
    noted = Outcome("pos", (), (f"tested on 3 sentences of {data}, a fifth of them", "and a second note"))
    found = evidence_of(noted, subject, Inputs(data))
    assert found.outcome.notes[0] == f"tested on 3 sentences of {data.name}, a fifth of them"
    assert "\n\ntested on 3 sentences of tree'bank.conllu, a fifth of them\n\n" in card_section([found])


def test_of_several_models_each_run_keeps_its_own(run: Path, data: Path, tmp_path: Path) -> None:
    model = export(run, tmp_path / "model")
    other = Path(shutil.copytree(run, tmp_path / "other", symlinks=True))
    before = values(model)
    probe([run, model, other], "pos", Inputs(data))
    assert values(model) == before, "a model folder is not written to"
    for folder in (run, other):
        kept = json.loads((folder / "probes" / "pos-step-00000004.json").read_text(encoding="utf-8"))
        named = {(result["model"], result.get("of")) for result in kept["results"]}
        assert named == {(str(folder), None), ("untrained", str(folder)), ("majority", None)}
        assert kept["details"] == {"mixing_weights": {str(folder): [0.2, 0.3, 0.5]}}


def test_a_folder_that_cannot_be_written(run: Path, data: Path) -> None:
    (run / "probes").write_text("in the way", encoding="utf-8")
    outcome = probe([run], "pos", Inputs(data))
    path = run / "probes" / "pos-step-00000004.json"
    assert outcome.notes[1] == f"{path}: cannot be written (File exists): exports will not tell of this probe"
    assert len(outcome.results) == 8


def test_probes_of_other_weights_do_not_count(run: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    probe([run], "pos", Inputs(data))
    marker = run / "checkpoints" / "step-00000004" / "complete.json"
    assert len(read_evidence(RunFolder(run), marker.parent)) == 1
    marker.write_text(marker.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert read_evidence(RunFolder(run), marker.parent) == []
    assert "of other weights" in caplog.text


def test_a_file_that_holds_something_else(run: Path, tmp_path: Path) -> None:
    (run / "probes").mkdir()
    path = run / "probes" / "pos-step-00000004.json"
    path.write_text('{"results": [{"model": "x"}]}', encoding="utf-8")
    with pytest.raises(
        ExportError, match=rf"^{path}: not what pretrain probe writes \(.*\): remove it, or probe anew$"
    ):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bounds_that_are_not_known_and_several_metrics(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan, name = float("nan"), str(run)
    results = (
        Result(name, "pos", 1, "uas", 0.5, nan, nan),
        Result(name, "pos", 1, "las", 0.25, 0.2, 0.3),
        Result("static", "pos", 0, "uas", 0.4, 0.3, 0.45),
        replace(Result(name, "pos", 1, "uas", 0.9, 0.8, 1.0), group="nsubj"),
    )
    module = __import__("sys").modules["pretrain.probing.made_up"]
    monkeypatch.setattr(module, "probe_pos", lambda subjects, inputs: Outcome("pos", results))
    assert tasks.get_task("pos") is module.probe_pos
    probe([run], "pos", Inputs(data))
    (found,) = read_evidence(RunFolder(run), run / "checkpoints" / "step-00000004")
    assert repr(found.outcome.results) == repr(results)
    lines = card_section([found]).splitlines()
    assert lines[-4:] == [
        "|  | uas | las |",
        "| --- | --- | --- |",
        "| layer 1 | 0.500 | 0.250 [0.200, 0.300] |",
        "| the static baseline | 0.400 [0.300, 0.450] |  |",
    ]
