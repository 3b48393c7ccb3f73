"""The base of every section of a config."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen, strict group of options; each is documented by the string beneath it.

    Strict: `"8"`, `8.0` and `true` are no whole numbers.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


Converted = Field(strict=False)
"""Marks what YAML has no type of its own for: a path, or a tuple, which it writes as text and as a list."""
PathOption = Annotated[Path, Converted]


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that make up an option's type, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


def option_paths(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted path of every option of a section and of those in it, of all their kinds, without places in lists."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in sections_in(field.annotation):
            yield from option_paths(inner, f"{prefix}{name}.")
