"""Similarity: TF-IDF against scikit-learn, whitening, figures by hand, the folder's own pooling, and the files."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.embedding.embedder import Embedder
from pretrain.errors import ConfigError, DataError
from pretrain.models import get_family
from pretrain.probing.agreement import cosines, spearman
from pretrain.probing.results import Outcome
from pretrain.probing.similarity import Pair, Whitening, probe_similarity, read_pairs
from pretrain.probing.subjects import Subject, open_subject
from pretrain.probing.tasks import Inputs
from pretrain.probing.tf_idf import fit_tf_idf, text_words
from tests.probing.small_models import small_subject

WORDS = [*"abcdefghijklmnop"]


def pairs(number: int, seed: int) -> list[Pair]:
    """The second sentence shares a random number of words with the first: that is the score."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        first = rng.choice(WORDS, 6, replace=False)
        shared = int(rng.integers(0, 7))
        others = rng.choice([word for word in WORDS if word not in first], 6 - shared, replace=False)
        found.append(Pair(shared, " ".join(first), " ".join([*first[:shared], *others])))
    return found


def write(path: Path, some: list[Pair]) -> Path:
    path.write_text("".join(f"{p.score}\t{p.first}\t{p.second}\n" for p in some), encoding="utf-8")
    return path


def figure(outcome: Outcome, model: str, layer: int, metric: str) -> float:
    (found,) = [r.value for r in outcome.results if (r.model, r.layer, r.metric) == (model, layer, metric)]
    return found


def test_tf_idf_is_that_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["The cat, the mat!", "a dog on the mat", "Dogs don't sit", "3 cats", "the the a", "?!"]
    vectorizer = TfidfVectorizer(token_pattern=r"[^\W_]+").fit(texts)
    expected = vectorizer.transform(texts).toarray()
    ours = fit_tf_idf(texts)
    names = vectorizer.get_feature_names_out()
    for text, row in zip(texts, expected, strict=True):
        weights = ours.weights(text)
        assert np.allclose([weights.get(name, 0) for name in names], row, atol=1e-12)
        assert set(weights) <= {*names}
    for i, first in enumerate(texts):
        for j, second in enumerate(texts):
            assert ours.cosine(first, second) == pytest.approx(expected[i] @ expected[j], abs=1e-12)
    unknown, known = ours.weights("zebra the").values()
    assert unknown / known == pytest.approx((np.log(7) + 1) / (np.log(7 / 4) + 1)), "as rare as can be"


def test_words_of_text_keep_their_marks() -> None:
    assert text_words("Don't: NAÏVE, हिन्दी_3.14") == ["don", "t", "naïve", "हिन्दी", "3", "14"]


def test_whitened_vectors_are_uncorrelated_and_of_variance_one() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8)) + 5
    whitening = Whitening.fit(vectors)
    assert np.allclose(np.cov(whitening(vectors).T, bias=True), np.eye(8), atol=1e-8)
    assert np.allclose(whitening(vectors).mean(axis=0), 0, atol=1e-8)
    # U Λ^-1/2 of the paper, by singular values
    centred = vectors - vectors.mean(axis=0)
    _, scales, turned = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ turned.T / (scales / np.sqrt(200))
    assert np.allclose(np.abs(whitening(vectors)), np.abs(expected), atol=1e-8)
    assert np.allclose(Whitening.fit(vectors, 3)(vectors), whitening(vectors)[:, :3])
    assert Whitening.fit(vectors[:5]).size == 4, "five points lie in four dimensions"
    assert Whitening.fit(np.c_[vectors, vectors[:, :1]]).size == 8, "a direction without variance"
    assert Whitening.fit(np.ones((4, 3)))(np.ones((4, 3))).shape == (4, 0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "train.tsv", pairs(40, 1)), write(tmp_path / "test.tsv", pairs(60, 2))


