"""Sources as streams of texts, read through `datasets`: local paths, globs, URLs and hub names by the same code."""

import ast
import functools
import glob
import inspect
import logging
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.config.data import HubSource, PythonDocsSource, RecordSource, Source, TextSource
from pretrain.errors import DataError

LINES_AT_A_TIME = 1000


def read_source(source: Source) -> Iterator[str]:
    """The texts of a source's documents, in a fixed order; raises DataError naming the file and what is wrong."""
    match source:
        case TextSource():
            return read_text(source)
        case RecordSource():
            return read_records(source)
        case HubSource():
            return read_hub(source)
        case PythonDocsSource():
            return iter(python_docs())


def read_text(source: TextSource) -> Iterator[str]:
    """Documents separated by blank lines; the end of a file ends a document too."""
    for file in resolve_files(source.files):
        lines: list[str] = []
        for number, line in enumerate(_column(_stream("text", file), "text", file)):
            if number == 0:
                line = line.removeprefix("\ufeff")  # a byte order mark
            if line.strip():
                lines.append(line)
            elif lines:
                yield "\n".join(lines)
                lines = []
        if lines:
            yield "\n".join(lines)


def read_records(source: RecordSource) -> Iterator[str]:
    """One document per record."""
    for file in resolve_files(source.files):
        yield from _column(_stream(source.kind, file), source.field, file)


def read_hub(source: HubSource) -> Iterator[str]:
    """One document per record of a data set of the hub."""
    datasets = _datasets()
    where = f"{source.dataset} ({source.subset or 'default'}, {source.split})"
    try:
        stream = datasets.load_dataset(source.dataset, source.subset, split=source.split, streaming=True)
    except Exception as error:
        raise DataError(f"{where}: cannot be opened: {_first_line(error)}") from None
    yield from _column(stream, source.field, where)


def resolve_files(patterns: str | tuple[str, ...]) -> list[str]:
    """The files of paths, globs and URLs, each pattern's in sorted order."""
    from datasets.data_files import resolve_pattern

    files: list[str] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if Path(pattern).is_dir():
            raise DataError(f"{pattern}: a folder: name its files, as in {pattern.rstrip('/')}/*.txt")
        if Path(pattern).is_file():  # even one with brackets in its name
            files.append(str(Path(pattern).absolute()))
            continue
        try:
            found = resolve_pattern(pattern, base_path="")
        except FileNotFoundError:
            raise DataError(f"{pattern}: no such file") from None
        except Exception as error:
            raise DataError(f"{pattern}: cannot be listed: {_first_line(error)}") from None
        files += [str(file) for file in found]
    return list(dict.fromkeys(files))


def _stream(builder: str, file: str) -> Any:
    """A streamed data set of one file, so that an error can name it and a document ends where it ends."""
    datasets = _datasets()
    literal = glob.escape(file) if Path(file).is_file() else file
    try:
        return datasets.load_dataset(builder, data_files=[literal], split="train", streaming=True)
    except StopIteration:  # `datasets` meets the end of an empty JSON file here
        return None
    except Exception as error:
        raise DataError(f"{file}: cannot be opened as {builder}: {_first_line(error)}") from None


def _datasets() -> Any:
    """The package, made quiet: what goes wrong we say ourselves."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    return datasets


def _column(stream: Any, field: str, where: str) -> Iterator[str]:
    """One column of a stream. `.iter()`: plain iteration would silently split the stream in a loader worker."""
    batches = iter(()) if stream is None else stream.iter(batch_size=LINES_AT_A_TIME)
    number = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8: {_undecodable(where) or error}") from None
        except Exception as error:
            raise DataError(f"{where}: cannot be read: {_first_line(error)}") from None
        if field not in batch:
            raise DataError(f"{where}: no field {field!r}; there are {', '.join(sorted(batch))}")
        for value in batch[field]:
            number += 1
            if not isinstance(value, str):
                found = "missing or null" if value is None else f"{type(value).__name__}, not text"
                raise DataError(f"{where}: record {number}: field {field!r} is {found}")
            yield value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _undecodable(file: str) -> str | None:
    """Which line of a local file cannot be decoded."""
    if not Path(file).is_file():
        return None
    import fsspec

    with fsspec.open(file, "rb", compression="infer") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number}, byte {line[error.start]:#04x}"
    return None


SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "encodings",
    "pydoc_data",
}


@functools.cache
def python_docs() -> tuple[str, ...]:
    """Python's language reference (`pydoc_data.topics`) and the docstrings of the standard library, unwrapped."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("python_docs: this Python comes without its documentation (pydoc_data)") from None
    documents = [unwrap(text) for _, text in sorted(topics.items())]
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            documents.append(unwrap("\n\n".join(_docstrings(path))))
    return tuple(document for document in documents if document)


def _docstrings(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own sources
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template or a data file that only looks like a module
        return []
    return [text for node in _documented(tree) if (text := ast.get_docstring(node))]


def _documented(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """A module or class with the classes, functions and methods in it."""
    yield node
    if isinstance(node, ast.Module | ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _documented(inner)


def unwrap(text: str) -> str:
    """Hard-wrapped prose with a paragraph a line; indented examples, tables and markup are left out."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    prose = [" ".join(paragraph.split()) for paragraph in paragraphs if not _is_code(paragraph)]
    return "\n".join(paragraph for paragraph in prose if paragraph)


def _is_code(paragraph: str) -> bool:
    first = paragraph.lstrip("\n")
    return first.startswith(("    ", "\t", ">>>", "+-", "|", "..")) or set(first.strip()) <= set("=-*~^ \n")
