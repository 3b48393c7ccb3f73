"""Files of paths, globs and URLs: listed, opened, decompressed and taken out of archives.

Local files are listed and opened by nothing but Python: no file that matches is left out, no host is asked.
"""

import bz2
import contextlib
import glob
import gzip
import io
import logging
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from pretrain.data.text import first_line, peekable
from pretrain.errors import DataError

TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
UNREADABLE_SUFFIXES = (".7z", ".rar", ".lz4", ".br", ".lzo", ".z")


log = logging.getLogger(__name__)


class SourceFile(NamedTuple):
    """A file of a source."""

    pattern: str
    """The path, glob or URL it was found by, as configured."""
    name: str
    """Its path from the folder in which the pattern's wildcards begin: the same when all moves together."""
    path: str
    """Its absolute path or its URL."""


def list_files(patterns: str | tuple[str, ...]) -> list[SourceFile]:
    """The files of paths, globs and URLs, each pattern's in sorted order, each file once.

    Hidden files and folders are listed only where the pattern names them. Raises DataError for a folder and for a
    pattern that nothing matches.
    """
    files: dict[str, SourceFile] = {}
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        for file in _list_urls(pattern) if "://" in pattern else _list_local(pattern):
            files.setdefault(file.path, file)
    return list(files.values())


def _list_local(pattern: str) -> list[SourceFile]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise DataError(f"{pattern}: a folder: name its files, as in {pattern.rstrip('/')}/*.txt")
    if path.is_file():  # even one with brackets in its name
        return [SourceFile(pattern, path.name, str(path.absolute()))]
    found = sorted(Path(match).absolute() for match in glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = [file for file in found if file.is_file()]
    if not files:
        where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
        what = f"only folders, such as {found[0].name}: name their files" if found else "no such file"
        raise DataError(f"{pattern}: {what}{where}")
    root = path.absolute()
    while glob.has_magic(str(root)):
        root = root.parent
    once = {file.resolve(): file for file in reversed(files)}  # a file that links lead to is read once
    if len(once) < len(files):
        log.info("%s: %d links to files that it matches anyway are left out", pattern, len(files) - len(once))
    kept = set(once.values())
    return [SourceFile(pattern, str(file.relative_to(root)), str(file)) for file in files if file in kept]


def _list_urls(pattern: str) -> list[SourceFile]:
    # "?" begins the query of a web address, and "[" is rare in one
    magic = "*" in pattern if pattern.startswith(("http://", "https://")) else glob.has_magic(pattern)
    if not magic:
        return [SourceFile(pattern, pattern.rpartition("/")[2], pattern)]
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(pattern)
        found = filesystem.glob(path, detail=True)
    except Exception as error:  # every file system has exceptions of its own
        raise DataError(f"{pattern}: cannot be listed: {first_line(error)}") from None
    root = path[: next(i for i, character in enumerate(path) if character in "*?[")].rpartition("/")[0]
    names = {name: name.removeprefix(root).lstrip("/") for name, about in found.items() if about["type"] == "file"}
    hidden = _is_hidden(path.removeprefix(root))
    files = [
        SourceFile(pattern, names[name], filesystem.unstrip_protocol(name))
        for name in sorted(names)
        if hidden or not _is_hidden(names[name])
    ]
    if not files:
        raise DataError(f"{pattern}: no such file")
    return files


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/") if part not in (".", ".."))


def open_files(patterns: str | tuple[str, ...]) -> Iterator[tuple[str, BinaryIO]]:
    """Every file, decompressed, with its name for messages; of an archive its files, in the archive's order."""
    for file in list_files(patterns):
        yield from open_members(file.path)


def open_members(path: str) -> Iterator[tuple[str, BinaryIO]]:
    """A file, decompressed, or the files of a `.zip` or tar archive; each is closed when the next one is asked for."""
    name = (path.partition("?")[0] if path.startswith(("http://", "https://")) else path).lower()
    if name.endswith(UNREADABLE_SUFFIXES):
        raise DataError(f"{path}: unpack it first: such files are not read")
    with open_file(path) as file:
        try:
            if name.endswith(".zip"):
                yield from _zip_members(file, path)
            elif name.endswith(TAR_SUFFIXES):
                yield from _tar_members(file, path, name)
            else:
                yield path, _decompressed(file, name)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError) as error:
            # RuntimeError: an encrypted zip
            raise DataError(f"{path}: cannot be read: {first_line(error)}") from None


@contextlib.contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """A file's bytes as they lie there, seekable; raises DataError where it cannot be opened."""
    try:
        if "://" in path:
            import fsspec

            opened = fsspec.open(path, "rb").open()
        else:
            opened = Path(path).open("rb")  # noqa: SIM115
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # every file system has exceptions of its own
        raise DataError(f"{path}: cannot be opened: {first_line(error)}") from None
    with opened as file:
        yield file


def _zip_members(file: BinaryIO, path: str) -> Iterator[tuple[str, BinaryIO]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir() and _is_wanted(member.filename, path):
                with archive.open(member) as opened:
                    yield f"{path}/{member.filename}", _decompressed(cast(BinaryIO, opened), member.filename.lower())


def _tar_members(file: BinaryIO, path: str, name: str) -> Iterator[tuple[str, BinaryIO]]:
    for short, suffix in ((".tgz", ".gz"), (".tbz2", ".bz2"), (".txz", ".xz")):
        name = name.replace(short, suffix) if name.endswith(short) else name
    with tarfile.open(fileobj=_decompressed(file, name), mode="r|") as archive:
        for member in archive:
            if member.isfile() and _is_wanted(member.name, path):
                content = io.BufferedReader(_Streamed(archive.extractfile(member)))
                yield f"{path}/{member.name}", _decompressed(cast(BinaryIO, content), member.name.lower())


class _Streamed(io.RawIOBase):
    """A file that can only be read, which a file of a streamed tar archive is without saying so."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, as far as there is content; returns how many bytes it got."""
        content: bytes = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _is_wanted(member: str, path: str) -> bool:
    """Whether a file of an archive is one a glob would list; raises DataError for an archive within an archive."""
    if _is_hidden(member) or "__MACOSX" in member.split("/"):  # what a Mac's packer adds
        return False
    if member.lower().endswith((".zip", *TAR_SUFFIXES, *UNREADABLE_SUFFIXES)):
        raise DataError(f"{path}: {member} is an archive within an archive: unpack it")
    return True


def _decompressed(file: BinaryIO, name: str) -> BinaryIO:
    """The file's content, by the last suffix of its (lower-case) name."""
    opened: Any = file
    if name.endswith(".gz"):
        opened = gzip.GzipFile(fileobj=file)
    elif name.endswith(".bz2"):
        opened = bz2.BZ2File(file)
    elif name.endswith((".xz", ".lzma")):
        opened = lzma.LZMAFile(file)  # noqa: SIM115
    elif name.endswith((".zst", ".zstd")):
        import pyarrow as pa

        opened = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
    return cast(BinaryIO, peekable(opened))
