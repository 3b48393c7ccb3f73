"""Words: cut, counted, spelled, saved and loaded."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.models import WordsConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.errors import DataError
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.tokens import (
    SPECIAL_WORDS,
    WordTokenizer,
    character_ids,
    learn,
    load,
    order_problem,
    read_vocabulary,
)

PAD = 260


def test_spelling() -> None:
    """Peters et al.'s ids; the cut after 3 bytes and the two-byte Ā are cases of the original's own tests."""
    rows = character_ids(["<S>", "</S>", "<UNK>", "\u0100t", "thhhhh", ""], 5)
    assert rows.dtype == np.int16
    assert rows.tolist() == [
        [258, 256, 259, PAD, PAD],
        [258, 257, 259, PAD, PAD],
        [258, *b"<UN", 259],
        [258, 196, 128, 116, 259],
        [258, 116, 104, 104, 259],
        [258, 259, PAD, PAD, PAD],
    ]
    assert character_ids([], 5).shape == (0, 5)


def test_spelling_cuts_within_a_character() -> None:
    row = character_ids(["x" * 47 + "é"], 50)[0]
    assert row.tolist() == [258, *b"x" * 47, 0xC3, 259]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop-gap it's “dogs’” ’tis", ["Don't", "stop", "-", "gap", "it's", "“", "dogs", "’", "”", "’", "tis"]),
        ("3.14 1,000,000 v2.0 10:30 U.S.", ["3.14", "1,000,000", "v2.0", "10", ":", "30", "U", ".", "S", "."]),
        ("हिन्दी में, e\u0301te\u0301", ["हिन्दी", "में", ",", "e\u0301te\u0301"]),
        ("नहीं\u200cहै _very_ a...b", ["नहीं\u200cहै", "_", "very", "_", "a", ".", ".", ".", "b"]),
        ("日本 \u2764\ufe0f\u00a0x\u2028y\t\n", ["日本", "\u2764\ufe0f", "x", "y"]),
        ("", []),
    ],
)
def test_unicode_words(text: str, words: list[str]) -> None:
    tokenizer = WordTokenizer(SPECIAL_WORDS, words="unicode")
    assert tokenizer.split(text) == words
    assert [text[start:stop] for start, stop in tokenizer.spans(text)] == words
    assert "".join(words) == "".join(text.split())


def test_whitespace_words_are_those_of_split() -> None:
    text = " a b,c\u00a0d\u3000e\x1cf\n"
    assert WordTokenizer(SPECIAL_WORDS).split(text) == text.split()


def test_encode_counts_what_is_lost() -> None:
    tokenizer = WordTokenizer((*SPECIAL_WORDS, "the", "cat"), lowercase=True)
    encoded = tokenizer.encode(["The CAT", "", "sat " + "é" * 25, "x" * 50])
    assert encoded.tokens == [["the", "cat"], [], ["sat", "é" * 25], ["x" * 50]]
    assert encoded.ids.tolist() == [3, 4, 2, 2, 2]
    assert (encoded.words, encoded.unknown_words) == (5, 3)
    assert (encoded.characters, encoded.characters_left_out) == (84, 3)
    assert tokenizer.encode([]).ids.tolist() == []


def test_pieces_keep_the_text() -> None:
    tokenizer = WordTokenizer(SPECIAL_WORDS, words="unicode", lowercase=True)
    raw, cut = tokenizer.pieces("It's HERE."), tokenizer.pieces(["It's", "HERE."])
    assert (raw.words, raw.tokens) == (["It's", "HERE", "."], ["it's", "here", "."])
    assert (cut.words, cut.tokens) == (["It's", "HERE."], ["it's", "here."])
    assert cut.word_of.tolist() == [0, 1]


def test_learning() -> None:
    texts = ["b a b", "<S> a c d d", "A"]
    config = WordsConfig(word_split="whitespace", vocabulary_size=6)
    assert learn(lambda: texts, config).vocabulary == (*SPECIAL_WORDS, "a", "b", "d")
    lower = config.model_copy(update={"lowercase": True, "minimum_count": 3})
    assert learn(lambda: texts, lower).vocabulary == (*SPECIAL_WORDS, "a")


@pytest.mark.parametrize("change", [{}, {"minimum_count": 2}, {"vocabulary_size": 3}])
def test_learning_from_no_words(change: dict[str, int]) -> None:
    text = "once only" if change else " \n"
    with pytest.raises(DataError, match="no word for a vocabulary"):
        learn(lambda: [text], WordsConfig(**change))


def test_a_given_vocabulary(tmp_path: Path) -> None:
    """As it is in the file, and no text is read; the rule that cuts text is the config's."""

    def texts() -> Iterable[str]:
        raise AssertionError("read")

    path = tmp_path / "vocab-2016-09-10.txt"
    path.write_text("</S>\n<S>\n<UNK>\nthe\n!!!MAXTERMID\ncat\n")
    tokenizer = learn(texts, WordsConfig(vocabulary=path, word_split="whitespace", lowercase=True))
    assert tokenizer.vocabulary == ("</S>", "<S>", "<UNK>", "the", "cat")
    assert (tokenizer.words, tokenizer.lowercase) == ("whitespace", True)
    path.write_text("<S>\n</S>\nthe\n")
    with pytest.raises(DataError, match=r"vocab-2016-09-10.txt lacks <UNK>"):
        learn(texts, WordsConfig(vocabulary=path))


