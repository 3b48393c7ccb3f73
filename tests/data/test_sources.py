"""Sources as texts: every format, and what is said when a file is not what it should be."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from pretrain.config.data import AnyKind, Source
from pretrain.data.files import list_files
from pretrain.data.python_docs import python_docs, unwrap
from pretrain.data.sources import read_source
from pretrain.errors import DataError


def source(**values: object) -> Source:
    """A source from its options."""
    read: Source = TypeAdapter(AnyKind).validate_python(values)
    return read


def texts(**values: object) -> list[str]:
    """All texts of a source."""
    return list(read_source(source(**values)))


def problem(**values: object) -> str:
    """The one line that reading a source ends with."""
    with pytest.raises(DataError) as caught:
        texts(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_blank_lines_separate_documents_and_so_do_files(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("one\ntwo\n\n \t\n\nthree\n\u00a0\nfour", encoding="utf-8")
    (tmp_path / "2.txt").write_text("\n\nfive\n\n", encoding="utf-8")
    files = [str(tmp_path / "1.txt"), str(tmp_path / "2.txt")]
    assert texts(kind="text", files=files) == ["one\ntwo", "three", "four", "five"]
    assert texts(kind="text", files=files[::-1]) == ["five", "one\ntwo", "three", "four"]


def test_windows_lines_and_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert texts(kind="text", files=str(tmp_path / "a.txt")) == ["one\ntwo", "three"]


def test_compressed_files_and_globs_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        with gzip.open(tmp_path / f"{name}.txt.gz", "wt", encoding="utf-8") as stream:
            stream.write(f"{name} of ü\n")
    (tmp_path / "note.md").write_text("not read\n")
    assert texts(kind="text", files=str(tmp_path / "*.txt.gz")) == ["a of ü", "b of ü", "c of ü"]


def test_a_file_is_read_once_and_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a [1] b.txt"
    path.write_text("x\n")
    assert texts(kind="text", files=[str(path), str(path)]) == ["x"]


def test_a_long_text_file_crosses_batches(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" + "\n" * (i % 1500 == 1499) for i in range(4000)))
    found = texts(kind="text", files=str(tmp_path / "a.txt"))
    assert [text.count("\n") + 1 for text in found] == [1500, 1500, 1000]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_json_lines(name: str, tmp_path: Path) -> None:
    content = b'{"body": "one\\ntwo", "id": 1}\n{"id": 2, "body": "\xc3\xbc"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert texts(kind="json", files=str(tmp_path / name), field="body") == ["one\ntwo", "ü"]


def test_parquet_and_arrow(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {i}" for i in range(2500)], "n": range(2500)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=600)
    expected = table["text"].to_pylist()
    assert texts(kind="parquet", files=str(tmp_path / "a.parquet")) == expected
    assert texts(kind="arrow", files=str(tmp_path / "a.arrow")) == expected


def test_a_data_set_by_name_is_read_by_the_same_code(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, text in (("train", "learn"), ("validation", "check")):
        pq.write_table(pa.table({"text": [text], "n": [1]}), tmp_path / "data" / f"{split}-00000.parquet")
    assert texts(kind="hub", dataset=str(tmp_path)) == ["learn"]
    assert texts(kind="hub", dataset=str(tmp_path), split="validation") == ["check"]
    assert "cannot be opened" in problem(kind="hub", dataset=str(tmp_path), split="other")
    assert "no field 'body'; there are n, text" in problem(kind="hub", dataset=str(tmp_path), field="body")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_an_empty_file_has_no_documents(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    assert texts(kind="json" if "json" in name else "text", files=str(tmp_path / name)) == []


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert problem(kind="text", files=str(tmp_path / "none.txt")).endswith("none.txt: no such file")
    assert problem(kind="json", files=[str(tmp_path / "*.jsonl")]).endswith("*.jsonl: no such file")
    assert ": a folder: name its files" in problem(kind="text", files=str(tmp_path))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_an_undecodable_byte_is_told_with_file_and_line(name: str, tmp_path: Path) -> None:
    lines = b'{"text": "fine"}\n{"text": "bad \xff"}\n'
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    kind = "json" if "json" in name else "text"
    assert problem(kind=kind, files=str(tmp_path / name)) == (
        f"{tmp_path / name}, line 2: byte 0xff is not UTF-8: name the source's encoding (such as latin-1), "
        "or convert: iconv -f LATIN1 -t UTF-8"
    )


def test_a_cut_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"some text\n" * 1000)[:40])
    assert problem(kind="text", files=str(path)).startswith(f"{path}: cannot be read: ")
    path.write_bytes(b"plain text")
    assert problem(kind="text", files=str(path)).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ('{"text": "a"}\n\n{"text": "b\n', ", line 3: not JSON, of which each line must be an object (Unterminated"),
        ('{\n "text": "a"\n}\n', ", line 1: not JSON, of which each line must be an object (Expecting"),
        ('{"txt": "a", "id": 1}\n{"x": 1}\n', ": no field 'text'; there are id, txt, x"),
        ('{"text": null}\n\n{"text": 3}\n', ", line 3: field 'text' is int, not text"),
        ('{"text": ["a"]}\n', ", line 1: field 'text' is list, not text"),
        ('"text"\n', ", line 1: a str, not an object with a field 'text'"),
        ("[" * 100_000, ": neither JSON lines nor one JSON array ("),
        ('[{"text": "a"}, 3]', ", record 2: a int, not an object with a field 'text'"),
    ],
)
def test_broken_records(records: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(records)
    assert problem(kind="json", files=str(path)).startswith(f"{path}{message}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_of_another_format(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"this is neither")
    assert problem(kind=kind, files=str(path)).startswith(f"{path}: cannot be ")
    assert capfd.readouterr().err == ""


def test_files_keep_the_order_of_their_patterns(tmp_path: Path) -> None:
    for name in ("1.txt", "2.txt", "3.csv"):
        (tmp_path / name).write_text("x\n")
    patterns = (str(tmp_path / "3.csv"), str(tmp_path / "*.txt"))
    assert [Path(file.path).name for file in list_files(patterns)] == ["3.csv", "1.txt", "2.txt"]


def test_pythons_documentation_is_a_megabyte_of_english_and_always_the_same() -> None:
    documents = python_docs()
    assert sum(map(len, documents)) > 1_000_000
    assert len(documents) > 300
    assert sum(text.count(" the ") for text in documents) > 5_000
    assert tuple(texts(kind="python_docs")) == documents
    again = python_docs.__wrapped__()
    assert again == documents


def test_unwrapping_keeps_prose_and_leaves_out_code() -> None:
    text = "A paragraph that\nis wrapped.\n\n    code = 1\n\n>>> 1 + 1\n2\n\nTitle\n=====\n\n=====\n\nThe end.\n"
    assert unwrap(text) == "A paragraph that is wrapped.\nTitle =====\nThe end."


def test_records_with_unusual_text(tmp_path: Path) -> None:
    values = ["", "a\u2028b", "x" * 100_000, "emoji 😀", "tab\tand \\ backslash"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    assert texts(kind="json", files=str(tmp_path / "a.jsonl")) == values
