"""A prepared folder, on disk or on an object store."""

import contextlib
import hashlib
import io
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.errors import DataError

UNFINISHED = "unfinished"
"""The file that says that a folder is ours to empty."""


class Store:
    """Files of a prepared folder by relative name; `url` is a path or an fsspec URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.is_local = "://" not in url
        self._scratch: Path | None = None

    @property
    def absolute(self) -> str:
        """The path or URL, whatever the working directory."""
        return str(Path(self.url).absolute()) if self.is_local else self.url

    def _filesystem(self) -> tuple[Any, str]:
        import fsspec

        filesystem, root = fsspec.url_to_fs(self.url)
        return filesystem, root

    def open(self, name: str, mode: str = "rb") -> Any:
        """Opens a file of the folder; raises DataError naming it where it is missing."""
        filesystem, root = self._filesystem()
        if "w" in mode:
            filesystem.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        try:
            return filesystem.open(f"{root}/{name}", mode)
        except FileNotFoundError:
            raise DataError(f"{self.url}/{name}: missing") from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second process from preparing the same folder; local folders only, freed by any death."""
        if not self.is_local:
            yield
            return
        from filelock import FileLock

        Path(self.url).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.url}.lock"):
            yield

    def begin(self) -> None:
        """Empties the folder of an unfinished preparation and marks it; refuses one that holds anything else."""
        filesystem, root = self._filesystem()
        if filesystem.exists(root):
            held = sorted(Path(path).name for path in filesystem.ls(root, detail=False))
            if UNFINISHED in held:
                filesystem.rm(root, recursive=True)
            elif held:
                raise DataError(f"{self.url}: not a prepared folder: it holds {held[0]} and no manifest.json")
        with self.open(UNFINISHED, "wb") as stream:
            stream.write(b"being prepared; safe to delete when no process is preparing it\n")

    def local_folder(self, name: str) -> Path:
        """A sub-folder as a local path to write to; `upload_folder` puts it in its place."""
        folder = (Path(self.url) if self.is_local else self._scratch_folder()) / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _scratch_folder(self) -> Path:
        """A folder on disk that goes with this object."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="pretrain-store-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch

    def upload_folder(self, name: str) -> None:
        """Copies a folder written through `local_folder` to the object store."""
        if not self.is_local:
            filesystem, root = self._filesystem()
            filesystem.put(str(self.local_folder(name)), f"{root}/{name}", recursive=True)

    def fetch_folder(self, name: str) -> Path:
        """A sub-folder as a local path to read from."""
        if not self.is_local and not (self._scratch_folder() / name).exists():
            folder = self.local_folder(name)
            filesystem, root = self._filesystem()
            for path in filesystem.ls(f"{root}/{name}", detail=False):
                filesystem.get(path, str(folder / Path(path).name))
        return self.local_folder(name)

    def write_array(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Writes a numpy array."""
        buffer = io.BytesIO()
        np.save(buffer, array)
        with self.open(name, "wb") as stream:
            stream.write(buffer.getvalue())

    def read_array(self, name: str) -> np.ndarray[Any, Any]:
        """Reads a numpy array."""
        with self.open(name) as stream:
            array: np.ndarray[Any, Any] = np.load(io.BytesIO(stream.read()))
        return array

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Writes the manifest with its own checksum; from here on the folder is prepared."""
        text = json.dumps(manifest, sort_keys=True)
        checksum = hashlib.sha256(text.encode()).hexdigest()
        with self.open("manifest.json.new", "wb") as stream:
            stream.write(json.dumps({"manifest": manifest, "sha256": checksum}, sort_keys=True, indent=1).encode())
        filesystem, root = self._filesystem()
        filesystem.mv(f"{root}/manifest.json.new", f"{root}/manifest.json")
        filesystem.rm(f"{root}/{UNFINISHED}")

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest; None where the folder is not prepared. Raises DataError where it is damaged."""
        filesystem, root = self._filesystem()
        if not filesystem.exists(f"{root}/manifest.json"):
            return None
        with self.open("manifest.json") as stream:
            raw = stream.read()
        try:
            content = json.loads(raw)
            text = json.dumps(content["manifest"], sort_keys=True)
            if hashlib.sha256(text.encode()).hexdigest() != content["sha256"]:
                raise ValueError("its checksum does not match")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.url}/manifest.json: damaged: {error}") from None
        manifest: dict[str, Any] = content["manifest"]
        return manifest

    def check_sizes(self, manifest: dict[str, Any]) -> None:
        """Raises DataError naming the first shard that is missing or cut short."""
        filesystem, root = self._filesystem()
        for entry in (*manifest["train"], *manifest["held_out"]):
            for shard in entry["shards"]:
                path = f"{root}/{shard['file']}"
                if not filesystem.exists(path):
                    raise DataError(f"{self.url}/{shard['file']}: missing")
                if (size := filesystem.size(path)) != shard["bytes"]:
                    raise DataError(f"{self.url}/{shard['file']}: {size} bytes, the manifest says {shard['bytes']}")
