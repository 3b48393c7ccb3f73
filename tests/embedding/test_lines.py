"""What is embedded is cut, decoded and cleaned as what is prepared."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pretrain.data.documents import sentence_splitter
from pretrain.embed import embed
from pretrain.embedding.embedder import Embedder
from pretrain.errors import DataError


def vectors(path: Path) -> list[np.ndarray]:
    with h5py.File(path) as file:
        return [file[str(line)][:] for line in range(len(file) - 1)]


def test_lines_end_and_marks_go_as_when_text_is_prepared(embedder: Embedder, folder: Path, tmp_path: Path) -> None:
    text = "\ufeffthe cat\u2028sat\rthe\u0085mat\f.\r\n\ufeffa\x0bdog\n"
    (tmp_path / "in.txt").write_bytes(text.encode())
    assert embed(folder, tmp_path / "in.txt", tmp_path / "out.h5", layers=0) == 3
    found = vectors(tmp_path / "out.h5")
    lines = sentence_splitter("en")(text, "sentence")
    assert lines == ["the cat sat", "the mat .", "a dog"]
    for ours, theirs in zip(found, embedder.encode(lines, layers=0), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_raw_text_is_read_as_it_is_trained_on(embedder: Embedder) -> None:
    raw = "\ufeffThe cat\fsat\u2028on\u0085the\x0bmat.\n\ufeffIt slept."
    (trained,) = sentence_splitter("en")(raw.replace("\n", " ").replace("\ufeff", ""), "sentence")
    assert embedder.words(raw) == embedder.words(trained)
    assert len(embedder.words(raw)) >= 8
    np.testing.assert_array_equal(embedder.encode(raw), embedder.encode(trained))


def test_half_a_surrogate_pair_is_the_same_unreadable_character(embedder: Embedder) -> None:
    np.testing.assert_array_equal(embedder.encode("the \ud800 cat"), embedder.encode("the \ufffd cat"))
    words = embedder.encode([["the", "c\udc00t"]], is_split_into_words=True)[0]
    np.testing.assert_array_equal(words, embedder.encode([["the", "c\ufffdt"]], is_split_into_words=True)[0])


def test_a_line_that_is_no_text_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"in\.txt, line 2: byte 0xe9 is not UTF-8: .*iconv -f LATIN1 -t UTF-8"):
        embed(folder, tmp_path / "in.txt", tmp_path / "out.h5")


def test_the_cases(shared_data: Callable[[str], Path], folder: Path, tmp_path: Path) -> None:
    assert embed(folder, shared_data("cases/bom/first_line.txt"), tmp_path / "a.h5", layers=0) == 2
    first, second = vectors(tmp_path / "a.h5")
    np.testing.assert_array_equal(first, second)
    assert embed(folder, shared_data("cases/lines/ends_inside_a_line.txt"), tmp_path / "b.h5", layers=0) == 5
