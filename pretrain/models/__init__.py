"""The families of models. Adding one means a folder with the six files, a config class, and a line here."""

import importlib
from pathlib import Path

from pretrain.errors import ExportError
from pretrain.models.family import Family
from pretrain.models.published_files import find_tensorflow_checkpoint

FAMILIES = ("elmo", "bert")
"""Every family; each is the package `pretrain.models.<kind>`, which holds its record as `FAMILY`."""


def get_family(kind: str) -> Family:
    """The record of one family."""
    family: Family = importlib.import_module(f"pretrain.models.{kind}").FAMILY
    return family


def find_family(folder: Path) -> Family:
    """The family of the model in a folder; raises ExportError where there is none, or more than one."""
    if not folder.exists():
        raise ExportError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file, not a model folder")
    families = [get_family(kind) for kind in FAMILIES]
    found = [family for family in families if family.format.recognises(folder)]
    names = " and ".join(f"{family.kind} ({family.format.name} format)" for family in found or families)
    if not found and (line := find_tensorflow_checkpoint(folder)) is not None:
        raise ExportError(f"{line}, to one of {names}")
    if not found:
        raise ExportError(f"{folder} is no model folder: looked for {names}, found neither")
    if len(found) > 1:
        raise ExportError(f"{folder} holds models of two families, {names}: leave one")
    return found[0]
