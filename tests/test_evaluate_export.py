"""What `evaluate` measures against direct computations, and what `export` writes."""

import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor

from pretrain.cli import main
from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedSource, open_corpus, source_weights
from pretrain.data.documents import sentence_splitter
from pretrain.embedding.embedder import Embedder
from pretrain.errors import ConfigError, DataError
from pretrain.evaluate import _Text, compare, evaluate
from pretrain.export import export
from pretrain.models import get_family
from pretrain.models.family import Tokenizer
from pretrain.models.start_state import START_STATE_FILE, Start, StartState, read_start_state, write_start_state
from pretrain.runs import held_out
from pretrain.runs.checkpoints import checkpoint_name
from pretrain.runs.evaluation import Comparison
from pretrain.runs.folder import RunFolder
from pretrain.runs.held_out import HELD_OUT_ROWS, evaluate_model
from pretrain.runs.start_states import with_start_state
from pretrain.runs.trained import read_trained
from pretrain.runtime.seeding import generator
from pretrain.train import train
from tests.conftest import write_corpus
from tests.tiny import metrics, tiny_config

FAMILIES = ["elmo", "bert"]
STARTS: tuple[Start, ...] = ("auto", "zero", "primed")
ONE = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=6", "evaluation.every_steps=2"]


@dataclass(frozen=True)
class Made:
    """A run of six steps."""

    config: RunConfig
    tokenizer: Tokenizer
    train: tuple[PreparedSource, ...]
    held_out: tuple[PreparedSource, ...]

    @property
    def run(self) -> Path:
        return self.config.folder


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    made = {}
    for family in FAMILIES:
        config = tiny_config(family, corpus, tmp_path_factory.mktemp(family), *ONE, "checkpoint.every_steps=2")
        prepared = open_corpus(RunFolder(train(config).folder).prepared(), source_weights(config.data))
        tokenizer = read_trained(config.folder, "newest").folder.tokenizer
        assert tokenizer is not None
        made[family] = Made(config, tokenizer, prepared.training, prepared.held_out)
    return made


@pytest.fixture(params=FAMILIES)
def made(request: pytest.FixtureRequest, runs: dict[str, Made]) -> Made:
    return runs[request.param]


def direct(made: Made, which: str) -> dict[str, float]:
    """Mean losses per term, with a BERT's examples batched otherwise."""
    model = read_trained(made.run, which).folder.model
    config = made.config.model
    family = get_family(config.kind)
    rows = HELD_OUT_ROWS if family.training.ordered else 1
    maker = family.training.build_examples(config, made.config.objective, made.tokenizer, rows)
    objective = family.training.build_objective(made.config.objective, made.tokenizer)
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for number in range(made.held_out[0].shards.blocks):
        examples = maker.make(made.held_out[0].block(number), generator("held out", 0, number), pad=True)
        size = rows if family.training.ordered else 7
        carried: Tensor | None = None
        for start in range(0, len(examples), size):
            batch = maker.collate(examples.take(start, min(start + size, len(examples))))
            with torch.no_grad():
                terms, carried = objective(model, batch, carried, seed=0)
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.total.item()
                counts[name] = counts.get(name, 0) + int(term.count)
    return {name: totals[name] / counts[name] for name in totals}


def direct_shares(made: Made, which: str) -> dict[str, float]:
    """Of a BERT: how often its likeliest word and class are right, and how frequent the more frequent class is."""
    model = read_trained(made.run, which).folder.model
    maker = get_family("bert").training.build_examples(made.config.model, made.config.objective, made.tokenizer, 1)
    right: dict[str, list[bool]] = {"mlm": [], "nsp": []}
    classes: list[int] = []
    for number in range(made.held_out[0].shards.blocks):
        examples = maker.make(made.held_out[0].block(number), generator("held out", 0, number), pad=True)
        batch = dict(maker.collate(examples.take(0, len(examples))))
        labels = {"mlm": batch.pop("masked_labels"), "nsp": batch.pop("is_next")}
        with torch.no_grad():
            said = dict(zip(labels, model(**batch), strict=True))
        for name, expected in labels.items():
            right[name] += (said[name].argmax(1) == expected)[expected != -100].tolist()
        classes += labels["nsp"][labels["nsp"] != -100].tolist()
    shares = {f"{name}_accuracy": sum(values) / len(values) for name, values in right.items()}
    return shares | {"nsp_majority": max(classes.count(0), classes.count(1)) / len(classes)}


