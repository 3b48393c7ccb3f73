"""Files listed and opened: nothing that matches is left out, compressed and packed files are read, no host is asked."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pretrain.data.files import list_files, open_files
from pretrain.data.text import read_lines
from pretrain.errors import DataError
from tests.tiny import REPOSITORY, clean_environment


def write(path: Path, content: bytes = b"x\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(folder: Path, pattern: str) -> list[str]:
    return [file.name for file in list_files(str(folder / pattern))]


def lines_of(path: Path) -> dict[str, list[str]]:
    return {name.removeprefix(str(path)): list(read_lines(file, name)) for name, file in open_files(str(path))}


def problem(pattern: str) -> str:
    with pytest.raises(DataError) as caught:
        for name, file in open_files(pattern):
            list(read_lines(file, name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_file_that_matches_is_left_out(tmp_path: Path) -> None:
    for name in ("a.md", "README.md", "__old__/b.md", "_c/d.md", ".scan/e.md", ".f.md", "config.json", "z/z/g.md"):
        write(tmp_path / name)
    assert names(tmp_path, "**/*.md") == ["README.md", "__old__/b.md", "_c/d.md", "a.md", "z/z/g.md"]
    assert names(tmp_path, "*.json") == ["config.json"]
    assert names(tmp_path, "*/b.md") == ["__old__/b.md"]
    assert names(tmp_path, ".scan/*.md") == ["e.md"], "hidden, but named"
    assert names(tmp_path, ".*.md") == [".f.md"]
    assert names(tmp_path, "_c/d.md") == ["d.md"]


def test_a_file_has_the_pattern_that_found_it_and_a_name_that_moves_with_it(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a" / "b.txt")
    pattern = str(tmp_path / "in" / "*" / "*.txt")
    assert list_files((pattern, str(tmp_path / "in" / "a" / "b.txt"))) == [
        (pattern, "a/b.txt", str(tmp_path / "in" / "a" / "b.txt"))
    ]


def test_where_a_relative_path_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "sub" / "a.txt")
    monkeypatch.chdir(tmp_path)
    assert list_files("sub/*.txt") == [("sub/*.txt", "a.txt", str(tmp_path / "sub" / "a.txt"))]
    assert problem("none/*.txt") == f"none/*.txt: no such file (looked for in {tmp_path})"
    assert problem("none.txt") == f"none.txt: no such file (looked for in {tmp_path})"
    assert problem("*") == f"*: only folders, such as sub: name their files (looked for in {tmp_path})"
    assert problem("sub") == "sub: a folder: name its files, as in sub/*.txt"
    assert problem(f"{tmp_path}/none.txt") == f"{tmp_path}/none.txt: no such file"


def test_urls_are_listed_alike(tmp_path: Path) -> None:
    tmp_path = tmp_path / ".here"
    for name in ("README.md", "__old__/b.md", ".scan/e.md", "a.md"):
        write(tmp_path / name)
    url = f"file://{tmp_path}"
    assert [file.name for file in list_files(f"{url}/**/*.md")] == ["README.md", "__old__/b.md", "a.md"]
    assert [file.name for file in list_files(f"{url}/.scan/*.md")] == ["e.md"]
    assert [name for name, _ in open_files(f"{url}/*.md")] == [f"{url}/README.md", f"{url}/a.md"]
    assert problem(f"{url}/*.txt") == f"{url}/*.txt: no such file"
    assert problem(f"{url}/none.txt") == f"{url}/none.txt: no such file"
    assert "cannot be" in problem("nowhere://host/*.txt")


def zstandard(content: bytes) -> bytes:
    compressed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return compressed


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard)],
)
def test_compressed_files_also_of_several_members(
    suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    long = "lüng\n" * 50_000
    path = write(tmp_path / f"a.txt{suffix}", compress(b"one\n") + compress(long.encode()) + compress(b"end"))
    assert lines_of(path) == {"": ["one", *["lüng"] * 50_000, "end"]}
    path.write_bytes(compress(b"x y z" * 1000)[:-9])
    assert problem(str(path)).startswith(f"{path}: cannot be read: ")


def test_a_zip_is_its_files(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("d0.txt", "in/d1.txt", "__MACOSX/d0.txt", "in/.hidden"):
            archive.writestr(name, f"text of {name}\n")
        archive.writestr("d2.txt.gz", gzip.compress(b"packed\n"))
        archive.mkdir("empty")
    assert lines_of(path) == {
        "/d0.txt": ["text of d0.txt"],
        "/in/d1.txt": ["text of in/d1.txt"],
        "/d2.txt.gz": ["packed"],
    }
    path.write_bytes(path.read_bytes()[:-30])
    assert problem(str(path)).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_a_tar_is_its_files(suffix: str, tmp_path: Path) -> None:
    for name in ("d0.txt", "in/d1.txt"):
        write(tmp_path / name, f"text of {name}\n".encode())
    path = tmp_path / f"a.{suffix}"
    mode = {"tar": "w", "tgz": "w:gz"}.get(suffix) or f"w:{suffix.removeprefix('tar.')}"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(tmp_path / "d0.txt", "./d0.txt")
        archive.add(tmp_path / "in", "in")
    assert lines_of(path) == {"/./d0.txt": ["text of d0.txt"], "/in/d1.txt": ["text of in/d1.txt"]}
    path.write_bytes(path.read_bytes()[:60])
    assert problem(str(path)).startswith(f"{path}: cannot be read: ")


def test_what_is_not_unpacked_is_told(tmp_path: Path) -> None:
    assert problem(str(write(tmp_path / "a.7z"))).endswith("a.7z: unpack it first: such files are not read")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("c.tar.gz", b"")
    assert problem(str(tmp_path / "b.zip")).endswith("b.zip: c.tar.gz is an archive within an archive: unpack it")


def test_the_cases(shared_data: Callable[[str], Path]) -> None:
    cases = shared_data("cases")
    assert names(cases / "tree", "corpus/**/*.md") == ["README.md", "__old__/b.md", "a.md"]
    assert names(cases / "tree", "records/*.json") == ["a.json", "config.json"]
    for archive in ("five_texts.zip", "t.tar.gz"):
        assert len(lines_of(cases / "archives" / archive)) == 5
    assert len(lines_of(cases / "archives" / "records.jsonl.zst")[""]) == 30
    assert len(lines_of(cases / "archives" / "several_members.txt.gz")[""]) > 1


OFFLINE = """
import os, socket, sys
def refuse(*arguments, **options):
    os.write(2, b"a host was asked\\n")
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = refuse
from pydantic import TypeAdapter
from pretrain.config.data import AnyKind
from pretrain.data.sources import read_source
folder = sys.argv[1]
for kind, name in (("text", "*.txt"), ("json", "*.jsonl"), ("parquet", "*.parquet"), ("arrow", "*.arrow")):
    texts = list(read_source(TypeAdapter(AnyKind).validate_python({"kind": kind, "files": f"{folder}/{name}"})))
    assert texts == ["text"], texts
