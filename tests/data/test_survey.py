"""The first look at a corpus: what would make it useless is said before it is prepared."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config.data import DataConfig
from pretrain.data.documents import read_documents as read
from pretrain.data.documents import splits
from pretrain.data.survey import CHARACTERS_LOOKED_AT, survey
from pretrain.errors import DataError

SENTENCES = [f"The {animal} {verb} near the river." for animal in ("otter", "fox", "owl") for verb in ("runs", "hides")]
PROSE = " ".join(SENTENCES)


def config(path: Path, held_out: object = 0.0, language: str = "en", **source: object) -> DataConfig:
    sources = [{"kind": "text", "files": str(path)} | source]
    return DataConfig.model_validate({"sources": sources, "held_out": held_out, "language": language})


@pytest.fixture
def messages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """A function of a text and options of its source to what is said of it, warnings and all."""

    def look(text: str, level: int = logging.WARNING, **options: object) -> list[str]:
        path = tmp_path / "a.txt"
        path.write_text(text, encoding="utf-8")
        caplog.clear()
        with caplog.at_level(logging.INFO):
            survey(config(path, **options))  # type: ignore[arg-type]
        return [record.getMessage() for record in caplog.records if record.levelno >= level]

    return look


def problem(data: DataConfig) -> str:
    with pytest.raises(DataError) as caught:
        survey(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_of_ordinary_prose_only_the_number_of_files_is_said(messages: Callable[..., list[str]]) -> None:
    paragraphs = f"{PROSE}\n{PROSE[:50]}\n" * 3
    assert messages(f"{paragraphs}\n{paragraphs}", level=logging.INFO) == ["source text-0: 1 file"]
    assert messages("\n\n".join([PROSE] * 30)) == []


def test_a_blank_line_after_every_sentence(messages: Callable[..., list[str]]) -> None:
    (said,) = messages("\n\n".join(SENTENCES * 5))
    assert said.startswith("source text-0: 30 of 30 documents are one sentence, which has no next one to learn from")
    assert "put blank lines between documents, not between the sentences of one" in said


def test_lines_that_are_sentences_and_lines_that_are_not(messages: Callable[..., list[str]]) -> None:
    by_sentence, by_paragraph = "\n".join(SENTENCES * 5), f"{PROSE}\n" * 30
    (said,) = messages(by_sentence)
    assert "nearly every line is one sentence: if all are, say `lines: sentence`" in said
    assert messages(by_sentence, lines="sentence") == []
    (said,) = messages(by_paragraph, lines="sentence")
    assert "its lines hold 6.0 sentences each: if they are paragraphs, say `lines: paragraph`" in said
    wrapped = "\n".join(" ".join(PROSE.split()[i : i + 4]) for i in range(0, 36, 4)) + "\n"
    (said,) = messages(wrapped * 4)
    assert "if the text is hard-wrapped, say `lines: wrapped`" in said
    assert messages(wrapped * 4, lines="wrapped") == []


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("<p>The otter <b>runs</b>.</p>", "kind: xml"),
        ("1\totter\totter\tNOUN", "kind: conllu, or kind: tsv"),
        ('{"text": "The otter runs."}', "kind: json"),
    ],
)
def test_markup_is_no_text(line: str, kind: str, messages: Callable[..., list[str]]) -> None:
    (said,) = messages(f"{line}\n" * 30)
    assert kind in said


def test_long_words(messages: Callable[..., list[str]]) -> None:
    (said,) = messages(f"{PROSE} {'x' * 101}\n" * 4 + "y" * 100)
    assert said.startswith("source text-0: 4 words longer than 100 characters, ")
    assert "% of the text: WordPiece makes each of them [UNK]" in said
    assert messages("山上看見了一隻狐狸" * 40 + "。東京。\n\n" + PROSE, language="zh") == [], "an ideograph is a word"
    assert messages(f"{PROSE} https://example.org/{'a/' * 100}\n{PROSE}") == [], "punctuation is not of the word"


def test_no_letter(messages: Callable[..., list[str]]) -> None:
    assert messages("1 2 3.\n4 5. 6 7.\n") == ["source text-0: no letter in it"]


def test_a_language_without_rules_is_said(messages: Callable[..., list[str]]) -> None:
    for language in ("is", "isl", "gsw"):
        said = messages(PROSE, level=logging.INFO, language=language)
        assert said[0].startswith(f"data.language {language}: the sentence splitter has no rules of its own for it")
    for language in ("de", "deu", "ger"):
        assert len(messages(PROSE, level=logging.INFO, language=language)) == 1


def test_a_source_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n \n")
    assert problem(config(tmp_path / "a.txt")) == f"source text-0 ({tmp_path}/a.txt): no text in it"


def test_one_document_cannot_be_shared_out(tmp_path: Path) -> None:
    """What the message advises works: blank lines, another file, or nothing."""
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    said = problem(config(tmp_path / "a.txt", 0.02))
    assert said.startswith("data.held_out is 0.02: none of 1 documents, and no share of one can be: put blank lines")
    survey(config(tmp_path / "a.txt", 0.0))
    (tmp_path / "b.txt").write_text("\n".join(SENTENCES * (CHARACTERS_LOOKED_AT // len(PROSE) + 2)))
    assert "no share of one can be" in problem(config(tmp_path / "b.txt", 0.02)), "however long it is"
    survey(config(tmp_path / "a.txt", [{"kind": "text", "files": str(tmp_path / "a.txt")}]))


@pytest.mark.parametrize("documents", [2, 3, 10])
def test_the_share_that_is_advised_holds_out_and_leaves_some(documents: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"{PROSE} {i}." for i in range(documents)))
    said = problem(config(tmp_path / "a.txt", 0.0001))
    assert said.startswith(f"data.held_out is 0.0001: none of {documents} documents; raise it to 0.")
    data = config(tmp_path / "a.txt", float(said.split("raise it to ")[1].split(",")[0]))
    survey(data)
    found = {
        split: sum(1 for _, source, keep in parts for _ in read(source, "en", keep))
        for split, parts in splits(data).items()
    }
    assert found["held_out"] >= 1
    assert found["train"] >= 1
    assert sum(found.values()) == documents


def test_a_share_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two.\n\nthree four.\n")
    assert problem(config(tmp_path / "a.txt", 0.9999)).startswith("data.held_out is 0.9999: all of 2 documents")


def test_only_the_beginning_is_looked_at(tmp_path: Path) -> None:
    """A broken record behind it is met later, and what is held out of so much text is not guessed at."""
    line = '{"text": "%s"}\n' % (PROSE * 1000)
    with (tmp_path / "a.jsonl").open("w") as stream:
        for _ in range(CHARACTERS_LOOKED_AT // len(line) + 2):
            stream.write(line)
        stream.write("broken\n")
    survey(config(tmp_path / "a.jsonl", 1e-9, kind="json"))


def test_the_cases(shared_data: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    lines = shared_data("cases/lines")
    assert "no share of one can be" in problem(config(lines / "sentence_a_line_no_blank_lines.txt", 0.02))
    assert "say `lines: sentence`" in caplog.text
    survey(config(lines / "blank_line_after_every_sentence.txt"))
    assert "148 of 148 documents are one sentence" in caplog.text
