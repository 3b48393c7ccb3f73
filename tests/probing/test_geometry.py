"""Geometry: each measure against a loop over its formula, and what must hold of a layer without context."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import ConfigError, DataError
from pretrain.probing import geometry
from pretrain.probing.geometry import (
    anisotropy,
    draw_sample,
    intra_sentence_similarity,
    maximum_explainable_variance,
    measure,
    probe_geometry,
    read_sentences,
    self_similarity,
)
from pretrain.probing.results import Outcome
from pretrain.probing.tasks import Inputs
from pretrain.probing.treebanks import read_words
from pretrain.probing.vectors import word_vectors
from tests.probing.small_models import small_subject

RNG = np.random.default_rng(1)
VECTORS = RNG.normal(size=(14, 5)) + 0.5
SENTENCE_OF = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 4, 4])


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt(one @ one) / np.sqrt(other @ other))


def units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_anisotropy_is_the_mean_over_all_pairs_of_different_sentences() -> None:
    sums = np.stack([units(VECTORS)[sentence == SENTENCE_OF].sum(axis=0) for sentence in range(5)])
    counts = np.bincount(SENTENCE_OF).astype(float)
    draws = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 2, 0], [5, 0, 0, 0, 0]], float)
    found = anisotropy(sums, counts, draws)
    for sample, value in zip(draws[:2], found[:2], strict=True):
        drawn = [(s, i) for s in range(5) for _ in range(int(sample[s])) for i in np.flatnonzero(s == SENTENCE_OF)]
        cosines = [cosine(VECTORS[i], VECTORS[j]) for s, i in drawn for t, j in drawn if s != t]
        assert value == pytest.approx(np.mean(cosines))
    assert np.isnan(found[2]), "one sentence alone has no pair"


def test_self_similarity_is_the_mean_over_all_pairs_of_occurrences() -> None:
    expected = np.mean([cosine(VECTORS[i], VECTORS[j]) for i in range(6) for j in range(6) if i != j])
    assert self_similarity(VECTORS[:6]) == pytest.approx(expected)


def test_intra_sentence_similarity_is_the_mean_cosine_with_the_sentences_mean() -> None:
    found = intra_sentence_similarity(VECTORS, SENTENCE_OF)
    for sentence in range(5):
        words = VECTORS[sentence == SENTENCE_OF]
        assert found[sentence] == pytest.approx(np.mean([cosine(word, words.mean(axis=0)) for word in words]))
    assert found[3] == pytest.approx(1)


def test_maximum_explainable_variance_is_the_papers_and_not_centred() -> None:
    singular = np.linalg.svd(VECTORS[:6], compute_uv=False)
    assert maximum_explainable_variance(VECTORS[:6]) == pytest.approx(singular[0] ** 2 / (singular**2).sum())
    assert maximum_explainable_variance(np.tile(VECTORS[:1], (6, 1))) == pytest.approx(1)


TEXT = [f"{a} cat {b} the mat {c}" for a in ("a", "one") for b in ("on", "saw", "by") for c in ("now", "then", "!")]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def figures(outcome: Outcome) -> dict[tuple[str, object, str], float]:
    return {(r.model, r.layer, r.metric): r.value for r in outcome.results}


@pytest.mark.parametrize("kind", ["elmo", "bert"])
def test_all_figures_are_those_of_the_formulas(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "f.txt", [*TEXT, "cat", TEXT[0]])
    subject = small_subject(kind, TEXT)
    outcome = probe_geometry([subject], Inputs(path, vectors=tmp_path / "vectors"))
    found = figures(outcome)
    sentences = [subject.embedder.words(text) for text in [*TEXT, "cat"]]
    words = [word for sentence in sentences for word in sentence]
    of = np.repeat(np.arange(len(sentences)), [len(sentence) for sentence in sentences])
    repeated = [word for word in dict.fromkeys(words) if words.count(word) >= 5]
    assert {"a", "cat", "the", "mat", "now", "saw"} <= {*repeated}
    for layer in range(3):
        encoded = subject.embedder.encode(sentences, layers=layer, is_split_into_words=True)
        vectors = np.concatenate(encoded).astype(np.float64)
        cosines = units(vectors) @ units(vectors).T
        baseline = cosines[of[:, None] != of[None]].mean()
        own, explained = [], []
        for word in repeated:
            rows = np.array([i for i, other in enumerate(words) if other == word])
            own.append(cosines[np.ix_(rows, rows)][~np.eye(len(rows), dtype=bool)].mean())
            singular = np.linalg.svd(vectors[rows], compute_uv=False)
            explained.append(singular[0] ** 2 / (singular**2).sum())
        within = [
            np.mean([cosine(vector, vectors[of == sentence].mean(axis=0)) for vector in vectors[of == sentence]])
            for sentence in range(len(TEXT))  # the one of one word is left out
        ]
        expected = {
            "anisotropy": baseline,
            "self_similarity": np.mean(own),
            "self_similarity_adjusted": np.mean(own) - baseline,
            "intra_sentence_similarity": np.mean(within),
            "intra_sentence_similarity_adjusted": np.mean(within) - baseline,
            "maximum_explainable_variance": np.mean(explained),
        }
        for metric, value in expected.items():
            assert found[kind, layer, metric] == pytest.approx(value, abs=1e-6), metric
        assert ("untrained", layer, "anisotropy") in found
        adjusted = found[kind, layer, "maximum_explainable_variance_adjusted"]
        assert adjusted < found[kind, layer, "maximum_explainable_variance"] - 0.1
    if kind == "elmo":  # layer 0 sees the word alone
        for model in ("elmo", "untrained"):
            assert found[model, 0, "self_similarity"] == pytest.approx(1, abs=1e-6)
            assert found[model, 0, "maximum_explainable_variance"] == pytest.approx(1, abs=1e-6)
        assert found["elmo", 1, "self_similarity"] < 0.99
    assert all(r.low <= r.value + 1e-9 and r.value - 1e-9 <= r.high for r in outcome.results)
    assert outcome.notes[0] == f"{kind}: 19 of 19 different sentences, 109 of 109 words"
    assert outcome == probe_geometry([subject], Inputs(path, vectors=tmp_path / "again"))


def test_what_is_too_much_is_drawn_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_WORDS": 80, "MAX_CONTEXTS": 6, "MAX_TYPES": 3}.items():
        monkeypatch.setattr(geometry, name, value)
    path, subject = write(tmp_path / "f.txt", TEXT), small_subject("elmo", TEXT)
    sentences, line = read_sentences(path, subject, 1)
    assert len(sentences) == 13 and line == "13 of 18 different sentences, 78 of 108 words"
    assert read_sentences(path, subject, 2)[0] != sentences
    sample = draw_sample(sentences, word_vectors(subject, sentences, tmp_path), Inputs(path))
    assert [len(rows) for rows in sample.occurrences] == [len(rows) for rows in sample.random]
    words = [word for sentence in sentences for word in sentence]
    assert len(sample.occurrences) == 3
    for rows in sample.occurrences:
        assert len({words[row] for row in rows}) == 1
        assert 5 <= len(rows) <= 6 and len({int(of) for of in sample.sentence_of[rows]}) == len(rows)


def test_the_share_by_chance_is_that_of_as_many_random_words(tmp_path: Path) -> None:
    path, subject = write(tmp_path / "f.txt", TEXT), small_subject("elmo", TEXT)
    sentences, _ = read_sentences(path, subject, 1)
    kept = word_vectors(subject, sentences, tmp_path)
    sample = draw_sample(sentences, kept, Inputs(path))
    vectors = RNG.normal(size=kept.layers.shape[1:])  # random vectors: words are like any others
    value, samples = measure(vectors, sample, 1)["maximum_explainable_variance_adjusted"]
    assert abs(value) < 0.05
    assert np.quantile(samples, 0.025) < value < np.quantile(samples, 0.975)


def test_words_without_a_piece_are_left_out_and_counted(tmp_path: Path) -> None:
    subject = small_subject("bert", TEXT)
    rows = "".join(
        f"{n}\t{w}{chr(9)}_{chr(9)}_{chr(9)}_{chr(9)}_{chr(9)}_{chr(9)}_{chr(9)}_{chr(9)}_\n"
        for n, w in ((1, "cat"), (2, "\u200b"))
    )
    text = "".join(f"{rows}3\t{n}\t_\t_\t_\t_\t_\t_\t_\t_\n\n" for n in "345678")
    path = tmp_path / "f.conllu"
    path.write_text(text, encoding="utf-8")
    outcome = probe_geometry([subject], Inputs(path, vectors=tmp_path))
    assert "bert: 6 words without a piece left out" in outcome.notes
    assert all(np.isfinite([r.value, r.low, r.high]).all() for r in outcome.results)


def test_conllu_words(tmp_path: Path) -> None:
    blank = "\t_" * 8
    path = tmp_path / "f.conllu"
    path.write_text(
        f"# text = x\n1-2\tdon't{blank}\n1\tdo{blank}\n2\tn't{blank}\n2.1\tgo{blank}\n\n1\ta{blank}\n", encoding="utf-8"
    )
    assert read_words(path) == [["do", "n't"], ["a"]]
    path.write_text("# x\n1 cat _\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"f\.conllu, line 2: not CoNLL-U, whose lines have 10 columns"):
        read_words(path)


def test_too_little_text_and_options_without_a_use(tmp_path: Path) -> None:
    subject = small_subject("elmo", TEXT)
    path = write(tmp_path / "f.txt", ["a cat", "a cat"])
    with pytest.raises(DataError, match=r"f\.txt: 1 different sentences: at least two are compared"):
        probe_geometry([subject], Inputs(path, vectors=tmp_path))
    path = write(tmp_path / "g.txt", ["a cat", "a dog"])
    with pytest.raises(DataError, match=r"g\.txt: no word stands in 5 different sentences or more"):
        probe_geometry([subject], Inputs(path, vectors=tmp_path))
    for option in ("test", "static"):
        with pytest.raises(ConfigError, match=rf"--{option} .*: not used with --task geometry: "):
            probe_geometry([subject], Inputs(path, **{option: path}))
