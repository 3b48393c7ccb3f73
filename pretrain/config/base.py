"""The base of every section of a config."""

from pathlib import Path
from typing import Annotated

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