def test_the_numbers_of_an_evaluation(made: Made) -> None:
    found = evaluate(made.run, checkpoint="4", start="zero")
    expected = direct(made, "4")
    assert found.what == f"{made.run}, step 4"
    assert found.losses.terms == pytest.approx(expected, rel=1e-5)
    if made.config.model.kind == "elmo":
        assert found.losses.loss == pytest.approx((expected["forward"] + expected["backward"]) / 2, rel=1e-5)
        assert found.states == "carried"
        perplexity = math.exp(found.losses.loss)
        perplexities = [math.exp(expected["forward"]), math.exp(expected["backward"])]
        assert found.values()["perplexity_arithmetic"] == pytest.approx(sum(perplexities) / 2, rel=1e-5)
        assert found.values()["perplexity_geometric"] == pytest.approx(math.prod(perplexities) ** 0.5, rel=1e-5)
    else:
        assert found.losses.loss == pytest.approx(expected["mlm"] + expected["nsp"], rel=1e-5)
        perplexity = math.exp(expected["mlm"])
        shares = direct_shares(made, "4")
        assert {name: found.values()[name] for name in shares} == pytest.approx(shares)
        (line,) = [line for line in metrics(made.config) if line["step"] == 4]
        assert {name: line[f"held_out_{name}"] for name in shares} == pytest.approx(shares)
        said = {name: f"{100 * share:.1f} %" for name, share in shares.items()}
        assert f"NSP loss {expected['nsp']:.4f} over {found.losses.counts['nsp']:,} predictions" in found.lines()
        assert f"MLM accuracy {said['mlm_accuracy']}" in found.lines()
        beside = f"beside the majority-class baseline {said['nsp_majority']}"
        assert f"NSP accuracy {said['nsp_accuracy']} {beside}" in found.lines()
    assert found.losses.perplexity == pytest.approx(perplexity, rel=1e-5)


