"""Treebanks, files of entities, and files of word vectors, read; and sentences divided."""

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import DataError
from pretrain.probing.affixes import affix_features
from pretrain.probing.sentences import Sentence, divide
from pretrain.probing.spans import iob2, read_entities, span_counts, span_f1, spans
from pretrain.probing.tasks import Inputs
from pretrain.probing.treebanks import read_parsed, read_tagged
from pretrain.probing.word_files import average_by_type, read_word_vectors


def conllu(*rows: str) -> str:
    """Rows of number, form, UPOS, head and relation as CoNLL-U; what begins with # as it is."""
    lines = []
    for row in rows:
        cells = row.split()
        columns = [*cells[:2], "_", cells[2], "_", "_", *cells[3:], "_", "_"] if len(cells) == 5 else [row]
        lines.append("\t".join(columns))
    return "".join(f"{line}\n" for line in lines)


TREES = conllu(
    "# newdoc",
    "# text = Vámonos",
    "1-2 Vámonos _ _ _",
    "1 Vamos VERB 0 root",
    "2 nos PRON 1 obj:x",
    "2.1 empty NOUN _ _",
    "3 ya ADV 1 advmod",
    "",
    "1 Sí INTJ 0 root",
    "",
    "# newdoc id = b",
    "1 No INTJ 0 root",
)


