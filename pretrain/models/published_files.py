"""Files of published model folders, which may come from anyone: told apart, and bounded, before they are read."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pretrain.errors import ExportError

_TENSORFLOW = ("*.ckpt*.index", "*.index", "*.data-?????-of-?????", "*.ckpt*.meta")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ExportError where there is none."""
    content = read_json_value(path)
    if not isinstance(content, dict):
        raise ExportError(f"{path} does not hold a JSON object")
    return content


def read_json_value(path: Path) -> Any:
    """What a JSON file holds; raises ExportError where it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing") from None
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is {identify(path) or f'not JSON: {error}'}") from error


def identify(path: Path) -> str | None:
    """What a file is that was saved under the name of another, and what to do; None where it is nothing known."""
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "empty: download it again"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned, or download the file"
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not the file that was to be downloaded: download it again"
    if text.startswith((b"<?xml", b"<error")):
        return "XML, not the file that was to be downloaded: download it again"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")):
        return "a compressed archive: unpack it"
    return None


def find_tensorflow_checkpoint(folder: Path) -> str | None:
    """A line about the TensorFlow checkpoint that a folder holds; None where it holds none."""
    for pattern in _TENSORFLOW:
        if found := sorted(folder.glob(pattern)):
            return f"{folder} holds a TensorFlow checkpoint ({found[0].name}), which is not read: convert it first"
    return None


def resolve_inside(folder: Path, name: object, source: Path) -> Path:
    """The file `name` of a folder; `source` is the file that names it. Raises ExportError for one that lies elsewhere.

    A link may lead to the blobs of the hub's cache, in which a snapshot is a folder of such links.
    """
    if not isinstance(name, str):
        raise ExportError(f"{source} names {name!r} where a file's name belongs")
    path = folder / name
    roots = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        roots.append(folder.resolve().parents[1] / "blobs")
    lexically_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    try:
        inside = lexically_inside and any(path.resolve().is_relative_to(root) for root in roots)
    except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL in the name
        inside = False
    if not inside:
        raise ExportError(f"{source} names {name!r}, which lies outside {folder}: it is not read")
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of one that `torch.save` wrote, by name; nothing else is unpickled.

    What a file says of its sizes is believed only as far as the file is long. Raises ExportError.
    """
    if not path.is_file():
        raise ExportError(f"{path} is missing")
    if (what := identify(path)) is not None:
        raise ExportError(f"{path} is {what}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch doubts pickles of any other protocol than its own
            return load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except ExportError:
        raise
    except Exception as error:  # what a damaged or hostile pickle raises is anything
        raise ExportError(f"{path} cannot be read: {_reason(error)}") from error


def _unpickle(path: Path) -> dict[str, Tensor]:
    # on the meta device first, where nothing is allocated
    declared = torch.load(path, map_location="meta", weights_only=True)
    if not isinstance(declared, dict):
        raise ExportError(f"{path} holds a {type(declared).__name__}, not tensors by name")
    storages: dict[int, int] = {}
    for name, tensor in declared.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ExportError(f"{path} holds a {type(tensor).__name__} as {name!r}, where tensors by name are wanted")
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ExportError(f"{path}: {name} is {list(tensor.shape)}, more values than are stored of it")
    # files of early versions do not say which tensors share a storage: tied weights are counted twice
    if sum(storages.values()) > 2 * path.stat().st_size:
        raise ExportError(
            f"{path} is cut short or malformed: its tensors take {sum(storages.values()):,} bytes, "
            f"the file has {path.stat().st_size:,}"
        )
    loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _reason(error: Exception) -> str:
    """Why a file of tensors cannot be read, without the advice to unpickle whatever it holds."""
    text = str(error)
    if found := re.search(r"(?:GLOBAL|global:?) ([\w.]+\.[\w.]+)", text):
        return f"it holds more than tensors ({found[1]}), which is not unpickled; ask for it as model.safetensors"
    if "weights_only" in text or not text:
        return "it is no file of tensors, or is damaged; download it again"
    details = "" if isinstance(error, OSError) else f" ({text.splitlines()[0]})"  # those of reading beyond the end
    return f"it is damaged or cut short{details}; download it again"