for data_set in ("saved", "layout"):
    texts = list(read_source(TypeAdapter(AnyKind).validate_python({"kind": "hub", "dataset": f"{folder}/{data_set}"})))
    assert texts == ["text"], texts
"""


def test_local_files_ask_no_host(tmp_path: Path) -> None:
    import datasets
    import pyarrow.parquet as pq

    table = pa.table({"text": ["text"]})
    write(tmp_path / "a.txt", b"text")
    write(tmp_path / "a.jsonl", b'{"text": "text"}')
    (tmp_path / "layout").mkdir()
    for path in (tmp_path / "a.parquet", tmp_path / "layout" / "train.parquet"):
        pq.write_table(table, path)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    datasets.DatasetDict({"train": datasets.Dataset(table)}).save_to_disk(tmp_path / "saved")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)],
        cwd=REPOSITORY,
        env=clean_environment() | {"HF_HUB_OFFLINE": "0", "HOME": os.fspath(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "a host was asked" not in done.stderr


def test_a_file_that_links_lead_to_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("One.")
    (tmp_path / "d" / "self").symlink_to(".")
    (tmp_path / "again.txt").symlink_to("d/a.txt")
    with caplog.at_level("INFO"):
        (found,) = list_files(str(tmp_path / "**" / "*.txt"))
    assert Path(found.path).resolve() == tmp_path / "d" / "a.txt"
    assert "links to files that it matches anyway are left out" in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("\ufeffcat".encode("utf-16-le"), "its byte order mark is that of utf-16: name that encoding"),
        ("\ufeff日本語日本語".encode("utf-16-le"), "its byte order mark is that of utf-16"),
        ("\ufeffcat".encode("utf-32-le"), "its byte order mark is that of utf-32"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not text but an image"),
    ],
)
def test_what_is_no_utf_8_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=says):
        for name, file in open_files(str(tmp_path / "a.txt")):
            list(read_lines(file, name))
