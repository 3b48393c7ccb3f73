"""The verb and its file, read back as its readers do."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import pretrain.embed
from pretrain.embed import embed, parse_layers
from pretrain.embedding.embedder import Embedder
from pretrain.embedding.writer import Hdf5Writer
from pretrain.errors import ConfigError, DataError, ExportError


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
    (tmp_path / "text.txt").write_text("cat \x00\ncat\n\x00 \x00\n")
    with caplog.at_level(logging.WARNING):
        embed(folders["bert"], tmp_path / "text.txt", tmp_path / "o.h5", is_split_into_words=True, batch_size=1)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("3 of 5 words have no piece")


def test_an_empty_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    assert embed(folder, tmp_path / "text.txt", tmp_path / "out.hdf5") == 0
    assert read(tmp_path / "out.hdf5") == ([], {})


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        (b"cat\nc\xe4t\n", {}, DataError, r"text\.txt, line 2: byte 0xe4 is not UTF-8: "),
        (b".\n" * 99 + b". " * 70, {}, DataError, r"text\.txt, line 100: 72 pieces, .*at most 64"),
        (None, {}, DataError, r"text\.txt cannot be read: No such file"),
        (b"cat\n", {"layers": 7}, ConfigError, "--layers: layer 7 does not exist: the model has 4 layers"),
    ],
)
def test_mistakes_are_named_and_leave_no_file(
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
