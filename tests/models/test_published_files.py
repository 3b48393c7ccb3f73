"""Files of model folders from anyone: called what they are, and read within their folder and their length."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretrain.errors import ExportError
from pretrain.models.published_files import (
    find_tensorflow_checkpoint,
    identify,
    read_json,
    read_tensors,
    resolve_inside,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0f1e2d\nsize 440473133\n"
KINDS = [
    (POINTER, "is a Git LFS pointer"),
    (b"<!DOCTYPE html><html>Not found</html>", "is an HTML page"),
    (b"\xef\xbb\xbf\n  <HTML lang=en>", "is an HTML page"),
    (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is XML"),
    (b"", "is empty"),
    (b"\x1f\x8b\x08rest", "is a compressed archive"),
]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
@pytest.mark.parametrize(("content", "message"), KINDS)
def test_files_that_are_something_else(content: bytes, message: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ExportError, match=f"{name} {message}") as raised:
        read_json(path) if path.suffix == ".json" else read_tensors(path)
    assert "\n" not in str(raised.value)


class Opens:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, ("unpickled",)


def _saved(content: object) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


def _cut(path: Path) -> None:
    torch.save({"a": torch.randn(5000)}, path)
    path.write_bytes(path.read_bytes()[:9000])


def _cut_in_first_format(path: Path) -> None:
    torch.save({"a": torch.randn(5000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:9000])


def _false_size(path: Path) -> None:
    """A file of the first format that says it holds 2**31 - 1 numbers."""
    torch.save({"a": torch.zeros(77)}, path, _use_new_zipfile_serialization=False)
    said = pickle.dumps(77, 2)[2:4]
    path.write_bytes(path.read_bytes().replace(said, b"J\xff\xff\xff\x7f"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_saved({"a": Opens()}), r"holds more than tensors \((posix|nt|os).mkdir\), which is not unpickled"),
        (_saved({"a": torch.nn.Linear(2, 2)}), "holds more than tensors .*Linear"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "no file of tensors|holds a int"),
        (lambda path: path.write_bytes(os.urandom(300)), "no file of tensors|damaged"),
        (_saved([torch.ones(2)]), "holds a list, not tensors by name"),
        (_saved({"model": {"a": torch.ones(2)}}), "holds a dict as 'model', where tensors by name are wanted"),
        (_saved({"a": torch.zeros(1).expand(10**6, 10**6)}), r"a is \[1000000, 1000000\], more values than are stored"),
        (_cut, "damaged or cut short"),
        (_cut_in_first_format, "cut short"),
        (_false_size, "cut short, or false|damaged"),
    ],
)
def test_pickles(
    write: Callable[[Path], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    write(path)
    with pytest.raises(ExportError, match=message) as raised:
        read_tensors(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    assert "weights_only" not in str(raised.value), "advice to unpickle whatever it holds"
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_read(zipped: bool, tmp_path: Path) -> None:
    """Shared memory and views too."""
    tensor = torch.arange(6.0)
    held = {"a": tensor, "b": tensor.view(2, 3).T, "c": torch.arange(4)[None].half()}
    torch.save(held, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    read = read_tensors(tmp_path / "x.bin")
    assert read.keys() == held.keys() and all(torch.equal(read[name], held[name]) for name in held)


def test_safetensors_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    assert read_tensors(path)["a"].shape == (1000,)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ExportError, match=r"model.safetensors cannot be read: it is damaged or cut short"):
        read_tensors(path)
    with pytest.raises(ExportError, match=r"nothing.bin is missing"):
        read_tensors(tmp_path / "nothing.bin")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "link", "linked/secret", "loop", "\0", 3, None, ["a"]]
)
def test_names_that_leave_the_folder(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(ExportError, match=r"index.json names"):
        resolve_inside(folder, name, folder / "index.json")


def test_names_within_the_folder(tmp_path: Path) -> None:
    """Links within it, and those of the hub's cache to its blobs, are its own; the folder itself may be a link."""
    snapshot = tmp_path / "models--x" / "snapshots" / "0f1e"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "models--x" / "blobs" / "abc"
    blob.parent.mkdir()
    blob.write_text("x")
    (snapshot / "shard").symlink_to("../../blobs/abc")
    (snapshot / "inner").mkdir()
    (snapshot / "alias").symlink_to("inner")
    (tmp_path / "here").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "here"):
        for name in ("shard", "alias", "inner", ""):
            assert resolve_inside(folder, name, folder / "index.json") == folder / name


def test_tensorflow_checkpoints(tmp_path: Path) -> None:
    assert find_tensorflow_checkpoint(tmp_path) is None
    for name in ("model.ckpt-10.data-00000-of-00001", "model.ckpt-10.index"):
        (tmp_path / name).write_text("x")
        assert f"({name})" in str(find_tensorflow_checkpoint(tmp_path))


def test_vocabularies_begin_with_signs_too(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("</S>\n<S>\n<UNK>\n")
    assert identify(tmp_path / "vocab.txt") is None
