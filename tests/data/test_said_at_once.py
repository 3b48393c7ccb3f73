"""What is wrong with a corpus is said before the work of preparing it, what is passed over after it."""

import json
import logging
from pathlib import Path

import pytest

import pretrain.data.prepare
from pretrain.data.prepare import ensure_prepared
from pretrain.errors import DataError
from pretrain.models import get_family
from tests.data.conftest import Configure


def test_before_anything_is_learned(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_late(*_: object) -> None:
        pytest.fail("a vocabulary was learned first")

    monkeypatch.setattr(pretrain.data.prepare, "make_tokenizer", too_late)
    (tmp_path / "a.txt").write_text("".join(f"The otter runs {i} times.\n" for i in range(30)))
    config = configure("data.held_out=0.02", files=tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"none of 1 documents, and no share of one can be: put blank lines"):
        ensure_prepared(config, get_family(config.model.kind))
    assert "say `lines: sentence`" in caplog.text


def test_one_sentence_a_document_is_said_again_in_the_end(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("".join(f"The otter runs {i} times.\n\n" for i in range(30)))
    config = configure("data.held_out=0", files=tmp_path / "a.txt")
    corpus = ensure_prepared(config, get_family(config.model.kind))
    said = "source text-0: each of its 30 documents is one sentence: no sentence has a next one to learn from"
    assert said in corpus.warnings()
    assert said in caplog.messages
    assert "30 of 30 documents are one sentence" in caplog.text


def test_records_without_text_are_counted_once(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    records = [{"text": f"The otter runs {i} times. It rests."} for i in range(60)] + [{"text": None}, {"id": 1}] * 3
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = configure(f"data.sources=[{{kind: json, files: {path}}}]", "data.held_out=0.3")
    with caplog.at_level(logging.WARNING):
        ensure_prepared(config, get_family(config.model.kind))
    (said,) = [message for message in caplog.messages if "passed over" in message]
    assert said == "source json-0: passed over 3 records whose text is missing, 3 records whose text is null"
