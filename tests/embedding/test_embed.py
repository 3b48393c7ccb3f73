"""The verb and its file, read back as its readers do."""

import gzip
import io
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import pretrain.embed
from pretrain.embed import embed, parse_layers
from pretrain.embedding.embedder import Embedder
from pretrain.embedding.writer import STEP, Hdf5Writer
from pretrain.errors import ConfigError, DataError, ExportError
from tests.test_imports import BLOCK, python


@pytest.fixture
def text(tmp_path: Path, sentences: list[str]) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes("".join(f"{line}\n" for line in sentences).encode())
    return path


def read(path: Path) -> tuple[list[np.ndarray], dict[str, str]]:
    """Vectors by line, and `sentence_to_index`."""
    with h5py.File(path) as file:
        assert file["sentence_to_index"].shape == (1,)
        index = json.loads(file["sentence_to_index"][0])
        return [file[str(line)][:] for line in range(len(file) - 1)], index


@pytest.mark.parametrize("options", [{}, {"layers": -1}, {"layers": [0], "output": "sentence"}, {"output": "pieces"}])
def test_lines_to_vectors(
    options: dict[str, Any], embedder: Embedder, folder: Path, text: Path, sentences: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "vectors.hdf5"
    assert embed(folder, text, out, batch_size=2, **options) == len(sentences)
    vectors, index = read(out)
    expected = embedder.encode(sentences, **{"layers": "all"} | options)
    for ours, theirs in zip(vectors, expected, strict=True):
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        assert np.allclose(ours, theirs, atol=1e-5)
    assert index == {sentence: str(line) for line, sentence in enumerate(sentences)}
    assert [path.name for path in out.parent.iterdir()] == ["vectors.hdf5"]


def test_more_lines_than_are_held_at_once(
    embedder: Embedder, folder: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain.embed, "BATCHES_AT_ONCE", 1)
    lines = sentences * 3
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\r\n".join(lines).encode())))
    assert embed(folder, "-", tmp_path / "out.h5", layers=1, batch_size=2) == 21
    vectors, index = read(tmp_path / "out.h5")
    assert index[sentences[0]] == "14"  # equal lines: the last one's number
    for ours, theirs in zip(vectors, embedder.encode(lines, layers=1), strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)


def test_words_separated_by_white_space(embedder: Embedder, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("don't  stop-gap\n\n cat \n")
    assert embed(folder, tmp_path / "text.txt", tmp_path / "out.hdf5", layers=-1, is_split_into_words=True) == 3
    vectors, index = read(tmp_path / "out.hdf5")
    assert [len(vector) for vector in vectors] == [2, 0, 1]
    assert index == {"don't  stop-gap": "0", "": "1", "cat": "2"}
    expected = embedder.encode([["don't", "stop-gap"], [], ["cat"]], is_split_into_words=True)
    assert all(np.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(vectors, expected, strict=True))


def test_words_without_piece_are_counted_once(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain.embed, "BATCHES_AT_ONCE", 1)
    (tmp_path / "text.txt").write_text("cat \x01\ncat\n\x01 \x01\n")
    with caplog.at_level(logging.WARNING):
        embed(folders["bert"], tmp_path / "text.txt", tmp_path / "o.h5", is_split_into_words=True, batch_size=1)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("3 of 5 words have no piece")


def test_an_empty_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    assert embed(folder, tmp_path / "text.txt", tmp_path / "out.hdf5") == 0
    assert read(tmp_path / "out.hdf5") == ([], {})


BEFORE_A_MISTAKE: list[tuple[bytes | None, dict[str, Any], type[Exception], str]] = [
    (None, {}, DataError, r"text\.txt: no such file"),
    (b"c\xe4t\n", {}, DataError, r"text\.txt, line 1: byte 0xe4 is not UTF-8"),
    (b"PK\x03\x04", {}, DataError, r"text\.txt: not text but a zip archive"),
    (b"cat\n", {"encoding": "utf-9"}, ConfigError, "--encoding is 'utf-9', which is not a text encoding"),
    (b"cat\n", {"layers": 7}, ConfigError, "--layers: layer 7 does not exist: the model has 4 layers"),
    (b"cat\n", {"checkpoint": "7"}, ConfigError, "not a run folder, so that there is no checkpoint 7"),
    (b". " * 70, {}, DataError, r"text\.txt, line 1: 72 pieces, .*at most 64: cut it, or give --long split, tr"),
]


@pytest.mark.parametrize(("content", "options", "error", "message"), BEFORE_A_MISTAKE)
def test_mistakes_before_anything_is_written_leave_no_file(
    content: bytes | None, options: dict[str, Any], error: type[Exception], message: str,
    folders: dict[str, Path], tmp_path: Path,
) -> None:  # fmt: skip
    source = tmp_path / "text.txt"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(error, match=message) as raised:
        embed(folders["bert"], source, tmp_path / "out.hdf5", batch_size=8, **options)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.glob("out*")) == []


def test_a_model_that_is_not_there(text: Path, tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "none", ": no such folder"), (text, " is a file, not a model folder")):
        with pytest.raises(ExportError, match=f"{path}{problem}"):
            embed(path, text, tmp_path / "out.hdf5")