@pytest.mark.parametrize("reset", [False, True])
def test_log_probabilities_add_up_to_the_loss(
    runs: dict[str, Made], reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several blocks, every word of each sentence once."""
    made = runs["elmo"]
    folder = read_trained(made.run, "newest").folder
    source = made.train[0]
    monkeypatch.setattr(held_out, "held_out_blocks", lambda *_: [(0, block) for block in range(4)])
    records: list[dict[str, Any]] = []
    found = evaluate_model(folder, made.train, reset=reset, write=records.append)
    assert found == evaluate_model(folder, made.train, reset=reset)
    for name, count in found.counts.items():
        total = sum(math.fsum(record[name]) for record in records)
        assert -total == pytest.approx(found.terms[name] * count, rel=1e-6)
        assert count == sum(len(record[name]) for record in records)
    assert len({(r["document"], r["sentence"]) for r in records}) == len(records)
    blocks = [source.block(number) for number in range(4)]
    words = Counter(word for r in records for word in r["words"])
    assert words == Counter(block.words[token] for block in blocks if block.words for token in block.tokens)
    unknown = {r["words"][index] for r in records for index in r["unknown"]}
    assert unknown and unknown == {word for word in words if made.tokenizer.encode([word]).unknown_words}


def test_states_make_a_difference(runs: dict[str, Made]) -> None:
    run = runs["elmo"].run
    carried, reset = (evaluate(run, states=states, start="zero").losses for states in ("carried", "reset"))
    assert carried.counts == reset.counts
    assert carried.loss != pytest.approx(reset.loss, rel=1e-5)


def test_both_ways_on_the_first_blocks(runs: dict[str, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text that has more, states are carried through these once more."""
    made = runs["elmo"]
    folder = read_trained(made.run, "newest").folder
    blocks = [(0, block) for block in range(3)]
    for module in ("pretrain.evaluate", "pretrain.runs.held_out"):
        monkeypatch.setattr(f"{module}.held_out_blocks", lambda _, limit=None: blocks[:limit])
    monkeypatch.setattr("pretrain.evaluate._held_out_text", lambda *_: nullcontext(_Text(made.train, np.ones(1))))
    found = evaluate(made.run, checkpoint="newest", start="zero")
    assert found.by_states is not None and found.by_states.blocks == 2
    carried, reset = (evaluate_model(folder, made.train, reset=r, limit=2) for r in (False, True))
    assert (found.by_states.carried, found.by_states.reset) == (carried.loss, reset.loss)
    assert sum(carried.counts.values()) < sum(found.losses.counts.values())
    assert any(line.endswith("on the first 2 blocks") for line in found.lines())


@pytest.fixture
def copy(runs: dict[str, Made]) -> Iterator[Path]:
    """Of the ELMo's run, beside it, where nothing was measured yet."""
    path = runs["elmo"].run.with_name("copy")
    shutil.copytree(runs["elmo"].run, path, symlinks=True, ignore=shutil.ignore_patterns("start_states"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("gain", [-9.0, 1.0], ids=["primed", "zero"])
def test_a_run_and_its_export_start_alike(
    gain: float, runs: dict[str, Made], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By held-out text, measured once; the export has a file only where texts start from its state."""
    monkeypatch.setattr("pretrain.models.start_state.GAIN", gain)
    monkeypatch.setattr(StartState, "check", lambda *_: None)  # six steps make no state better than another
    text = "One text. Another, longer one."
    from_run = {start: Embedder.load(copy, "cpu", start=start).encode(text, layers="all") for start in STARTS}
    assert np.abs(from_run["primed"] - from_run["zero"]).max() > 1e-6
    assert np.array_equal(from_run["auto"], from_run["primed" if gain < 0 else "zero"])
    (file,) = (copy / "start_states").iterdir()
    trained = read_trained(copy, "best")
    assert file.name == f"{checkpoint_name(trained.step)}.safetensors"
    encoder = trained.folder.model.get_submodule("encoder")
    kept = read_start_state(file, encoder)
    for loss, state in ((kept.loss, kept.state), (kept.zero_loss, None)):
        held_out = evaluate_model(trained.folder, runs["elmo"].held_out, reset=True, start=state, limit=1, batches=24)
        assert loss == held_out.loss
    assert (kept.measured_on, kept.default) == ("held-out text", gain < 0)

    monkeypatch.setattr("pretrain.runs.start_states.evaluate_model", lambda *_, **__: pytest.fail("measured again"))
    model = export(copy, tmp_path / "model")
    assert (model / START_STATE_FILE).exists() == (gain < 0)
    assert (START_STATE_FILE in (model / "README.md").read_text(encoding="utf-8")) == (gain < 0)
    for start in STARTS:
        assert np.array_equal(Embedder.load(model, "cpu", start=start).encode(text, layers="all"), from_run[start])
    assert evaluate(copy, checkpoint="best").values()["start"] == ("primed" if gain < 0 else "zero")
    lines = tmp_path / "lines.txt"
    lines.write_text(text, encoding="utf-8")
    for start in STARTS:
        out = tmp_path / f"{start}.hdf5"
        arguments = ["embed", str(copy), str(lines), "--out", str(out), "--start", start]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        with h5py.File(out) as written:
            assert np.allclose(written["0"], from_run[start], atol=1e-6)


def test_a_start_state_of_other_weights_is_made_anew(
    copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a run was started over in the same folder; and nothing is kept where nothing can be written."""
    trained = read_trained(copy, "4")
    other = read_trained(copy, "2")
    first = with_start_state(trained).start_state
    assert first is not None
    (file,) = (copy / "start_states").iterdir()
    write_start_state(file, replace(first, default=True), other.folder.model.get_submodule("encoder"))
    with caplog.at_level(logging.INFO, "pretrain"):
        again = with_start_state(trained).start_state
    assert again is not None and (again.loss, again.default) == (first.loss, first.default)
    assert torch.equal(again.state, first.state)
    assert any("belongs to other weights" in m and m.endswith("; it is made anew") for m in caplog.messages)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pretrain.runs.start_states.write_start_state", refuse)
    with caplog.at_level(logging.INFO, "pretrain"):
        with_start_state(other)
    assert "the start state is measured each time: Permission denied" in caplog.text


def test_a_start_state_without_held_out_text(
    copy: Path, runs: dict[str, Made], caplog: pytest.LogCaptureFixture
) -> None:
    """What a folder of that run's would be measured on."""
    (copy / "prepared").write_text("nowhere\n", encoding="utf-8")
    folder = with_start_state(read_trained(copy, "4"))
    assert "not measured on held-out text, which is not there" in caplog.text
    expected = get_family("elmo").make_start_state
    assert folder.start_state is not None and expected is not None
    assert folder.start_state.measured_on == "words drawn by their rank"
    assert folder.start_state.loss == expected(folder).loss
    assert not folder.start_state.default, "what words drawn by rank say decides nothing"
    assert not list((copy / "start_states").glob("*")), "held-out text may be there the next time"


def test_a_primed_state_of_a_model_that_carries_none(runs: dict[str, Made], tmp_path: Path) -> None:
    run = str(runs["bert"].run)
    (tmp_path / "text.txt").write_text("A text.\n", encoding="utf-8")
    for arguments in (
        ["evaluate", run, "--start", "primed"],
        ["embed", run, str(tmp_path / "text.txt"), "--out", str(tmp_path / "a.hdf5"), "--start", "primed"],
    ):
        printed = CliRunner().invoke(main, arguments)
        (line,) = printed.stderr.splitlines()
        assert printed.exit_code == 2
        assert line.startswith(f"error: start primed: {run}") and line.endswith(" is a bert, which carries no state")
    assert "start" not in evaluate(runs["bert"].run).values()


@pytest.mark.parametrize("option", ["--states", "--per-sentence"])
def test_a_model_that_carries_nothing_refuses_what_concerns_states(runs: dict[str, Made], option: str) -> None:
    made = runs["bert"]
    printed = CliRunner().invoke(main, ["evaluate", str(made.run), option, "reset"])
    assert printed.exit_code == 2
    (line,) = printed.stderr.splitlines()
    assert line.startswith(f"error: {option} reset: {made.run}, step ") and "is a bert" in line
    assert evaluate(made.run).states is None


def test_too_little_text(runs: dict[str, Made], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("One.\n", encoding="utf-8")
    with pytest.raises(DataError, match="the text to evaluate on gives no example: there is too little of it"):
        evaluate(runs["bert"].run, [str(tmp_path / "short.txt")])


def token_counts(made: Made, sources: list[PreparedSource]) -> np.ndarray[Any, Any]:
    """How often each id is to be predicted: every token, and where there is one, the end of every sentence."""
    counts = np.zeros(made.tokenizer.vocabulary_size)
    for number in range(sources[0].shards.blocks):
        block = sources[0].block(number)
        for token in block.tokens.tolist():
            if block.words is None:
                counts[token] += 1
            else:
                (identity,) = made.tokenizer.encode([block.words[token]]).ids.tolist()
                counts[identity] += 1
        if made.tokenizer.sentence_end is not None:
            counts[made.tokenizer.sentence_end] += len(block.sentence_starts) - 1
    return counts


def test_the_unigram_baseline(made: Made) -> None:
    seen, asked = token_counts(made, made.train), token_counts(made, made.held_out)
    probability = (seen + 1) / (seen + 1).sum()
    expected = -(asked * np.log(probability)).sum() / asked.sum()
    assert evaluate(made.run).unigram_loss == pytest.approx(expected, rel=1e-9)


def test_text_of_ones_own(made: Made, corpus: Path, tmp_path: Path) -> None:
    """The same file gives the same loss, zipped or as records, from the run and from the exported folder."""
    text = write_corpus(tmp_path / "other.txt", 40, seed=5).read_text(encoding="utf-8")
    records = [json.dumps({"text": document}) for document in text.strip().split("\n\n")]
    (tmp_path / "other.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    plain = evaluate(made.run, [str(tmp_path / "other.txt")])
    assert plain.what.endswith(f"on {tmp_path / 'other.txt'}")
    assert plain.unigram_loss is not None and plain.unigram_loss > 0
    assert min(plain.losses.counts.values()) > 30
    as_records = evaluate(made.run, [str(tmp_path / "other.jsonl")])
    assert as_records.losses.loss == pytest.approx(plain.losses.loss, rel=0.05), "documents are numbered otherwise"
    model = export(made.run, tmp_path / "model")
    exported = evaluate(model, [str(tmp_path / "other.txt")])
    assert exported.unigram_loss is None
    assert exported.losses.terms == pytest.approx(plain.losses.terms, rel=1e-5)


def test_what_evaluate_prints(made: Made) -> None:
    found = evaluate(made.run)
    printed = CliRunner().invoke(main, ["evaluate", str(made.run)])
    assert printed.exit_code == 0
    assert f"loss {found.losses.loss:.4f}, perplexity {found.losses.perplexity:,.2f}" in printed.stdout
    assert "unigram baseline: loss" in printed.stdout
    values = json.loads(CliRunner().invoke(main, ["evaluate", str(made.run), "--json"]).stdout)
    assert values["loss"] == pytest.approx(found.losses.loss)
    assert found.losses.metrics.keys() | {"perplexity", "unigram_loss", "what"} <= values.keys()


def evaluate_by_command(*arguments: str | Path) -> Any:
    """What `pretrain evaluate … --json` prints."""
    printed = CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--json"])
    assert printed.exit_code == 0, printed.stderr
    return json.loads(printed.stdout)


def test_several_runs_are_rows_of_one_table(runs: dict[str, Made], tmp_path: Path) -> None:
    """Each row holds the numbers of the run by itself; losses over different tokens are said not to compare."""
    text = write_corpus(tmp_path / "other.txt", 40, seed=5)
    elmo, bert = (runs[kind].run for kind in FAMILIES)
    found = evaluate_by_command(elmo, bert)
    assert [row["what"] for row in found] == [evaluate(run).what for run in (elmo, bert)]
    assert found == [evaluate_by_command(run) for run in (elmo, bert)], "one object for one, a list for several"
    printed = CliRunner().invoke(main, ["evaluate", str(elmo), str(bert)]).stdout.splitlines()
    assert printed[0] == "Each on its run's held-out text:"
    assert printed[1].startswith("The held-out texts differ, or are cut into different tokens: ")
    assert "NSP majority" in printed[2]
    for line, row in zip(printed[3:], found, strict=True):
        assert line.startswith(row["what"]) and line.endswith(f"  {row['verdict']}")
        assert f"  {row['loss']:.4f}  " in line and f"  {math.exp(row['unigram_loss']):,.2f}  " in line

    model = export(bert, tmp_path / "model")
    of_run, of_model = compare([bert, model], [str(text)]).rows
    assert (of_run.text, of_run.losses.counts) == (of_model.text, of_model.losses.counts)
    assert Comparison((of_run, of_model)).lines()[0] == f"On {text}:"
    assert compare([elmo, bert], [str(text)]).lines()[1].startswith("The text is cut into different tokens: ")


def test_several_runs_are_found_before_the_first_is_evaluated(
    runs: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.evaluate.evaluate_model", lambda *_, **__: pytest.fail("too early"))
    elmo = str(runs["elmo"].run)
    for arguments, says in [
        ([str(tmp_path / "nowhere")], f"{tmp_path}/nowhere: no such folder"),
        ([str(tmp_path)], f"{tmp_path} is not a model folder: looked for "),
        ([elmo, "--per-sentence", "x.jsonl"], "--per-sentence x.jsonl: for one run or model, not for 2"),
        ([elmo, "--language", "de"], "--language de: for the files of --data"),
    ]:
        printed = CliRunner().invoke(main, ["evaluate", elmo, *arguments])
        (line,) = printed.stderr.splitlines()
        assert printed.exit_code == 2 and line.startswith(f"error: {says}")
    assert line != "", "each of them"


def test_the_verdict_of_a_run(made: Made) -> None:
    """After six steps a model knows less than word frequencies."""
    found = evaluate(made.run)
    assert found.unigram_loss is not None and found.losses.token_loss > 1.02 * found.unigram_loss
    assert found.verdict is not None and found.verdict.startswith("worse than word frequencies")
    assert f"verdict: {found.verdict}" in CliRunner().invoke(main, ["evaluate", str(made.run)]).stdout.splitlines()


def copy_of(run: Path, to: Path, **data: Any) -> Path:
    """A copy of a run with other options of `data` in its config, and without prepared text."""
    copy = Path(shutil.copytree(run, to, symlinks=True))
    values = RunFolder(run).read_config().model_dump(mode="json")
    (copy / "config.yaml").write_text(yaml.safe_dump(values | {"data": values["data"] | data}), encoding="utf-8")
    (copy / "prepared").write_text(f"{to.parent}/gone", encoding="utf-8")
    return copy


@pytest.mark.parametrize("gone", ["folder", "file", "another vocabulary"])
def test_a_run_whose_prepared_text_is_gone(
    gone: str, runs: dict[str, Made], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is evaluated on other text, without the unigram baseline, which the log says."""
    made = runs["elmo"]
    text = str(write_corpus(tmp_path / "other.txt", 40, seed=5))
    expected = evaluate(made.run, [text])
    assert expected.unigram_loss is not None
    run = copy_of(made.run, tmp_path / "run")
    if gone == "file":
        (run / "prepared").unlink()
    if gone == "another vocabulary":
        (run / "prepared").write_text(RunFolder(runs["bert"].run).prepared(), encoding="utf-8")
    with caplog.at_level(logging.WARNING, "pretrain"):
        found = evaluate(run, [text])
    assert f"{run}: no unigram baseline, since the run's prepared text is not there: " in caplog.text
    assert (found.losses, found.unigram_loss, found.text) == (expected.losses, None, expected.text)
    said = r"not prepared, or no longer there|missing: .*|holds another text than .* was trained on .*"
    with pytest.raises(DataError, match=rf"({said}); give other text with --data$"):
        evaluate(run)


def test_text_is_cut_as_the_models_language_is(
    runs: dict[str, Made], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An ELMo predicts every word and the end of every sentence, so that its predictions tell how text was cut."""
    text = "Sie wohnt in der Haupt- bzw. Bahnhofstr. Nr. 7.\n"
    (tmp_path / "german.txt").write_text(text, encoding="utf-8")
    files = [str(tmp_path / "german.txt")]
    made = runs["elmo"]

    def expected(language: str, lines: str = "paragraph") -> int:
        sentences = sentence_splitter(language)(text, lines)
        return len(made.tokenizer.encode(sentences).ids) + len(sentences)

    def found(target: Path, lines: str = "paragraph", language: str | None = None) -> int:
        return evaluate(target, files, lines=lines, language=language).losses.counts["forward"]

    assert expected("de") != expected("en"), "else this says nothing"
    german = copy_of(made.run, tmp_path / "german", language="de")
    assert (found(german), found(german, language="en"), found(made.run)) == tuple(map(expected, ("de", "en", "en")))

    model = export(german, tmp_path / "model")
    assert found(model) == expected("de")
    options = json.loads((model / "options.json").read_text(encoding="utf-8"))
    (model / "options.json").write_text(json.dumps(options | {"language": None}), encoding="utf-8")
    said = f"{model}: it does not say its language: paragraphs are cut into sentences as English (--language)"
    assert said not in caplog.messages
    assert found(model, "sentence") == expected("en", "sentence")
    assert said not in caplog.messages, "where lines are sentences, no language is asked for"
    assert found(model) == expected("en")
    assert said in caplog.messages
    by_command = evaluate_by_command(made.run, "--data", files[0], "--language", "deu")
    assert by_command["forward_predictions"] == expected("de")


def test_text_of_unknown_words_only(runs: dict[str, Made], tmp_path: Path) -> None:
    """There are pairs to tell, but no word to predict: it is refused rather than given a perplexity of 1."""
    text = tmp_path / "unknown.txt"
    text.write_text("\n\n".join(["".join("語" * 150 + " ") * 9 + "語.\n" + "語" * 150] * 9), encoding="utf-8")
    printed = CliRunner().invoke(main, ["evaluate", str(runs["bert"].run), "--data", str(text)])
    assert (printed.exit_code, printed.stdout) == (2, "")
    (line,) = [line for line in printed.stderr.splitlines() if line.startswith("error: ")]
    assert "has nothing to predict: none of its words is in the vocabulary" in line


@pytest.mark.parametrize(("which", "step"), [("best", None), ("newest", 6), ("2", 2)])
def test_the_vectors_of_a_checkpoint_and_of_its_export_are_the_same(
    made: Made, which: str, step: int | None, tmp_path: Path
) -> None:
    trained = read_trained(made.run, which)
    measured = {line["step"]: line["held_out_loss"] for line in metrics(made.config) if "held_out_loss" in line}
    assert trained.step == (step or min(measured, key=lambda s: measured[s]))
    folder = export(made.run, tmp_path / "deep" / "model", checkpoint=which, license="cc0-1.0")
    assert trained.folder.tokenizer is not None
    ours = Embedder(get_family(made.config.model.kind), trained.folder.model, trained.folder.tokenizer, "cpu")
    theirs = Embedder.load(folder, "cpu", start="zero")
    for text in ("The cat sat.", "Naïve words, unseen!"):
        a, b = ours.encode(text, layers="all"), theirs.encode(text, layers="all")
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        a, b = (
            Embedder.load(path, "cpu", checkpoint=c).encode(text) for path, c in ((made.run, which), (folder, "best"))
        )
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)

    read = get_family(made.config.model.kind).format.read(folder)
    assert read.language == made.config.data.language == "en"

    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: cc0-1.0" in card
    assert "corpus.txt" in card and f"{trained.step} of 6 steps" in card
    assert f"loss: {measured[trained.step]:.4f}" in card
    assert 'Embedder.load("model")' in card and "vocabulary_size" in card
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"], "nothing temporary is left"


def test_by_default_an_export_goes_into_the_run_folder(runs: dict[str, Made]) -> None:
    made = runs["bert"]
    printed = CliRunner().invoke(main, ["export", str(made.run)])
    assert printed.stdout == f"model folder: {made.run / 'export'}\n"
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForPreTraining.from_pretrained(made.run / "export")
    ours = read_trained(made.run, "best").folder.model
    padding = 56 * (ours.config.hidden_size + 1)  # of 200 words in 256 rows
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in ours.parameters()) - padding
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.run / "export")
    vectors = Embedder.load(made.run / "export", "cpu").encode("A cat sat.", output="pieces")
    with torch.no_grad():
        theirs = model.bert(**tokenizer("A cat sat.", return_tensors="pt")).last_hidden_state[0, 1:-1]
    np.testing.assert_allclose(vectors, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_no_secret_of_a_url_reaches_an_export(made: Made, tmp_path: Path) -> None:
    """User info and the values of queries may let in whoever reads them: of no source, nor of held-out text."""
    sources = [
        {"kind": "text", "files": ["https://ann:sesame@host.org/a.txt?X-Amz-Signature=feedbeef&sv=2020"]},
        {"kind": "hub", "dataset": "https://tok3n@host.org/set"},
    ]
    held_out = [{"kind": "json", "name": "h", "files": "s3://key1d:letmein@bucket/b.jsonl?sig=c0ffee"}]
    folder = "s3://key1d:letmein@bucket/prepared?sig=c0ffee"
    run = copy_of(made.run, tmp_path / "run", sources=sources, held_out=held_out, folder=folder)
    model = export(run, tmp_path / "model")
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "host.org/a.txt" in card and "bucket/b.jsonl" in card and "host.org/set" in card
    secrets = ("ann:", "sesame", "feedbeef", "2020", "tok3n", "key1d", "letmein", "c0ffee")
    assert not [secret for secret in secrets if secret in card]
    files = [path for path in model.rglob("*") if path.is_file()]
    assert [path.name for path in files if b"host.org" in path.read_bytes()] == ["README.md"]


def test_what_is_no_run_is_not_exported(runs: dict[str, Made], tmp_path: Path) -> None:
    run = copy_of(runs["bert"].run, tmp_path / "run")
    model = export(run, tmp_path / "model")
    (tmp_path / "empty").mkdir()
    shutil.rmtree(run / "checkpoints")
    for path, says in [
        (tmp_path / "nowhere", f"{tmp_path}/nowhere: no such folder"),
        (tmp_path / "empty", f"{tmp_path}/empty: not a run folder: no config.yaml"),
        (model, f"{model}: RUN must be a run folder: this is a model folder already"),
        (run, f"{run}/checkpoints: no checkpoint: nothing was saved yet"),
    ]:
        printed = CliRunner().invoke(main, ["export", str(path), "--out", str(tmp_path / "out")])
        assert (printed.exit_code, printed.stderr) == (2, f"error: {says}\n")
        assert not (tmp_path / "out").exists()


def test_token_embeddings_have_no_place_in_a_bert(runs: dict[str, Made], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--token-embeddings: transformers has no file for them \(model.kind bert\)"):
        export(runs["bert"].run, tmp_path / "model", token_embeddings=True)
    assert not list(tmp_path.iterdir())
