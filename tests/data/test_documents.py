"""Documents as sentences, and which of them are held out."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.config.data import DataConfig, TextSource
from pretrain.data.documents import is_held_out, read_documents, sentence_splitter, splits, training_sentences
from pretrain.errors import DataError

ALPHABET = [
    *"ab .?!\"'()A1\u00a0\t\u2028\u3000…。„é-–—",
    "Dr.",
    "e.g.",
    "U.S.",
    "J.",
    "«",
    "»",
    "”",
    "...",
    "\n",
    "\r\n",
]


def test_paragraphs_are_cut_into_sentences() -> None:
    split = sentence_splitter("en")
    assert split("Dr. Smith went home. He slept.\n\nIt rained.  ", "paragraph") == [
        "Dr. Smith went home.",
        "He slept.",
        "It rained.",
    ]


def test_a_line_may_be_a_sentence() -> None:
    assert sentence_splitter("en")("One. Two.\n \nthree\n", "sentence") == ["One. Two.", "three"]


def test_wrapped_lines_are_joined_within_a_paragraph() -> None:
    text = "The cat\r\nsat. The dog\r\nran\r\n\r\nA title\r\n \r\nMore."
    assert sentence_splitter("en")(text, "wrapped") == ["The cat sat.", "The dog ran", "A title", "More."]


@pytest.mark.parametrize("lines", ["paragraph", "sentence", "wrapped"])
def test_splitting_keeps_all_text(lines: str) -> None:
    """Also beside white space that is not ASCII, at which `sentencex` panics when it stands after an initial."""
    split = sentence_splitter("en")
    rng = np.random.default_rng(3)
    for _ in range(300):
        text = "".join(ALPHABET[i] for i in rng.integers(0, len(ALPHABET), 60))
        sentences = split(text, lines)
        assert "".join("".join(sentences).split()) == "".join(text.split())
        assert all(sentence == sentence.strip() != "" for sentence in sentences)
    assert split("by J.\u00a0R. A.\u00a0Tolkien", lines) == ["by J. R. A. Tolkien"]


def test_a_huge_line_without_a_full_stop() -> None:
    assert [len(sentence) for sentence in sentence_splitter("en")("word " * 200_000, "paragraph")] == [999_999]


def test_empty_documents_are_left_out_but_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one.\n\nskip\n\ntwo.\n")
    source = TextSource(kind="text", files=str(tmp_path / "a.txt"))
    found = list(read_documents(source, "en", lambda text: text != "skip"))
    assert [(document.number, document.sentences) for document in found] == [(0, ["one."]), (2, ["two."])]


def test_the_held_out_share_depends_on_the_text_alone() -> None:
    texts = [f"document {i}" for i in range(4000)]
    held_out = {text for text in texts if is_held_out(text, 0.1)}
    assert 320 < len(held_out) < 480
    assert held_out <= {text for text in texts if is_held_out(text, 0.2)}
    assert not any(is_held_out(text, 0.0) for text in texts)


def data(folder: Path, held_out: object) -> DataConfig:
    return DataConfig.model_validate(
        {"sources": [{"kind": "text", "files": str(folder / "a.txt")}], "held_out": held_out}
    )


def texts_of(data: DataConfig, split: str) -> list[str]:
    return [
        " ".join(document.sentences)
        for _, source, keep in splits(data)[split]
        for document in read_documents(source, data.language, keep)
    ]


def test_a_share_is_held_out_without_overlap_and_duplicates_stay_together(tmp_path: Path) -> None:
    texts = [f"number {i % 100}" for i in range(200)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    config = data(tmp_path, 0.2)
    train, held_out = texts_of(config, "train"), texts_of(config, "held_out")
    assert sorted(train + held_out) == sorted(texts)
    assert not set(train) & set(held_out)
    assert held_out


def test_nothing_or_sources_may_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("train\n")
    (tmp_path / "b.txt").write_text("check\n")
    assert splits(data(tmp_path, 0))["held_out"] == []
    config = data(tmp_path, [{"kind": "text", "files": str(tmp_path / "b.txt")}])
    assert texts_of(config, "train") == ["train"]
    assert texts_of(config, "held_out") == ["check"]
    assert config.held_out_names() == ["held-out-text-0"]


def test_a_source_without_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"source text-0 \(.*a\.txt\): no text to train on"):
        list(training_sentences(data(tmp_path, 0)))
