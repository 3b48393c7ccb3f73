"""Python's own documentation as documents: the language reference and the standard library's docstrings."""

import ast
import functools
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from pretrain.errors import DataError

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
