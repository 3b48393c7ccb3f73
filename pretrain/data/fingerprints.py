"""Local files of a corpus by configured pattern and relative name, so that prepared text moves with its sources."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pretrain.config.data import DataConfig
from pretrain.data.files import SourceFile, list_files
from pretrain.errors import DataError


def fingerprints(data: DataConfig) -> dict[str, dict[str, str]]:
    """Of all local files: by pattern as it stands in the config, then by name relative to it, size and a hash."""
    return {
        pattern: {file.name: _fingerprint(Path(file.path)) for file in list_files(pattern)}
        for pattern in _patterns(data)
    }


def check_files(data: DataConfig) -> None:
    """Raises DataError for a pattern of local files that names none."""
    for pattern in _patterns(data):
        list_files(pattern)


def changed_since(data: DataConfig, prepared: Mapping[str, Mapping[str, str]]) -> str | None:
    """A local file that is new or not what it was, to begin a message with; None where there is none.

    Files that are gone are no change: a machine may have only the prepared data.
    """
    for pattern in _patterns(data):
        known = prepared.get(pattern, {})
        files: list[SourceFile] = []
        with contextlib.suppress(DataError):  # none is there
            files = list_files(pattern)
        for file in files:
            if file.name not in known:
                return f"{file.path}: new"
            if (now := _fingerprint(Path(file.path))) != known[file.name]:
                return f"{file.path}: changed (was {known[file.name]}, is {now})"
    return None


def _patterns(data: DataConfig) -> Iterator[str]:
    for source in (*data.sources, *data.held_out_sources()):
        files = getattr(source, "files", ())
        for pattern in (files,) if isinstance(files, str) else files:
            if "://" not in pattern:
                yield pattern


def _fingerprint(path: Path) -> str:
    """Size and a hash of both ends of a file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(1 << 20)
        stream.seek(max(0, size - (1 << 20)))
        ends = hashlib.blake2b(head + stream.read(), digest_size=8).hexdigest()
    return f"{size} bytes, {ends}"