def test_a_treebank_is_words_tags_heads_and_relations(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu.gz"
    path.write_bytes(gzip.compress(TREES.encode()))
    first, second, third = read_parsed(path)
    assert first == Sentence(["Vamos", "nos", "ya"], ["VERB", "PRON", "ADV"], 0, [0, 0, 0], ["root", "obj:x", "advmod"])
    assert (second.document, third.document, third.words) == (0, 1, ["No"])
    assert [sentence.tags for sentence in read_tagged(path)] == [["VERB", "PRON", "ADV"], ["INTJ"], ["INTJ"]]


@pytest.mark.parametrize(
    ("read", "rows", "said"),
    [
        (read_parsed, ["1 a X 3 obj", "2 b X 0 root"], "line 1: head '3' is none of the sentence's 2 words, nor 0"),
        (read_parsed, ["# x", "1 a X _ _"], "line 2: head '_' is none of the sentence's 1 words, nor 0"),
        (read_tagged, ["1 a X 0 root", "3 b X 1 obj"], "line 2: word 3 where word 2 was to come"),
        (read_tagged, ["1 a _ 0 root"], ": no word has a part of speech (column 4 of CoNLL-U, UPOS)"),
        (read_tagged, ["#", "a"], "line 2: not CoNLL-U, whose lines have 10 columns"),
    ],
)
def test_what_is_no_treebank_is_said_with_the_line(
    tmp_path: Path, read: Callable[[Path], object], rows: list[str], said: str
) -> None:
    (tmp_path / "a").write_text(conllu(*rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_entities_of_all_forms_are_read_alike(tmp_path: Path) -> None:
    forms = {
        "conll": "-DOCSTART- -X- O O\n\nEU NNP B-NP I-ORG\nBonn NNP B-NP B-ORG\nsaid VBD O O\n\n"
        "1 CD B-NP O\nX X X I-PER\n",
        "wnut": "EU\tB-ORG\nBonn\tB-ORG\nsaid\tO\n\t\n1\tO\nX\tB-PER\n\n",
        "wikiann": "en:EU\tB-ORG\nen:Bonn\tB-ORG\nen:said\tO\n\nen:1\tO\nen:X\tB-PER\n",
        "uner": "# sent_id = 1\n1\tEU\tB-ORG\t-\tme\n2\tBonn\tB-ORG\t-\tme\n3\tsaid\tO\t-\tme\n\n"
        "1\t1\tO\t-\tme\n2\tX\tB-PER\t-\tme\n",
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        first, second = read_entities(tmp_path / name)
        assert (list(first.words), list(first.tags)) == (["EU", "Bonn", "said"], ["B-ORG", "B-ORG", "O"]), name
        assert (list(second.words), list(second.tags)) == (["1", "X"], ["O", "B-PER"]), name
        assert (first.document, second.document) == ((0, 0) if name == "conll" else (None, None))


def test_a_mark_between_documents_makes_what_precedes_it_one_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a O\n\nb B-PER\n\n-DOCSTART- O\n\nc O\n\n-DOCSTART- O\n\nd O\n", encoding="utf-8")
    assert [sentence.document for sentence in read_entities(tmp_path / "a")] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a O\nb S-PER\n", "line 2: 'S-PER' is no tag of an entity: those are O, B-TYPE and I-TYPE"),
        ("a O\n\nb\n", "line 3: not a word and its tag: 'b'"),
        ("a\tO\n\tB-PER\n", "line 2: not a word and its tag"),
        ("a O\nb O\n\nc O\n", ": no entity in 2 sentences"),
    ],
)
def test_what_is_no_tag_is_said_with_the_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_entities(tmp_path / "a")
    assert said in str(caught.value)


def counted_as_conlleval(gold: list[str], predicted: list[str]) -> tuple[int, int, int]:
    """Right, found and there, in one pass over both columns as the script of CoNLL-2000 goes, without any spans."""

    def begins(before: str, tag: str) -> bool:
        return tag != "O" and (tag[0] == "B" or before == "O" or before[2:] != tag[2:])

    def ends(tag: str, after: str) -> bool:
        return tag != "O" and (after == "O" or after[0] == "B" or after[2:] != tag[2:])

    right = found = there = 0
    inside = False
    last = ("O", "O")
    for both in [*zip(gold, predicted, strict=True), ("O", "O")]:
        ended = [ends(last[side], both[side]) for side in (0, 1)]
        if inside and all(ended):
            right, inside = right + 1, False
        elif inside and (any(ended) or both[0][2:] != both[1][2:]):
            inside = False
        begun = [begins(last[side], both[side]) for side in (0, 1)]
        if all(begun) and both[0][2:] == both[1][2:]:
            inside = True
        there, found = there + begun[0], found + begun[1]
        last = both
    return right, found, there


def test_spans_count_as_conlleval_counts_them() -> None:
    assert spans(["O", "I-A", "I-A", "B-A", "I-B", "O", "B-A"]) == [(1, 3, "A"), (3, 4, "A"), (4, 5, "B"), (6, 7, "A")]
    assert iob2(["I-A", "I-A", "B-A", "I-B", "O"]) == ["B-A", "I-A", "B-A", "B-B", "O"]
    rng = np.random.default_rng(1)
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    gold = [list(map(str, rng.choice(tags, size=rng.integers(1, 12)))) for _ in range(300)]
    predicted = [[tag if rng.random() < 0.7 else str(rng.choice(tags)) for tag in sentence] for sentence in gold]
    expected = [counted_as_conlleval(true, guessed) for true, guessed in zip(gold, predicted, strict=True)]
    counts = span_counts(gold, predicted)
    assert counts.tolist() == [list(each) for each in expected]
    right, found, there = counts.sum(axis=0)
    precision, recall = right / found, right / there
    f1, low, high = span_f1(gold, predicted, seed=1)
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert 0.3 < low < f1 < high < 0.9
    assert span_f1([["O"]], [["O"]], seed=1)[0] == 0


def sentences(count: int, documents: int | None) -> list[Sentence]:
    return [
        Sentence((f"w{number}", "x"), ("A", "B"), None if documents is None else number * documents // count)
        for number in range(count)
    ]


@pytest.mark.parametrize("documents", [None, 5, 40])
def test_a_fifth_is_drawn_by_document_where_there_are_enough(documents: int | None) -> None:
    everything = sentences(200, documents)
    parts = divide(Inputs(Path("a"), seed=3), lambda path: everything)
    assert Counter(s.words for s in (*parts.training, *parts.testing)) == Counter(s.words for s in everything)
    assert len(parts.testing) == 40
    shared = {s.document for s in parts.training} & {s.document for s in parts.testing}
    assert not shared if documents == 40 else shared
    kind = "documents" if documents == 40 else "sentences"
    assert parts.notes == (f"tested on 40 sentences of a, a fifth of its {kind} drawn by the seed",)
    assert divide(Inputs(Path("a"), seed=3), lambda path: everything) == parts
    assert divide(Inputs(Path("a"), seed=4), lambda path: everything).testing != parts.testing


def test_too_many_words_are_drawn_from_by_sentence_and_copies_are_counted(tmp_path: Path) -> None:
    of = {tmp_path / "a": sentences(200, None), tmp_path / "b": sentences(3, None)}
    parts = divide(Inputs(tmp_path / "a", tmp_path / "b"), of.__getitem__, max_words=61)
    assert len(parts.training) == 30 and parts.testing == of[tmp_path / "b"]
    assert parts.notes == (
        "3 of 3 test sentences stand word for word in the training part too",
        "learned from 60 of 400 words, whole sentences drawn by the seed",
    )


def test_word_vectors_of_the_three_formats(tmp_path: Path) -> None:
    lines = ["the 1 2", ". . . 9 9", "Cat 3 4", "dog -1 5e-1", "the 7 7"]
    formats = {
        "glove.txt": lines,
        "word2vec.txt": ["5 2", *lines],
        "fasttext.vec": ["5 2", *(f"{line} " for line in lines)],
        "tabs": [line.replace(" ", "\t") for line in lines if line[0] != "."],
    }
    for name, content in formats.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress("\n".join(content).encode()))
        types = read_word_vectors(tmp_path / f"{name}.gz", {"The", "Cat", "dog", ".", "bird"})
        rows, counts = types.rows(["Cat", "The", "bird", "dog", "."])
        mean = [1, 6.5 / 3]
        assert np.allclose(rows, [[3, 4], [1, 2], mean, [-1, 0.5], mean]), name
        assert counts == {"found": 2, "lower case": 1, "unknown": 2}
        assert np.allclose(types.rows(["bird"], np.float32([8, 9]))[0], [[8, 9]])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a 1 2\nb 1\n", "line 2: 1 numbers, where other lines have 2"),
        ("a 1 x\n", "line 1: not numbers: '1 x'"),
        ("a 1 nan\n", "line 1: a number that is infinite or none"),
        ("a\n", "line 1: 'a' is not a word and its numbers"),
        ("c 1 2\n", ": has a vector of none of the 2 words that are probed"),
    ],
)
def test_what_is_no_word_vector_is_said(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "v").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_word_vectors(tmp_path / "v", {"a", "b"})
    assert said in str(caught.value)


def test_the_mean_of_a_words_occurrences() -> None:
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    types = average_by_type(["a", "b", "a", "a", "c"], vectors)
    assert np.allclose(types.vectors["a"], vectors[[0, 2, 3]].mean(0))
    assert np.allclose(types.vectors["c"], vectors[4])


def test_features_of_words_are_counted_in_the_training_part_alone() -> None:
    training = [Sentence(["Ab", "ab", "x-1"], ["A", "A", "_"]), Sentence(["cab"], ["B"])]
    testing = [Sentence(["zzab", "Q"], ["A", "A"])]
    learned, tested = affix_features(training, testing)
    # "word ab", its suffixes "b" and "ab", its prefixes "a" and "ab", and "first": each is there twice or more
    assert learned.size == 6
    ends = [*learned.starts.tolist()[1:], len(learned.features)]
    sizes = [end - start for start, end in zip(learned.starts.tolist(), ends, strict=True)]
    assert sizes == [6, 5, 3], "a word without a tag has no row"
    assert len(tested.starts) == 2
    assert [*tested.starts.tolist(), len(tested.features)] == [0, 3, 3], "the suffixes, and that it is the first"
