"""A prepared folder, on disk or on an object store: read by anyone at any time, written under a name of its own."""

import contextlib
import errno
import glob
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from pretrain.errors import DataError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UPLOADED = re.compile(r"files-[0-9a-f]{8}")
"""The folders beside a manifest on an object store."""
FULL_OR_BROKEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""Errors of a disk that name no file where they are met while writing."""


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

    def subfolder(self, name: str) -> "Store":
        """A folder in this one; this one itself where the name is empty."""
        return Store(f"{self.url}/{name}") if name else self

    def _filesystem(self) -> tuple[Any, str]:
        import fsspec

        try:
            filesystem, root = fsspec.url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # a package that is not installed, or a protocol that nobody knows
            raise DataError(f"{self.url}: cannot be reached: {str(error).splitlines()[0]}") from None
        return filesystem, root

    def names(self) -> list[str]:
        """What the folder holds, sorted; empty where there is no such folder."""
        filesystem, root = self._filesystem()
        return sorted(Path(path).name for path in filesystem.ls(root, detail=False)) if filesystem.exists(root) else []

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
        """Keeps a second process of this host from preparing the same folder; freed by any death of the holder.

        For local folders only, and for writing only: whoever reads needs no right to write.
        """
        if not self.is_local:
            yield
            return
        from filelock import FileLock, Timeout

        path = os.path.realpath(self.url)  # one lock, whichever links lead there
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that is preparing %s", self.url)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def write_folder(self, name: str, write: Callable[[Path], None]) -> str:
        """Has `write` fill a sub-folder, and returns a hash of its files' names and bytes."""
        with tempfile.TemporaryDirectory(prefix="pretrain-store-") as scratch:
            folder = Path(self.url if self.is_local else scratch) / name
            folder.mkdir(parents=True)
            write(folder)
            hashed = hashlib.blake2b(digest_size=8)
            for path in sorted(folder.iterdir()):
                hashed.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
            if not self.is_local:
                filesystem, root = self._filesystem()
                filesystem.put(str(folder), f"{root}/{name}", recursive=True)
        return hashed.hexdigest()

    def fetch_folder(self, name: str) -> Path:
        """A sub-folder as a local path to read from; a copy goes with this object."""
        if self.is_local:
            return Path(self.url) / name
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="pretrain-store-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        folder = self._scratch / name
        if not folder.exists():
            folder.mkdir(parents=True)
            filesystem, root = self._filesystem()
            for path in filesystem.ls(f"{root}/{name}", detail=False):
                filesystem.get(path, str(folder / Path(path).name))
        return folder

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

    def move(self, name: str, to: "Store") -> None:
        """Moves a file to another folder of the same file system, where it appears whole."""
        filesystem, root = self._filesystem()
        filesystem.mv(f"{root}/{name}", f"{to._filesystem()[1]}/{name}")

    def remove(self) -> None:
        """Removes the folder with all it holds."""
        filesystem, root = self._filesystem()
        if filesystem.exists(root):
            filesystem.rm(root, recursive=True)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes the manifest with its own checksum; a folder that has one is prepared."""
        text = json.dumps(manifest, sort_keys=True)
        checksum = hashlib.sha256(text.encode()).hexdigest()
        with self.open(MANIFEST, "wb") as stream:
            stream.write(json.dumps({"manifest": manifest, "sha256": checksum}, sort_keys=True, indent=1).encode())

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest; None where the folder is not prepared. Raises DataError where it is damaged."""
        filesystem, root = self._filesystem()
        if not filesystem.exists(f"{root}/{MANIFEST}"):
            return None
        with self.open(MANIFEST) as stream:
            raw = stream.read()
        try:
            content = json.loads(raw)
            text = json.dumps(content["manifest"], sort_keys=True)
            if hashlib.sha256(text.encode()).hexdigest() != content["sha256"]:
                raise ValueError("its checksum does not match")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.url}/{MANIFEST}: damaged: {error}") from None
        manifest: dict[str, Any] = content["manifest"]
        return manifest

    def check_sizes(self, shards: Mapping[str, int]) -> None:
        """Raises DataError naming the first shard that is missing or not of its size in bytes."""
        filesystem, root = self._filesystem()
        for name, expected in shards.items():
            if not filesystem.exists(f"{root}/{name}"):
                raise DataError(f"{self.url}/{name}: missing")
            if (size := filesystem.size(f"{root}/{name}")) != expected:
                raise DataError(f"{self.url}/{name}: {size} bytes, the manifest says {expected}")


class Preparation:
    """A folder in the making, under a name of its own until `publish`; gone if its block ends without that.

    On disk, `<folder>.preparing-<host>-<pid>`, which a rename makes the folder. On an object store, which cannot
    rename, `<url>/files-<8 digits>`, which the manifest names. Hold `Store.lock` while it lasts.
    """

    def __init__(self, target: Store) -> None:
        self._target = target
        self._published = False
        if target.is_local:
            self._path = Path(os.path.realpath(target.url))  # a link to a folder stays a link
            self._prefix = f"{self._path.name}.preparing-{socket.gethostname()}-"
            self.files = Store(str(self._path.with_name(f"{self._prefix}{os.getpid()}")))
            """Where to write."""
        else:
            self.files = target.subfolder(f"files-{secrets.token_hex(4)}")

    def __enter__(self) -> Self:
        self._refuse_strangers()
        if self._target.is_local:
            if self._path.is_mount():
                raise DataError(f"{self._target.url}: the mount point of a disk: name a folder inside it")
            self._remove_leftovers()
            Path(self.files.url).mkdir()
            scratch = Path(self.files.url) / "scratch"
            scratch.mkdir()
            self.scratch = scratch
        else:
            self.scratch = Path(tempfile.mkdtemp(prefix="pretrain-prepare-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        if not self._published:
            self.files.remove()
        if isinstance(error, OSError) and error.filename is None and error.errno in FULL_OR_BROKEN:
            raise DataError(f"{self._target.url}: cannot be prepared: {os.strerror(error.errno)}") from None

    def publish(self, manifest: Mapping[str, Any]) -> bool:
        """Makes this the prepared folder; False, and nothing changes, where another process was faster."""
        if self._target.is_local:
            shutil.rmtree(self.scratch)
            self.files.write_manifest({**manifest, "folder": ""})
            try:
                Path(self.files.url).rename(self._path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return False
        else:
            if self._target.read_manifest() is not None:
                return False
            self.files.write_manifest({**manifest, "folder": self.files.url.rpartition("/")[2]})
            self.files.move(MANIFEST, self._target)
        self._published = True
        return True

    def _refuse_strangers(self) -> None:
        """What the folder holds may be somebody's."""
        if self._target.is_local and self._path.is_file():
            raise DataError(f"{self._target.url}: a file, not a folder")
        for name in self._target.names():
            if self._target.is_local or not UPLOADED.fullmatch(name):
                raise DataError(f"{self._target.url}: not a prepared folder: it holds {name} and no {MANIFEST}")

    def _remove_leftovers(self) -> None:
        """What processes of this host that were killed had written: the lock says that none of them is alive."""
        for path in self._path.parent.glob(f"{glob.escape(self._path.name)}.preparing-*"):
            if re.fullmatch(re.escape(self._prefix) + r"\d+", path.name):
                shutil.rmtree(path)
            else:
                log.warning("%s: left by a process of another host, or still being written: not touched", path)