@pytest.mark.parametrize("kind", ["elmo", "bert"])
def test_figures_are_those_of_a_calculation_by_hand(kind: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    train, test = files
    subject = small_subject(kind, [" ".join(WORDS)])
    outcome = probe_similarity([subject], Inputs(train, test, vectors=tmp_path / "vectors"))
    gold = [pair.score for pair in pairs(60, 2)]
    texts = [pair[side] for pair in (*pairs(40, 1), *pairs(60, 2)) for side in (1, 2)]
    encoded = subject.embedder.encode(texts, layers="all")
    for layer in range(3):
        sentences = np.stack([vectors[layer].mean(axis=0) for vectors in encoded])
        whitening = Whitening.fit(sentences[:80])
        for metric, vectors in (("spearman", sentences[80:]), ("spearman_whitened", whitening(sentences[80:]))):
            expected = spearmanr(cosines(vectors[::2], vectors[1::2]), gold).statistic
            # vectors differ by rounding, and with them a rank or two
            assert figure(outcome, kind, layer, metric) == pytest.approx(expected, abs=5e-3)
    assert figure(outcome, kind, 0, "spearman") > 0.5, "sums of words find the words that are shared"
    weights = fit_tf_idf([pair[side] for pair in pairs(40, 1) for side in (1, 2)])
    counted = np.array([weights.cosine(first, second) for _, first, second in pairs(60, 2)])
    assert figure(outcome, "static", 0, "spearman") == pytest.approx(spearmanr(counted, gold).statistic, abs=1e-9)
    assert figure(outcome, "static", 0, "spearman") > 0.9
    assert {r.of for r in outcome.results if r.model == "untrained"} == {kind}
    assert all(r.low < r.value < r.high for r in outcome.results)
    assert outcome == probe_similarity([subject], Inputs(train, test, vectors=tmp_path / "again"))


def test_the_top_layer_also_as_the_folder_says(files: tuple[Path, Path], tmp_path: Path) -> None:
    subject = small_subject("bert", [" ".join(WORDS)])
    model = tmp_path / "model"
    model.mkdir()
    get_family("bert").format.write(model, subject.folder)
    opened = open_subject(model)
    inputs = Inputs(*files, vectors=tmp_path / "vectors")
    outcome = probe_similarity([Subject("m", opened.folder, opened.sentence_modules)], inputs)
    loaded = Embedder.load(model, device="cpu")
    first, second = (np.stack(loaded.encode([p[side] for p in pairs(60, 2)], "sentence")) for side in (1, 2))
    expected = spearman(cosines(first, second), np.array([p.score for p in pairs(60, 2)]))
    assert figure(outcome, "m", 2, "spearman_pooled") == pytest.approx(expected, abs=2e-3)
    assert figure(outcome, "m", 2, "spearman_pooled") != figure(outcome, "m", 2, "spearman"), "special tokens count"


def test_a_folder_whose_modules_are_not_read_says_so(files: tuple[Path, Path], tmp_path: Path) -> None:
    subject = small_subject("bert", [" ".join(WORDS)])
    model = tmp_path / "model"
    model.mkdir()
    get_family("bert").format.write(model, subject.folder)
    (model / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""}, {"type": "other.Thing", "path": "1"}]'
    )
    outcome = probe_similarity([open_subject(model)], Inputs(*files, vectors=tmp_path / "vectors"))
    assert any(f"{model}: no spearman_pooled: " in note and "other.Thing" in note for note in outcome.notes)
    assert "spearman_pooled" not in {result.metric for result in outcome.results}


def test_the_files(tmp_path: Path) -> None:
    expected = [Pair(2.5, "a b", 'c "d'), Pair(5.0, "e", "f")]
    for text in (
        '2.5\ta b\tc "d\n5\te\tf\n',
        'sentence2\tScore\tnumber\tsentence1\nc "d\t2.5\t1\ta b\nf\t5\t2\te\n',
        'news\tx\t2012\t1\t2.5\ta b\tc "d\nnews\tx\t2012\t2\t5.000\te\tf\tlicence\tlicence\n',
    ):
        path = tmp_path / "f.tsv"
        path.write_text(text, encoding="utf-8")
        assert read_pairs(path) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "1\ta\n",
            "line 1: expected 3 cells, those of score, sentence1, sentence2 not blank, separated by tabs (or a ",
        ),
        ("1\ta\tb\n\n1\ta\t\n", "line 3: expected 3 cells, those of score"),
        ("1\ta\tb\n1\ta\tb\tc\n", "line 2: expected 3 cells, those of score"),
        ("high\ta\tb\n", "line 1: expected a score, a number, found 'high'"),
        ("nan\ta\tb\n", "line 1: expected a score, a number, found 'nan'"),
        ("score\tsentence1\tother\n", "line 1: names columns, but not sentence2: 3: score<TAB>sentence1<TAB>other"),
        ("score\tsentence1\tsentence2\n", ": no line of score<TAB>sentence1<TAB>sentence2"),
        ("1\ta\tb\n" * 9, ": all 2 pairs to test on have the score 1.0"),
    ],
)
def test_a_wrong_file(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "f.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        probe_similarity([], Inputs(path))
    assert str(raised.value).startswith(str(path)) and said in str(raised.value)


def test_an_option_without_a_use(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"--static .*: not used with --task similarity: it is TF-IDF here"):
        probe_similarity([], Inputs(files[0], static=files[0]))