WORDS = tuple(f"word{number}" for number in range(40))
ZIPF = np.array([7, 90, 3, *(1000 // (rank + 1) for rank in range(40))])
"""How often `<S>`, `</S>`, `<UNK>` and forty words of decreasing frequency occur."""


@pytest.mark.parametrize(
    ("order", "sorted_enough"),
    [
        (range(40), True),
        ([2, 3, 0, 1, *range(4, 40)], True),
        ([0, *range(39, 0, -1)], True),  # the most frequent word alone covers more than half of what four words do
        (range(39, -1, -1), False),
        ([(number * 7 + 20) % 40 for number in range(40)], False),
    ],
)
def test_the_order_of_a_vocabulary(order: Iterable[int], sorted_enough: bool) -> None:
    """Sampled softmax takes it for the order of frequency; where in the file special words stand does not matter."""
    chosen = list(order)
    words, counts = [WORDS[number] for number in chosen], ZIPF[3:][chosen]
    for specials in (0, 40):
        tokenizer = WordTokenizer([*words[:specials], *SPECIAL_WORDS, *words[specials:]])
        problem = order_problem(tokenizer, np.concatenate([counts[:specials], ZIPF[:3], counts[specials:]]))
        assert (problem is None) == sorted_enough
    if problem is not None:
        first, most = counts[:4].sum() / ZIPF.sum(), ZIPF[3:7].sum() / ZIPF.sum()
        assert f"first tenth of the words covers {first:.1%} of the" in problem and f"tenth {most:.1%}:" in problem
        assert "objective.softmax to full" in problem and "\n" not in problem


def test_only_sampled_softmax_minds_the_order() -> None:
    assert FAMILY.tokenizer.problem is not None
    tokenizer, counts = WordTokenizer((*SPECIAL_WORDS, *WORDS)), ZIPF.copy()
    counts[3:] = counts[:2:-1]
    assert FAMILY.tokenizer.problem(ElmoObjectiveConfig(softmax="full"), tokenizer, counts) is None
    assert FAMILY.tokenizer.problem(ElmoObjectiveConfig(softmax="sampled"), tokenizer, counts) is not None


def test_learning_is_the_same_in_every_process() -> None:
    program = (
        "from pretrain.config.models import WordsConfig; from pretrain.models.elmo.tokens import learn;"
        "print(learn(lambda: ['the cat sat on the mat and a dog ate it'], WordsConfig()).vocabulary)"
    )
    root = Path(__file__).parents[3]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and "'mat'" in outputs.pop()


def test_save_and_load(tmp_path: Path) -> None:
    saved = WordTokenizer(("x", "\u2028é", *SPECIAL_WORDS), words="unicode", lowercase=True)
    assert load(tmp_path) is None
    saved.save(tmp_path)
    loaded = FAMILY.tokenizer.load(tmp_path)
    assert isinstance(loaded, WordTokenizer)
    assert (loaded.vocabulary, loaded.words, loaded.lowercase) == (saved.vocabulary, "unicode", True)
    assert (loaded.sentence_begin, loaded.sentence_end) == (2, 3)
    assert not FAMILY.format.recognises(tmp_path)


def test_vocabulary_lines_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("<S>\r\n</S>\n<UNK>\n!!!MAXTERMID\n\u00a0\nü".encode())
    assert read_vocabulary(path) == ["<S>", "</S>", "<UNK>", "\u00a0", "ü"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<S>\n</S>\nword\n", "vocabulary.txt lacks <UNK>"),
        (b"", "vocabulary.txt lacks <S>, </S>, <UNK>"),
        (b"<S>\n</S>\n<UNK>\n\xff\n", "vocabulary.txt, line 4: not UTF-8"),
        (b"<S>\n</S>\n<UNK>\na\na\n", "vocabulary.txt, line 5: 'a' is already on line 4"),
    ],
)
def test_damaged_vocabularies(tmp_path: Path, content: bytes, message: str) -> None:
    WordTokenizer(SPECIAL_WORDS).save(tmp_path)
    (tmp_path / "vocabulary.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_damaged_tokenizer_folders(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text('{"words": "syllables"}')
    with pytest.raises(DataError, match=r"words\.json but not vocabulary\.txt"):
        load(tmp_path)
    (tmp_path / "vocabulary.txt").write_text("<S>\n</S>\n<UNK>\n")
    with pytest.raises(DataError, match=r"words\.json is not a rule .*syllables"):
        load(tmp_path)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="'syllables', not one of 'whitespace', 'unicode'"):
        WordTokenizer(SPECIAL_WORDS, words="syllables")
    with pytest.raises(ValueError, match="lacks </S>"):
        WordTokenizer(["<S>", "<UNK>"])
