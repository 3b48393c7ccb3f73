"""`pretrain probe --task minimal-pairs`: accuracies from scores, ties, groups, floors, files; what is refused."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from pretrain.cli import main
from pretrain.config.models import BertConfig, ElmoConfig, WordPieceConfig
from pretrain.config.objectives import BertObjectiveConfig, ElmoObjectiveConfig
from pretrain.models import get_family
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import learn_tokenizer
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer
from pretrain.models.family import ModelFolder
from pretrain.probing import minimal_pairs
from pretrain.probing.blimp import OVERALL, PHENOMENA, SYSTEMS, published_accuracies
from pretrain.probing.minimal_pairs import macro_interval
from pretrain.probing.pairs import Pair, draw_pairs, read_pairs

WORDS = ["the", "cat", "cats", "sleeps", "sleep", "dog", "dogs", "here", "there", "Often"]


def write_model(kind: str, folder: Path) -> Path:
    """A model of random weights that are large enough for its answers to differ."""
    torch.manual_seed(0)
    built: ModelFolder
    if kind == "elmo":
        elmo = ElmoConfig(
            character_embedding_size=3, filters=((1, 4), (2, 4)), num_highways=1, cell_size=7, projection_size=4
        )
        words = WordTokenizer((*SPECIAL_WORDS, *WORDS), lowercase=True)
        built = ModelFolder(ElmoModel(elmo, words.vocabulary_size), words, elmo, ElmoObjectiveConfig(softmax="full"))
    else:
        bert = BertConfig(hidden_size=16, num_layers=3, num_heads=2, intermediate_size=32, max_positions=16)
        text = [" ".join(WORDS)] * 3
        pieces = learn_tokenizer(lambda: text, WordPieceConfig(vocabulary_size=101, lowercase=True))
        objective = BertObjectiveConfig(max_sequence_length=16)
        built = ModelFolder(BertModel(bert, objective, pieces.vocabulary_size), pieces, bert, objective)
    for parameter in built.model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    get_family(kind).format.write(folder, built)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: write_model(kind, root / kind) for kind in ("elmo", "bert")}


def make_records(count: int) -> list[dict[str, Any]]:
    """Pairs of three paradigms, two of one phenomenon; of each ten one is the same but for its capitals."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        good, bad = (" ".join(rng.choice(WORDS, rng.integers(2, 6))) for _ in range(2))
        records.append(
            {
                "sentence_good": good,
                "sentence_bad": good.capitalize() if number % 10 == 0 else bad,
                "UID": f"paradigm_{number % 3}",
                "linguistics_term": "agreement" if number % 3 else "islands",
                "pairID": str(number),
            }
        )
    return records


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["probe", "--task", "minimal-pairs", *map(str, arguments)])


