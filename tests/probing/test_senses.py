"""Senses: leaving one out against a loop, planted senses, ties, the file, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pretrain.cli import main
from pretrain.errors import ConfigError, DataError
from pretrain.models import get_family
from pretrain.probing.results import Outcome, Result
from pretrain.probing.senses import (
    Occurrence,
    Words,
    nearest_sense,
    occurrence_vectors,
    principal_plane,
    probe_occurrences,
    probe_senses,
    read_occurrences,
)
from pretrain.probing.tasks import Inputs
from tests.probing.small_models import small_subject

RIVER, MONEY = (
    ["muddy green {} of rivers", "grassy green {} of streams", "muddy steep {} of lakes"],
    [
        "national savings {} lends money",
        "private savings {} saves money",
        "national merchant {} lends coins",
    ],
)
BANK = [
    Occurrence(word, sense, sentence.format(word))
    for word in ("bank", "bar")
    for sense, sentences in (("side", RIVER), ("firm", MONEY))
    for sentence in sentences
]
SENTENCES = [occurrence.sentence for occurrence in BANK]


def test_leaving_one_out_is_a_loop_over_the_sentences() -> None:
    rng = np.random.default_rng(1)
    senses = [*"aabbbccab"]
    vectors = rng.normal(size=(9, 3)).astype(np.float32) + 2
    expected = []
    for left_out, sense in enumerate(senses):
        cosines = {}
        for name in set(senses):
            others = [vectors[i].astype(float) for i, other in enumerate(senses) if other == name and i != left_out]
            mean, vector = np.mean(others, axis=0), vectors[left_out].astype(float)
            cosines[name] = mean @ vector / np.sqrt(mean @ mean) / np.sqrt(vector @ vector)
        expected.append(all(cosines[sense] > cosine for name, cosine in cosines.items() if name != sense))
    assert 0 < sum(expected) < 9
    assert nearest_sense(vectors, senses).tolist() == expected


def test_equal_vectors_are_ties_and_ties_are_wrong() -> None:
    vector = np.random.default_rng(2).normal(size=(1, 50))
    noise = 1 + 1e-7 * np.random.default_rng(3).normal(size=(7, 50))  # what float32 leaves of equal vectors
    assert not nearest_sense((vector * noise).astype(np.float32), [*"aabbbcc"]).any()
    assert not nearest_sense(np.zeros((4, 3)), [*"aabb"]).any(), "vectors without a direction"


def test_separation_is_a_mean_over_pairs() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(12, 5)).astype(np.float32)
    words = Words(BANK, 1)
    expected = []
    for rows in words.rows.values():
        within, across = [], []
        for i in rows:
            for j in rows:
                cosine = vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
                if i != j:
                    (within if BANK[i].sense == BANK[j].sense else across).append(cosine)
        expected.append(np.mean(within) - np.mean(across))
    result = words.separation("m", 0, vectors)
    assert result.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert result.low < result.value < result.high


@pytest.mark.parametrize("kind", ["elmo", "bert"])
def test_context_tells_the_senses_apart_and_spelling_does_not(kind: str, tmp_path: Path) -> None:
    subject = small_subject(kind, SENTENCES)
    outcome = probe_occurrences([subject], BANK, tmp_path)
    found = overall(outcome, "nearest_sense")
    assert found["majority", 0].value == 0.5
    if kind == "elmo":  # its LSTMs carry the neighbours even with random weights; layer 0 does not know the context
        assert found["elmo", 1].value >= 0.75
        assert found["elmo", 0].value == found["untrained", 0].value == 0
        gain = overall(outcome, "gain_over_layer_0")["elmo", 2]
        assert gain.value == found["elmo", 2].value > 0 and gain.low > 0
    gains = overall(outcome, "gain_over_untrained")
    for layer in range(3):
        difference = found[kind, layer].value - found["untrained", layer].value
        assert gains[kind, layer].value == pytest.approx(difference)
        assert found["untrained", layer].of == kind
    assert outcome == probe_occurrences([small_subject(kind, SENTENCES)], BANK, tmp_path / "again")


def test_planted_senses_are_found_where_they_are() -> None:
    rng = np.random.default_rng(6)
    of = np.array([1 if o.sense == "side" else -1 for o in BANK])
    noise, signal = rng.normal(size=(12, 40)), rng.normal(size=40)
    planted = np.stack([noise + strength * np.outer(of, signal) for strength in (0, 1, 4)])
    other = np.stack([noise, noise, np.ones_like(noise)])  # the last is nothing but ties
    results = Words(BANK, 1).beside("m", planted, other)
    found = {(r.model, r.layer, r.metric): r for r in results if r.group is None}
    assert [found["m", layer, "nearest_sense"].value for layer in (1, 2)] == [1, 1]
    assert found["m", 0, "nearest_sense"] == replace(found["untrained", 0, "nearest_sense"], model="m", of=None)
    assert found["m", 0, "gain_over_untrained"].value == 0
    assert found["untrained", 1, "nearest_sense"].value == found["m", 0, "nearest_sense"].value < 1
    assert found["untrained", 2, "nearest_sense"].value == 0 and found["m", 2, "gain_over_untrained"].value == 1
    separations = [found["m", layer, "separation"].value for layer in range(3)]
    assert separations == sorted(separations) and separations[0] < 0.1 and separations[2] > 0.3
    gain = found["m", 2, "gain_over_layer_0"]
    assert gain.value == pytest.approx(1 - found["m", 0, "nearest_sense"].value) and gain.low > 0
    assert ("m", 0, "gain_over_layer_0") not in found


def overall(outcome: Outcome, metric: str) -> dict[tuple[str, object], Result]:
    return {(r.model, r.layer): r for r in outcome.results if r.metric == metric and r.group is None}


def test_macro_is_the_mean_over_words_and_micro_that_over_sentences() -> None:
    occurrences = [Occurrence("a", "xy"[i % 2], "a") for i in range(8)] + [
        Occurrence("b", "xy"[i % 2], "b") for i in range(4)
    ]
    right = np.array([True] * 8 + [False] * 4)
    micro, macro, a, b = Words(occurrences, 1).results("m", 1, right)
    assert (micro.value, macro.value, a.value, b.value) == (pytest.approx(2 / 3), 0.5, 1.0, 0.0)
    assert (micro.metric, macro.metric, a.group, b.group) == ("nearest_sense", "nearest_sense_macro", "a", "b")
    mixed = np.array([True, False] * 6)
    micro = Words(occurrences, 1).results("m", 1, mixed)[0]
    drawn = np.random.default_rng(0).choice([0.0, 1.0], size=(100_000, 12)).mean(axis=1)
    assert micro.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.09)
    assert micro.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.09)


def test_the_majority_is_the_share_of_the_most_frequent_sense(tmp_path: Path) -> None:
    occurrences = [Occurrence("a", "x", "a b")] * 3 + [Occurrence("a", "y", "a c")] * 2
    found = overall(probe_occurrences([], occurrences, tmp_path), "nearest_sense")
    assert found["majority", 0].value == 0.6


def test_the_word_is_found_as_the_model_cuts_it_and_whatever_its_case(tmp_path: Path) -> None:
    sentences = ["BANK's steep.", "We saw the bank, the bank."]
    subject = small_subject("bert", sentences)
    vectors = occurrence_vectors(subject, [Occurrence("bank", "s", text) for text in sentences], tmp_path)
    for number, (text, place) in enumerate(zip(sentences, [0, 3], strict=True)):
        expected = subject.embedder.encode(text, layers="all")
        assert subject.embedder.words(text)[place].lower() == "bank"
        assert np.allclose(vectors[:, number], expected[:, place], atol=1e-5)
    with pytest.raises(DataError, match=r"f\.tsv, line 7: 'banks' is not among .* bert cuts it: BANK ' s steep \.$"):
        occurrence_vectors(subject, [Occurrence("banks", "s", sentences[0], "f.tsv, line 7")], tmp_path)


def test_the_map_is_a_projection_on_principal_components() -> None:
    vectors = np.random.default_rng(5).normal(size=(9, 6))
    _, axes = np.linalg.eigh(np.cov(vectors.T))  # in ascending order
    ours, theirs = principal_plane(vectors), (vectors - vectors.mean(axis=0)) @ axes[:, [-1, -2]]
    assert np.allclose(ours * np.sign((ours * theirs).sum(axis=0)), theirs, atol=1e-8)
    assert (ours.max(axis=0) == np.abs(ours).max(axis=0)).all()
    assert principal_plane(np.ones((4, 1))).tolist() == [[0, 0]] * 4


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


GOOD = ["a\tx\ta b", "a\tx\ta c", "a\ty\td a", "a\ty\te a"]


def test_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "f.tsv", "# a comment", "", *GOOD)
    occurrences = read_occurrences(path)
    assert [tuple(o)[:3] for o in occurrences] == [tuple(line.split("\t")) for line in GOOD]
    assert occurrences[2].where == f"{path}, line 5"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a x a b"], "line 1: expected word<TAB>sense<TAB>sentence, 3 cells that are not blank; found 1: a x a b"),
        ([*GOOD, "a\t\ta"], "line 5: expected word<TAB>sense<TAB>sentence"),
        (GOOD[:3], ": 'a' has one sentence of the sense 'y': it takes two or more"),
        (GOOD[:2], ": 'a' has one sense, 'x': at least two are compared"),
        (["# nothing"], ": no line of word<TAB>sense<TAB>sentence"),
    ],
)
def test_a_wrong_file(lines: list[str], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "f.tsv", *lines)
    with pytest.raises(DataError) as raised:
        read_occurrences(path)
    assert str(raised.value).startswith(str(path)) and said in str(raised.value)


def test_options_without_a_use(tmp_path: Path) -> None:
    path = write(tmp_path / "f.tsv", *GOOD)
    for option in ("test", "static"):
        with pytest.raises(ConfigError, match=f"--{option} .*: not used with --task senses: "):
            probe_senses([], Inputs(path, **{option: path}))


def test_the_command(tmp_path: Path) -> None:
    subject = small_subject("bert", SENTENCES)
    model = tmp_path / "model"
    model.mkdir()
    get_family("bert").format.write(model, subject.folder)
    data = write(tmp_path / "f.tsv", *("\t".join(o[:3]) for o in BANK))
    arguments = ["probe", str(model), "--task", "senses", "--data", str(data), "--json", str(tmp_path / "out.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    maps = values["details"]["sense_maps"]
    assert [(m["model"], m["layer"], m["word"], len(m["points"])) for m in maps] == [
        (str(model), 2, "bank", 6),
        (str(model), 2, "bar", 6),
    ]
    top = [r for r in values["results"] if r["model"] == str(model) and r["layer"] == 2]
    assert {r["metric"] for r in top} == {
        *("nearest_sense", "nearest_sense_macro", "separation", "gain_over_layer_0", "gain_over_untrained"),
    }
    assert str(model) in result.stdout and "12 sentences of 2 words, 4 senses" in result.stdout