@pytest.mark.parametrize("batches_at_once", [1, 8])  # line 100 alone among those held at once, and with others
@pytest.mark.parametrize(
    ("line", "message"),
    [(b". " * 70, r"text\.txt, line 100: 72 pieces"), (b"c\xe4t", r"text\.txt, line 100: byte 0xe4 is not UTF-8")],
)
def test_what_was_written_before_a_mistake_is_kept(
    line: bytes, message: str, batches_at_once: int, folders: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(pretrain.embed, "BATCHES_AT_ONCE", batches_at_once)
    source, out = tmp_path / "text.txt", tmp_path / "out.hdf5"
    source.write_bytes(b"the cat\n" * 99 + line + b"\ncat\n")
    with pytest.raises(DataError, match=message):
        embed(folders["bert"], source, out, batch_size=9, layers=-1)
    assert not out.exists()
    vectors, index = read(tmp_path / "out.hdf5.partial")
    assert index == {"the cat": "98"} and len(vectors) == 99
    expected = Embedder.load(folders["bert"], device="cpu").encode("the cat")
    assert all(np.allclose(vector, expected, atol=1e-5) for vector in vectors)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"{out}.partial keeps what was written: the vectors of the first 99 texts"
    # and is not written over by the next start
    with pytest.raises(ExportError, match=r"out\.hdf5\.partial exists already, .*: move or remove it"):
        embed(folders["bert"], source, out)
    assert len(read(tmp_path / "out.hdf5.partial")[0]) == 99


def test_what_was_written_before_an_interruption_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "out.hdf5"
    vectors = np.ones((2, 3), np.float32)

    class Interrupted(dict[str, str]):
        """Of the last text the vectors are written, but it is not counted."""

        def __setitem__(self, key: str, value: str) -> None:
            if key == "last":
                raise KeyboardInterrupt
            super().__setitem__(key, value)

    with pytest.raises(KeyboardInterrupt), Hdf5Writer(path) as writer:
        writer._index = Interrupted()
        for text in ("first", "second", "last"):
            writer.write(text, vectors)
    written, index = read(tmp_path / "out.hdf5.partial")
    assert len(written) == 2 and index == {"first": "0", "second": "1"}
    assert caplog.records[0].getMessage().endswith("the vectors of the first 2 texts")


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
import pretrain.embedding.writer
from pretrain.cli import Commands
import click
pretrain.embedding.writer.STEP = 1 << 16
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
written = []

@click.command()
def write() -> None:
    with pretrain.embedding.writer.Hdf5Writer(Path(sys.argv[1])) as writer:
        while True:
            writer.write("é" * 10, np.full((2, 100, 3), writer.count, np.float32))

main = Commands(commands=[write])
main(["write"])
"""


def test_a_full_disk_is_a_line_and_what_was_written_is_kept(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's."""
    out = tmp_path / "out.hdf5"
    done = subprocess.run([sys.executable, "-c", FULL, str(out)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr[-2000:]
    kept, problem = done.stderr.splitlines()
    assert problem == f"error: {out} cannot be written: File too large"
    vectors, index = read(tmp_path / "out.hdf5.partial")
    assert kept == f"{out}.partial keeps what was written: the vectors of the first {len(vectors)} texts"
    assert index == {"é" * 10: str(len(vectors) - 1)}
    assert 600 < len(vectors) < 1300  # 2,400 bytes each, of three million
    assert all(np.array_equal(v, np.full((2, 100, 3), number)) for number, v in enumerate(vectors))


def test_writing_a_text_looks_at_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 counts and lists what a file holds one by one: asked at every text, that is quadratic."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("all that was written was looked at")

    with Hdf5Writer(tmp_path / "out.hdf5") as writer, monkeypatch.context() as patch:
        for name in ("__len__", "__iter__"):
            patch.setattr(h5py.Group, name, refuse)
        for line in range(3):
            writer.write(f"line {line}", np.ones((1, 3), np.float32))
    assert len(read(tmp_path / "out.hdf5")[1]) == 3


def test_few_vectors_are_held_in_memory(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    encode = Embedder.encode_fitted

    def count(self: Embedder, texts: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append([len(text.pieces.tokens) for text in texts])
        return encode(self, texts, *arguments, **options)

    monkeypatch.setattr(Embedder, "encode_fitted", count)
    monkeypatch.setattr(pretrain.embed, "BYTES_AT_ONCE", 4 * 24 * 4 * 30)  # 30 pieces, of 4 layers of 24 numbers
    (tmp_path / "text.txt").write_text(". . . .\n" * 12 + ". " * 60 + "\n\n")
    assert embed(folders["bert"], tmp_path / "text.txt", tmp_path / "out.hdf5") == 14
    assert sizes == [[6] * 5, [6] * 5, [6] * 2, [62], [2]]


@pytest.mark.parametrize(("long", "words"), [("split", 70), ("truncate", 62), ("skip", 0)])
def test_long_lines(
    long: Any, words: int, folders: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(pretrain.embed, "BATCHES_AT_ONCE", 1)
    lines = ["cat", ". " * 70, "", ". " * 70, "dog"]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    assert embed(folders["bert"], tmp_path / "text.txt", tmp_path / "out.hdf5", long=long, batch_size=2) == 5
    vectors, index = read(tmp_path / "out.hdf5")
    assert [vector.shape[1] for vector in vectors] == [1, words, 0, words, 1]
    assert index[". " * 69 + "."] == "3"
    expected = Embedder.load(folders["bert"], device="cpu").encode(lines, layers="all", long=long)
    assert all(np.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(vectors, expected, strict=True))
    assert len(caplog.records) == 2  # the verb's and encode's, each for all its texts
    assert caplog.records[0].getMessage().startswith("texts of more pieces than the model reads (64): 2 of 5, ")


@pytest.mark.parametrize(
    ("content", "encoding", "name"),
    [
        ("cat\r\nd\u2028o\x0cg\x85\rcafé\n\n".encode(), "utf-8", "text.txt"),
        ("\ufeffcat\nd\u2028o\x0cg\x85\n\ufeffcafé\n\n".encode(), "utf-8", "text.txt"),
        ("cat\nd\u2028o\x0cg\x85\ncafé\n\n".encode("utf-16"), "utf-16", "text.txt"),
        (gzip.compress("cat\nd\u2028o\x0cg\x85\ncafé\n\n".encode()), "utf-8", "text.txt.gz"),
    ],
)
def test_lines_are_those_of_prepare(
    content: bytes, encoding: str, name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert embed(folders["elmo"], tmp_path / name, tmp_path / "out.hdf5", layers=-1, encoding=encoding) == 4
    vectors, index = read(tmp_path / "out.hdf5")
    assert index == {"cat": "0", "d\u2028o\x0cg": "1", "café": "2", "": "3"}
    embedder = Embedder.load(folders["elmo"], device="cpu")
    for ours, expected in zip(vectors, (["cat"], ["d", "o", "g"], ["café"]), strict=False):
        assert np.allclose(ours, embedder.encode(expected, is_split_into_words=True), atol=1e-5)


EARLY = """
import sys, traceback
from pretrain.cli import main
for arguments in {cases!r}:
    try:
        main(["embed", *arguments])
    except SystemExit as end:
        assert end.code == 2, arguments
    assert "torch" not in sys.modules, arguments
"""


def test_mistakes_are_said_before_torch_is_imported(folders: dict[str, Path], text: Path, tmp_path: Path) -> None:
    model, out = str(folders["bert"]), str(tmp_path / "out.hdf5")
    cases = [
        [model, str(text), "--out", out, "--layers", "top"],
        [model, str(text), "--out", out, "--output", "vectors"],
        [model, str(text), "--out", out, "--long", "cut"],
        [model, str(text), "--out", out, "--encoding", "utf-9"],
        [model, str(text), "--out", str(tmp_path / "out.npz")],
        [model, str(text), "--out", str(text.with_suffix(".h5"))],
        [model, str(tmp_path / "none.txt"), "--out", out],
        [str(tmp_path / "none"), str(text), "--out", out],
    ]
    text.with_suffix(".h5").touch()
    code = EARLY.format(cases=cases)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]
    named = ["--layers", "--output", "--long", "--encoding", "out.npz", "exists", "none.txt: no such", "none: no such"]
    assert all(name in error for name, error in zip(named, errors, strict=True)), errors


def test_without_the_training_packages(folders: dict[str, Path], text: Path, tmp_path: Path) -> None:
    def call(model: Path) -> subprocess.CompletedProcess[str]:
        arguments = ["embed", str(model), str(text), "--out", str(tmp_path / f"{model.name}.h5")]
        return python(f"{BLOCK}\nfrom pretrain.cli import main\nmain({arguments!r})")

    done = call(folders["bert"])
    assert done.returncode == 0, done.stderr
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    done = call(tmp_path / "run")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path / 'run' / 'config.yaml'}: not a config")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_written_before_a_signal_is_kept(
    number: signal.Signals, folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.hdf5"
    partial = tmp_path / "out.hdf5.partial"
    command = [sys.executable, "-m", "pretrain", "embed", str(folders["elmo"]), "-", "--out", str(out)]
    with subprocess.Popen(
        [*command, "--batch-size", "1"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write("the cat\n" * 20)
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not partial.exists() or partial.stat().st_size < STEP:  # the first text takes so much of the disk
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(60) == 130
        stderr = process.stderr.read()
    vectors, _ = read(partial)
    assert 1 <= len(vectors) <= 16 and not out.exists()
    assert f"{partial} keeps what was written: the vectors of the first {len(vectors)} texts" in stderr
    assert "Traceback" not in stderr


def test_another_kind_of_file(folder: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"out\.npz: its name must end in \.hdf5 or \.h5"):
        embed(folder, text, tmp_path / "out.npz")


def test_a_file_that_exists_is_kept(folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.hdf5"
    out.write_text("precious")
    with pytest.raises(ExportError, match=r"out\.hdf5 exists already"):
        embed(folder, text, out)
    assert out.read_text() == "precious"
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"out\.hdf5 cannot be written: (File exists|Not a directory)"):
        embed(folder, text, tmp_path / "file" / "out.hdf5")


def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.hdf5"
    with Hdf5Writer(path) as writer:
        writer.write('"quoted/é\u2028"', np.ones((2, 3), np.float32))
        assert not path.exists()
    vectors, index = read(path)
    assert np.array_equal(vectors[0], np.ones((2, 3)))
    assert index == {'"quoted/é\u2028"': "0"}


def test_layers_of_the_command_line() -> None:
    assert parse_layers("all") == "all"
    assert parse_layers("-1") == -1
    assert parse_layers("0,-2") == [0, -2]
    for wrong in ("", "top", "1,", "0.5"):
        with pytest.raises(ConfigError, match="--layers is "):
            parse_layers(wrong)
