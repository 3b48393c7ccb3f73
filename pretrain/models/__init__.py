"""The families of models. Adding one means a folder with the six files, a config class, and a line here."""

import importlib

from pretrain.models.family import Family

FAMILIES = ("elmo", "bert")
"""Every family; each is the package `pretrain.models.<kind>`, which holds its record as `FAMILY`."""


def get_family(kind: str) -> Family:
    """The record of one family."""
    family: Family = importlib.import_module(f"pretrain.models.{kind}").FAMILY
    return family
