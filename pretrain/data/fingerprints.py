"""Local files of a corpus by configured pattern and relative name, so that prepared text moves with its sources."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pretrain.config.data import DataConfig
from pretrain.data.sources import resolve_files
from pretrain.errors import DataError

GLOB = frozenset("*?[")


def fingerprints(data: DataConfig) -> dict[str, dict[str, str]]:
    """Of all local files: by pattern as it stands in the config, then by name relative to it, size and a hash."""
    return {pattern: {name: _fingerprint(path) for name, path in _local_files(pattern)} for pattern in _patterns(data)}


def changed_since(data: DataConfig, prepared: Mapping[str, Mapping[str, str]]) -> str | None:
    """A local file that is new or not what it was, to begin a message with; None where there is none.

    Files that are gone are no change: a machine may have only the prepared data.
    """
    for pattern in _patterns(data):
        known = prepared.get(pattern, {})
        files: list[tuple[str, Path]] = []
        with contextlib.suppress(DataError):  # none is there
            files = list(_local_files(pattern))
        for name, path in files:
            if name not in known:
                return f"{path}: new"
            if (now := _fingerprint(path)) != known[name]:
                return f"{path}: changed (was {known[name]}, is {now})"
    return None


def _patterns(data: DataConfig) -> Iterator[str]:
    for source in (*data.sources, *data.held_out_sources()):
        files = getattr(source, "files", ())
        for pattern in (files,) if isinstance(files, str) else files:
            if "://" not in pattern:
                yield pattern


def _local_files(pattern: str) -> Iterator[tuple[str, Path]]:
    """Name relative to the pattern's fixed part, and path; raises DataError where nothing is there."""
    fixed = Path(pattern)
    while GLOB.intersection(str(fixed)) and not fixed.is_file():
        fixed = fixed.parent
    for file in resolve_files(pattern):
        if Path(file).is_file():
            yield Path(os.path.relpath(file, fixed)).as_posix(), Path(file)


def _fingerprint(path: Path) -> str:
    """Size and a hash of both ends of a file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(1 << 20)
        stream.seek(max(0, size - (1 << 20)))
        ends = hashlib.blake2b(head + stream.read(), digest_size=8).hexdigest()
    return f"{size} bytes, {ends}"
