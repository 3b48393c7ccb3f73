"""`docs/configuration.md`, generated from the sections' fields and the strings beneath them.

`python -m pretrain.config.reference > docs/configuration.md` writes it; a test asserts that it is current.
"""

import inspect
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from pretrain.config.base import Section, sections_in
from pretrain.config.run import RunConfig

INTRODUCTION = """\
# Configuration

<!-- Made by `python -m pretrain.config.reference > docs/configuration.md` from the strings beneath the fields. -->

A run is one YAML file. Every option can be overridden on the command line, as `section.option=value`; the value is
YAML. An option that is not listed here is an error. `pretrain config CONFIG` prints the resolved run and the numbers
that follow from it.
"""

NAMES = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Path: "path", NoneType: "`null`"}


def reference() -> str:
    """The whole page, in Markdown: the options of a run, then of each section, a table for each of its kinds."""
    lines = [INTRODUCTION, *_table(RunConfig)]
    for name, field in RunConfig.model_fields.items():
        lines += _section(name, field.annotation)
    return "\n".join(lines)


def _section(path: str, annotation: Any) -> Iterator[str]:
    """A section's heading and tables, then those of the sections that its options hold."""
    classes = list(sections_in(annotation))
    if not classes:
        return
    yield f"## {path}\n"
    for section in classes:
        if kind := section.model_fields.get("kind"):
            yield f"### {path} of kind {' or '.join(f'`{name}`' for name in get_args(kind.annotation))}\n"
        yield from _table(section)
    for section in classes:
        for name, field in section.model_fields.items():
            if name != "held_out":  # takes the same sources as `data.sources`
                yield from _section(f"{path}.{name}", field.annotation)


def _table(section: type[Section]) -> Iterator[str]:
    """What a section is, and its options, one a line; its kind stands in the heading."""
    yield f"{inspect.cleandoc(section.__doc__ or '')}\n"
    options = {name: field for name, field in section.model_fields.items() if name != "kind"}
    if options:
        yield "| option | type | default | meaning |"
        yield "|---|---|---|---|"
    for name, field in options.items():
        text = " ".join((field.description or "").split()).replace("|", r"\|")
        yield f"| `{name}` | {_type(field.annotation, field.metadata, name)} | {_default(field)} | {text} |"
    yield ""


def _type(annotation: Any, metadata: list[Any], name: str) -> str:
    """An option's type in words, with its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    parts = arguments if origin in (Union, UnionType) else (annotation,)
    if all(isinstance(part, type) and issubclass(part, Section) for part in parts):
        return f"[section](#{name})"
    if origin is Annotated:
        return _type(arguments[0], [*arguments[1:], *metadata], name)
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(argument, metadata, name) for argument in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        if not any(sections_in(annotation)):
            return f"list of {_type(arguments[0], [], name)}"
        return "list of [probes](#evaluationprobes)" if name == "probes" else "list of [sources](#datasources)"
    if origin is tuple:
        return f"[{', '.join(_type(argument, [], name) for argument in arguments)}]"
    return NAMES[annotation] + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    """` > 0, < 1` and the like."""
    found = []
    lists = (entry.metadata if isinstance(entry, FieldInfo) else [entry] for entry in metadata)
    for item in chain.from_iterable(lists):
        match item:
            case Gt(gt=bound):
                found.append(f"> {bound}")
            case Ge(ge=bound):
                found.append(f"≥ {bound}")
            case Lt(lt=bound):
                found.append(f"< {bound}")
            case Le(le=bound):
                found.append(f"≤ {bound}")
    return f" {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    """The default as YAML has it; `required` where there is none, nothing for a section's own defaults."""
    if field.is_required():
        return "required"
    if isinstance(field.default, Section):
        return ""
    return f"`{json.dumps(to_jsonable_python(field.default), ensure_ascii=False).strip(chr(34))}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
