"""Word in context: the files, a calculation by hand, planted contexts, and where the threshold comes from."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import ConfigError, DataError
from pretrain.probing.agreement import best_threshold, cosines
from pretrain.probing.results import Outcome, Result
from pretrain.probing.tasks import Inputs
from pretrain.probing.word_in_context import overlap, pair_cosines, probe_wic, read_pairs
from tests.probing.small_models import small_subject

SIDES = ["muddy green {} of rivers", "grassy green {} of streams", "muddy steep {} of lakes", "grassy steep {} of seas"]
FIRMS = ["national savings {} lends money", "private savings {} saves money", "national big {} lends coins"]


def lines() -> list[str]:
    """Pairs of sentences about two words; the meaning is the same where the context is alike."""
    found = []
    for word in ("bank", "bar"):
        sentences = [(text.format(word), sense) for sense, texts in enumerate((SIDES, FIRMS)) for text in texts]
        for number, (first, one) in enumerate(sentences):
            for second, other in sentences[number + 1 :]:
                places = f"{first.split().index(word)}-{second.split().index(word)}"
                found.append(f"{'FT'[one == other]}\t{word}\tN\t{places}\t{first}\t{second}")
    return found


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def figures(outcome: Outcome, metric: str) -> dict[tuple[str, object], Result]:
    return {(r.model, r.layer): r for r in outcome.results if r.metric == metric}


def test_both_forms_of_the_data(tmp_path: Path) -> None:
    one = write(tmp_path / "one.tsv", *lines())
    two = write(tmp_path / "two.data.txt", *(line.partition("\t")[2] for line in lines()))
    write(tmp_path / "two.gold.txt", *(line[0] for line in lines()))
    assert read_pairs(one) == read_pairs(two)
    pair = read_pairs(one)[0]
    assert pair.first[pair.places[0]] == pair.second[pair.places[1]] == "bank" and pair.same


def test_figures_are_those_of_a_calculation_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path / "f.tsv", *lines())
    test = write(tmp_path / "test.tsv", *lines()[5:15])
    subject = small_subject("elmo", [text.format("bank") for text in (*SIDES, *FIRMS)])
    found = probe_wic([subject], Inputs(path, test, vectors=tmp_path / "vectors"))
    pairs = read_pairs(path)
    for layer in range(3):
        scores = []
        for pair in pairs:
            one, other = subject.embedder.encode([pair.first, pair.second], is_split_into_words=True, layers=layer)
            scores.append(cosines(one[[pair.places[0]]], other[[pair.places[1]]])[0])
        every, same = np.array(scores), np.array([pair.same for pair in pairs])
        threshold = best_threshold(every, same)
        accuracy = np.mean((every[5:15] >= threshold) == same[5:15])
        result = figures(found, "accuracy")["elmo", layer]
        assert result.value == accuracy
        assert result.low <= result.value <= result.high
        positive, negative = every[5:15][same[5:15]], every[5:15][~same[5:15]]
        area = np.mean((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative))
        assert figures(found, "auc")["elmo", layer].value == pytest.approx(area)
    assert figures(found, "auc")["elmo", 0].value == 0.5, "the word alone: all cosines are 1"
    assert figures(found, "auc")["elmo", 2].value > 0.75
    majority = np.mean(same[5:15] == (same.mean() >= 0.5))
    assert figures(found, "accuracy")["majority", 0].value == majority
    overlaps = np.array([overlap(pair.first, pair.second) for pair in pairs])
    expected = np.mean((overlaps[5:15] >= best_threshold(overlaps, same)) == same[5:15])
    assert figures(found, "accuracy")["static", 0].value == expected
    assert figures(found, "accuracy")["untrained", 1].of == "elmo"
    assert found == probe_wic([subject], Inputs(path, test, vectors=tmp_path / "again"))


def test_overlap_is_of_sets_whatever_the_case() -> None:
    assert overlap(["The", "cat", "the", "cat"], ["the", "Dog"]) == 1 / 3


def test_the_test_part_is_a_fifth_that_does_not_choose_the_threshold(tmp_path: Path) -> None:
    path = write(tmp_path / "f.tsv", *lines())
    outcome = probe_wic([], Inputs(path, vectors=tmp_path))
    assert outcome.notes[0] == "34 lines to learn from, a fifth drawn by the seed, 8, to test on"
    other = probe_wic([], Inputs(path, vectors=tmp_path, seed=2))
    assert figures(outcome, "accuracy") != figures(other, "accuracy")
    turned = write(
        tmp_path / "turned.tsv", *(line.replace("T", "F", 1) if line[0] == "T" else f"T{line[1:]}" for line in lines())
    )
    found = figures(probe_wic([], Inputs(path, turned)), "accuracy")["static", 0].value
    same = figures(probe_wic([], Inputs(path, write(tmp_path / "same.tsv", *lines()))), "accuracy")["static", 0].value
    assert found == pytest.approx(1 - same) and same > 0.5


def test_words_of_more_than_one_piece_and_long_sentences(tmp_path: Path) -> None:
    long = " ".join(["bank"] * 100)
    path = write(tmp_path / "f.tsv", f"T\tbank\tN\t99-0\t{long}\tbank steep", "F\tbank\tN\t0-1\tbank\tbar bank")
    vectors = pair_cosines(small_subject("bert", SIDES), read_pairs(path), tmp_path)
    assert vectors.shape == (3, 2) and (np.abs(vectors) <= 1).all()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bank\tN\t0-0\tbank\tbank", "line 1: expected label (T or F)<TAB>lemma<TAB>part of speech<TAB>"),
        ("X\tbank\tN\t0-0\tbank\tbank", "line 1: expected T (the same sense) or F, found 'X'"),
        ("T\tbank\tN\t0\tbank\tbank", "line 1: expected the word's place in both sentences as 2-7, found '0'"),
        ("T\tbank\tN\t0-2\tbank\ta bank", "line 1: word 2 of sentence2, which has 2 words, counted from 0"),
        ("T\tbank\tN\t0-1\tbank\ta bank", ": 1 lines, too few to learn from some and test on others"),
    ],
)
def test_a_wrong_file(line: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "f.tsv", line)
    with pytest.raises(DataError) as raised:
        probe_wic([], Inputs(path))
    assert str(raised.value).startswith(str(path)) and said in str(raised.value)


def test_a_missing_or_short_gold_file_and_labels_of_one_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "f.data.txt", "bank\tN\t0-0\tbank\tbank", "bank\tN\t0-0\tbank\tbank")
    with pytest.raises(DataError, match=r"f\.gold\.txt: no such file: it has the label of each line of f\.data\.txt"):
        read_pairs(path)
    write(tmp_path / "f.gold.txt", "T")
    with pytest.raises(DataError, match=r"f\.gold\.txt: 1 labels, f\.data\.txt has 2 pairs"):
        read_pairs(path)
    one = write(tmp_path / "one.tsv", *["T\tbank\tN\t0-0\tbank\tbank"] * 10)
    with pytest.raises(DataError, match="all 8 pairs of the training part are T"):
        probe_wic([], Inputs(one))
    with pytest.raises(DataError, match="the file that is learned from too"):
        probe_wic([], Inputs(one, one))
    with pytest.raises(ConfigError, match=r"--static .*: not used with --task wic"):
        probe_wic([], Inputs(one, static=one))
