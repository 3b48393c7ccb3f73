"""Files that are there whole or not at all, and locks that end with the processes that hold them."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_held: set[int] = set()
"""Descriptors of the locks that this process holds. Processes that it forks, such as a loader's workers, let go of
them: they may outlive it by seconds, and do nothing that a lock is for."""


def _let_go() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Makes or replaces a file in one go: a reader, or a crash, meets the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def share(path: Path) -> None:
    """Gives a file the rights that the user gives to new files: some libraries make theirs for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[int | None]:
    """Holds a lock on the file `path`; gives its descriptor, or None where another process holds it.

    The lock belongs to the open file: programs that are started with the descriptor, and `adopt` it, hold it too, and
    it is free once the last of them has ended, however that happens.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:  # its folder has just been removed
        yield None
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not _is_still(path, handle):  # its last holder has removed it
            yield None
            return
        adopt(handle)
        yield handle
    finally:
        _held.discard(handle)
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def adopt(handle: int) -> None:
    """Makes this process a holder of the lock whose descriptor it was given or started with."""
    _held.add(handle)
