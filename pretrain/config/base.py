"""The base of every section of a config."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, strict group of options; each is documented by the string beneath it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
