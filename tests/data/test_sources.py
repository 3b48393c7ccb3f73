"""Sources as texts: every format, and what is said when a file is not what it should be."""

import gzip
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from pretrain.config.data import AnyKind, Source
from pretrain.data.documents import sentence_splitter
from pretrain.data.files import list_files
from pretrain.data.python_docs import python_docs, unwrap
from pretrain.data.sources import describe_skipped, read_source
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


def test_null_and_missing_fields_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": null}\n{"id": 1}\n{"text": "b"}\n{"text": null}\n')
    skipped: Counter[str] = Counter()
    assert list(read_source(source(kind="json", files=str(path)), skipped)) == ["a", "b"]
    assert describe_skipped(skipped) == "1 records whose text is missing, 2 records whose text is null"
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    skipped.clear()
    assert list(read_source(source(kind="parquet", files=str(tmp_path / "a.parquet")), skipped)) == ["a", "b"]
    assert skipped == {"null": 1}


def test_of_a_json_line_only_the_named_field_matters(tmp_path: Path) -> None:
    """Beyond the 10 MB from which `datasets` infers types, others may change theirs, or first appear."""
    path = tmp_path / "a.jsonl"
    filler = "x" * 1_100_000
    with path.open("w") as stream:
        for i in range(12):
            other = i if i < 11 else {"now": ["an", "object"]}
            late = {"late": None} if i == 11 else {}
            stream.write(json.dumps({"id": other, "filler": filler, "text": f"text {i}"} | late) + "\n")
    assert texts(kind="json", files=str(path)) == [f"text {i}" for i in range(12)]


def test_one_json_array_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n[\n  {"text": "a"},\n  {"text": "b\\u2028"}\n]\n')
    assert texts(kind="json", files=str(path)) == ["a", "b\u2028"]
    path.write_text('[{"txt": "a"}]')
    assert problem(kind="json", files=str(path)).endswith("no field 'text'; there are txt")


def test_csv_and_tsv(tmp_path: Path) -> None:
    csv, tsv = tmp_path / "a.csv", tmp_path / "a.tsv"
    csv.write_bytes('\ufeffid,text\r\n1,"one, ""two""\r\nthree"\r\n\r\n2,\n3\n4,v\u00e9\r\n'.encode())
    skipped: Counter[str] = Counter()
    assert list(read_source(source(kind="csv", files=str(csv)), skipped)) == ['one, "two"\nthree', "", "vé"]
    assert skipped == {"missing": 1, "empty": 1}
    tsv.write_bytes('text\tid\n"Hello," she said.\t1\n\u2028x\t2\n'.encode())
    assert texts(kind="tsv", files=str(tsv)) == ['"Hello," she said.', "\u2028x"]
    tsv.write_bytes("text\n".encode("latin-1") + "Þórr".encode("latin-1"))
    assert texts(kind="tsv", files=str(tsv), encoding="latin-1") == ["Þórr"]
    csv.write_text("id,text\n" + "1," + "x" * 1_000_000)
    assert [len(text) for text in texts(kind="csv", files=str(csv))] == [1_000_000]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("csv", "id;text\n1;a\n", ": no field 'text'; there are id;text"),
        ("csv", "id,text\n1,a,b\n", ", line 2: 3 fields, the first line names 2"),
        ("csv", 'id,text\n1,"a\nb', ", line 3: not CSV: unexpected end of data"),
        ("tsv", "id\ttext\n1\ta\n1\ta\tb\n", ", line 3: 3 fields, the first line names 2"),
    ],
)
def test_broken_rows(kind: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_text(content)
    assert problem(kind=kind, files=str(path)) == f"{path}{message}"


def test_a_folder_that_datasets_has_saved(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"text": ["a", None, "b"]})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([2])}).save_to_disk(tmp_path / "several")
    assert texts(kind="hub", dataset=str(tmp_path / "one")) == ["a", "b"]
    assert texts(kind="hub", dataset=str(tmp_path / "several"), split="test") == ["b"]
    assert "cannot be opened" in problem(kind="hub", dataset=str(tmp_path / "several"), split="other")


def test_the_revision_of_a_data_set_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *names, **options: asked.append(options) or datasets.Dataset.from_dict({"text": ["a"]}),
    )
    assert texts(kind="hub", dataset="some/data", revision="abc123") == ["a"]
    assert asked[0]["revision"] == "abc123"


def test_a_table_whose_column_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1]}), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    assert problem(kind="parquet", files=path) == f"{path}: field 'text' is int, not text"
    assert problem(kind="parquet", files=path, field="body") == f"{path}: no field 'body'; there are text"
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "b.parquet")
    assert texts(kind="parquet", files=str(tmp_path / "b.parquet")) == ["a", "b", "a"]


def test_a_thousand_files_cost_about_what_one_does(tmp_path: Path) -> None:
    """It was 42 ms a file, and more where a host did not answer."""
    for i in range(1000):
        (tmp_path / f"{i:03}.txt").write_text(f"text {i}\n")
    started = time.perf_counter()
    assert texts(kind="text", files=str(tmp_path / "*.txt")) == [f"text {i}" for i in range(1000)]
    assert time.perf_counter() - started < 5


def test_line_ends_and_marks_inside_records(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    cases = shared_data("cases")
    split = sentence_splitter("en")
    for kind, name in (("text", "ends_inside_a_line.txt"), ("json", "ends_inside_a_line.jsonl")):
        found = texts(kind=kind, files=str(cases / "lines" / name), lines="sentence")
        sentences = [sentence for text in found for sentence in split(text, "sentence")]
        assert len(sentences) == 5
        assert sum(len(sentence.split()) for sentence in sentences) == 24
    assert texts(kind="text", files=str(cases / "bom" / "concatenated.txt")) == ["Otters swim .", "Herons wait ."]


def test_records_with_unusual_text(tmp_path: Path) -> None:
    values = ["", "a\u2028b", "x" * 100_000, "emoji 😀", "tab\tand \\ backslash"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    assert texts(kind="json", files=str(tmp_path / "a.jsonl")) == values