def results(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["results"]
    return found


def one(found: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (result,) = [r for r in found if all(r.get(name) == value for name, value in wanted.items())]
    return result


METRICS = {
    "elmo": {"accuracy": "bilm", "accuracy_forward": "forward", "accuracy_backward": "backward"},
    "bert": {"accuracy": "pll_word_l2r", "accuracy_pll": "pll"},
}


def test_accuracies_are_those_of_the_scores(models: dict[str, Path], tmp_path: Path) -> None:
    records = make_records(90)
    data, scores, figures = (tmp_path / name for name in ("pairs.jsonl", "new/scores.jsonl", "figures.json"))
    write_records(data, records)
    done = run(*models.values(), "--data", data, "--scores", scores, "--json", figures)
    assert done.exit_code == 0, done.output
    assert [path.name for path in scores.parent.iterdir()] == [scores.name], "nothing temporary is left"
    lines = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    fields = ("UID", "pairID", "sentence_good", "sentence_bad")
    assert [[line[f] for f in fields] for line in lines] == [[record[f] for f in fields] for record in records]
    found = results(figures)
    for kind, model in models.items():
        for metric, score in METRICS[kind].items():
            both = np.array([line["scores"][str(model)][score] for line in lines])
            right, ties = both[:, 0] > both[:, 1], both[:, 0] == both[:, 1]
            assert np.flatnonzero(ties).tolist() == list(range(0, 90, 10)), "capitals, which the model does not see"
            means = [right[start::3].mean() for start in range(3)]
            shared = {"model": str(model), "metric": metric, "layer": 2 if kind == "elmo" else 3}
            assert one(found, **shared, group=None)["value"] == pytest.approx(np.mean(means))
            assert one(found, **shared, group=None)["ties"] == 9
            assert one(found, **shared, group="agreement")["value"] == pytest.approx(np.mean(means[1:]))
            assert one(found, **shared, group="islands")["value"] == pytest.approx(means[0])
            for number in range(3):
                of_paradigm = one(found, **shared, group=f"paradigm_{number}")
                assert of_paradigm["value"] == pytest.approx(means[number]) and of_paradigm["ties"] == 3
                assert of_paradigm["low"] < of_paradigm["value"] < of_paradigm["high"]
        untrained = one(found, model="untrained", of=str(model), metric="accuracy", group=None)
        assert untrained["value"] != one(found, model=str(model), metric="accuracy", group=None)["value"]
    assert one(found, model="majority")["value"] == one(found, model="majority")["low"] == 0.5
    assert not [result for result in found if result["model"] == "published"]
    assert f"{models['bert']}: 9 ties; in 9 pairs both sentences are the same to the model" in done.stdout


def test_forward_and_backward_add_up(models: dict[str, Path], tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    assert (
        run(models["elmo"], "--data", write_records(tmp_path / "d", make_records(12)), "--scores", scores).exit_code
        == 0
    )
    for line in scores.read_text(encoding="utf-8").splitlines():
        of = {name: np.array(both) for name, both in json.loads(line)["scores"][str(models["elmo"])].items()}
        np.testing.assert_allclose(of["bilm"], of["forward"] + of["backward"])
        assert (of["bilm"] < 0).all()


def test_the_same_in_another_order_and_in_other_batches(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_records(60)
    found = []
    for number, order in enumerate((records, records[::-1])):
        data = write_records(tmp_path / f"pairs-{number}.jsonl", order)
        figures = tmp_path / f"figures-{number}.json"
        assert run(*models.values(), "--data", data, "--json", figures).exit_code == 0
        found.append(sorted(json.dumps(result) for result in results(figures)))
        monkeypatch.setattr(minimal_pairs, "SENTENCES", 7)
    assert found[0] == found[1]


def test_unknown_words(models: dict[str, Path], tmp_path: Path) -> None:
    records = [
        {"sentence_good": "the ωx sleeps", "sentence_bad": "the ωy sleeps", "UID": "nouns"},
        {"sentence_good": "the cat ωx", "sentence_bad": "the cats ωx", "UID": "nouns"},
        {"sentence_good": "the cat sleeps", "sentence_bad": "the cat sleep", "UID": "verbs"},
    ]
    figures = tmp_path / "figures.json"
    done = run(*models.values(), "--data", write_records(tmp_path / "d", records), "--json", figures)
    unknown = json.loads(figures.read_text(encoding="utf-8"))["details"]["unknown_words"]
    verbs = {"pairs": 1, "unknown": 0, "only_unknown": 0, "same": 0}
    nouns = {"pairs": 2, "unknown": 2, "only_unknown": 1}
    assert unknown[str(models["elmo"])] == {"nouns": nouns | {"same": 0}, "verbs": verbs}, "it reads their characters"
    assert unknown[str(models["bert"])] == {"nouns": nouns | {"same": 1}, "verbs": verbs}
    for model in models.values():
        said = f"{model}: 2 pairs have unknown words, 1 differ in nothing else, which says nothing of grammar; most in"
        assert f"{said} nouns 1 of 2" in done.stdout
    assert one(results(figures), model=str(models["bert"]), metric="accuracy", group="nouns")["ties"] == 1


def test_pairs_without_names(models: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl.gz"
    with gzip.open(data, "wt", encoding="utf-8") as file:
        file.write('{"sentence_good": "the cat", "sentence_bad": "cat the"}\n\n')
    figures, scores = tmp_path / "figures.json", tmp_path / "scores.jsonl"
    done = run(models["elmo"], "--data", data, "--json", figures, "--scores", scores)
    assert done.exit_code == 0 and "1 pairs, 1 paradigms" in done.stdout
    assert all("group" not in result for result in results(figures))
    assert list(json.loads(scores.read_text(encoding="utf-8"))) == ["sentence_good", "sentence_bad", "scores"]


def test_a_part_of_each_paradigm(tmp_path: Path) -> None:
    pairs = read_pairs(write_records(tmp_path / "pairs.jsonl", make_records(60)))
    drawn = draw_pairs(pairs, 5, seed=1)
    assert sorted(pair.paradigm or "" for pair in drawn) == sorted([f"paradigm_{n}" for n in range(3)] * 5)
    assert drawn == [pair for pair in pairs if pair in drawn], "in the order of the file"
    assert drawn == draw_pairs(pairs, 5, seed=1) != draw_pairs(pairs, 5, seed=2)
    assert set(map(str, drawn)) <= set(map(str, draw_pairs(pairs, 9, seed=1))), "a larger part holds a smaller one"
    assert draw_pairs(pairs, 1000, seed=1) == pairs


def test_progress(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimal_pairs, "SENTENCES", 10)
    done = run(models["elmo"], "--data", write_records(tmp_path / "pairs.jsonl", make_records(40)), "--pairs", 4)
    first, last, *_ = done.stderr.splitlines()
    assert re.fullmatch(rf"{models['elmo']}: 10 of (\d+) sentences, \d+ s to go", first)
    assert re.fullmatch(rf"{models['elmo']}: (\d+) sentences in \d+ s", last)
    assert first.split()[3] == last.split()[1], "sentences, each counted once"
    assert "\n12 pairs of 40, 3 paradigms" in done.stdout


LINES = {
    '{"sentence_good": "a"': "not JSON, of which each line must be an object (Expecting ',' d",
    "[1, 2]": "'[1, 2]' is no object with sentence_good and sentence_bad",
    '{"sentence_good": "a"}': "no sentence_bad",
    '{"sentence_good": "a", "sentence_bad": 3}': "sentence_bad is 3, not a sentence",
    '{"sentence_good": " ", "sentence_bad": "a"}': 'sentence_good is " ", not a sentence',
    '{"sentence_good": "a", "sentence_bad": "b", "UID": 7}': "UID is 7, not a name",
}


@pytest.mark.parametrize("line", LINES)
def test_lines_that_are_no_pairs(line: str, models: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"sentence_good": "a", "sentence_bad": "b"}\n\n' + line + "\n", encoding="utf-8")
    done = run(models["elmo"], "--data", data)
    assert done.exit_code == 2 and done.stderr.startswith(f"error: {data}, line 3: {LINES[line]}")
    assert done.stderr.count("\n") == 1


def test_what_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    data = write_records(tmp_path / "pairs.jsonl", make_records(3))
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    long = write_records(tmp_path / "long", [{"sentence_good": "cat", "sentence_bad": "cat " * 20}])
    refused = {
        ("--data", tmp_path / "empty.jsonl"): f"{tmp_path}/empty.jsonl: no pair in it",
        ("--data", data, "--scores", tmp_path): f"--scores {tmp_path}: a folder: name a file to write",
        ("--data", data, "--scores", data): f"--scores {data}: the file of --data: name a file to write",
        ("--data", data, "--test", data): f"--test {data}: --task minimal-pairs has no use for it",
        ("--data", data, "--vectors", tmp_path): f"--vectors {tmp_path}: --task minimal-pairs has no use for it",
        ("--data", data, "--task", "pos", "--pairs", 3): "--pairs 3: --task pos has no use for it",
        ("--data", data, "--task", "pos", "--scores", "s"): "--scores s: --task pos has no use for it",
        ("--data", long): f"{long}, line 1: sentence_bad: {models['bert']}: 22 pieces, special tokens included: the "
        "model reads 16 at most",
    }
    for arguments, line in refused.items():
        done = run(models["bert"], *arguments)
        assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, f"error: {line}")


def test_models_that_cannot_predict(models: dict[str, Path], tmp_path: Path) -> None:
    data = write_records(tmp_path / "pairs.jsonl", make_records(3))
    elmo, bert = tmp_path / "elmo", tmp_path / "bert"
    for folder in (elmo, bert):
        folder.mkdir()
    for path in models["elmo"].iterdir():
        if "softmax" not in path.name:
            (elmo / path.name).write_bytes(path.read_bytes())
    for path in models["bert"].iterdir():
        if path.is_file():
            (bert / path.name).write_bytes(path.read_bytes())
    tensors = load_file(models["bert"] / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if name.startswith("bert.")}, bert / "model.safetensors")
    for folder, reason in ((elmo, "the model folder holds no *softmax_weights.hdf5"), (bert, "there is no cls.predi")):
        done = run(folder, "--data", data)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"error: {folder}: sentences cannot be scored: ") and reason in done.stderr


def test_weights_that_are_not_finite(models: dict[str, Path], tmp_path: Path) -> None:
    family = get_family("elmo")
    folder = family.format.read(models["elmo"])
    assert isinstance(folder.model, ElmoModel) and folder.model.softmax is not None
    folder.model.softmax.bias.data[4] = torch.nan
    family.format.write(tmp_path / "broken", folder)
    done = run(tmp_path / "broken", "--data", write_records(tmp_path / "pairs.jsonl", make_records(3)))
    assert done.exit_code == 2 and "sentences are NaN or infinite" in done.stderr


def test_the_interval_is_that_of_drawing_pairs() -> None:
    """Against a bootstrap that draws pairs one by one."""
    rng = np.random.default_rng(0)
    answers = [rng.random(size) < share for size, share in ((40, 0.9), (100, 0.5), (15, 0.3))]
    right, pairs = np.array([a.sum() for a in answers]), np.array([len(a) for a in answers])
    value, low, high = macro_interval(right, pairs, seed=1)
    drawn = [np.mean([rng.choice(a, len(a)).mean() for a in answers]) for _ in range(4000)]
    assert value == pytest.approx(np.mean([a.mean() for a in answers]))
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert high - low > 0.1


def test_published_figures_are_those_of_the_data(shared_data: Callable[[str], Path]) -> None:
    lines = shared_data("blimp/models_summary.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["UID"] != "overall"]
    keys = dict(zip(SYSTEMS, ("ngram", "lstm", "txl", "gpt2"), strict=True))
    published = {(system, group): value for system, group, value in published_accuracies([r["UID"] for r in records])}
    for system, key in keys.items():
        assert published.pop((system, None)) == pytest.approx(np.mean([r[key] for r in records]), abs=5.1e-5)
        for name in PHENOMENA:
            mean = np.mean([r[key] for r in records if r["linguistics_term"] == name])
            assert published.pop((system, name)) == pytest.approx(mean, abs=5.1e-5)
    assert set(published) == {(system, None) for system in OVERALL if system not in SYSTEMS}


def test_the_pairs_of_blimp(shared_data: Callable[[str], Path]) -> None:
    pairs = read_pairs(shared_data("blimp/blimp.jsonl.gz"))
    assert len(pairs) == 67_000
    uids = {pair.paradigm for pair in pairs}
    assert uids == {uid for phenomenon in PHENOMENA.values() for uid in phenomenon.paradigms}
    by_phenomenon = {name: {p.paradigm for p in pairs if p.phenomenon == name} for name in PHENOMENA}
    assert by_phenomenon == {name: set(phenomenon.paradigms) for name, phenomenon in PHENOMENA.items()}


def test_published_figures_are_given_for_the_same_paradigms_only() -> None:
    some = [*PHENOMENA["ellipsis"].paradigms, PHENOMENA["quantifiers"].paradigms[0], "mine"]
    assert {(system, group) for system, group, _ in published_accuracies(some)} == {(s, "ellipsis") for s in SYSTEMS}
    every = [uid for phenomenon in PHENOMENA.values() for uid in phenomenon.paradigms]
    assert None in {group for _, group, _ in published_accuracies(every)}
    assert None not in {group for _, group, _ in published_accuracies([*every, "mine"])}


def test_phenomena_are_those_of_the_paper(tmp_path: Path) -> None:
    record = {"sentence_good": "a", "sentence_bad": "b", "linguistics_term": "s-selection"}
    named = [record | {"UID": "animate_subject_trans"}, record | {"UID": "mine"}, record]
    pairs: list[Pair] = read_pairs(write_records(tmp_path / "pairs.jsonl", named))
    assert [pair.phenomenon for pair in pairs] == ["argument_structure", "s-selection", "s-selection"]
