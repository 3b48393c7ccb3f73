"""Figures from papers, for data that is recognised: they stand in `published.csv`, beside this module."""

import csv
import importlib.resources
import re
from collections.abc import Callable
from pathlib import Path

from pretrain.data.files import open_members
from pretrain.data.text import read_lines
from pretrain.probing.results import Layer, Result

_EWT_SENTENCE = re.compile(r"# sent_id = (answers|email|newsgroup|reviews|weblog)-\S+-\d{4}")


def published(task: str, path: Path) -> tuple[list[Result], list[str]]:
    """The figures that papers give for a task on the data that a file holds, and where they stand."""
    results, sources = [], {}
    table = importlib.resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(table.splitlines()) if row["task"] == task]
    holds = {data: RECOGNISED[data](path) for data in {row["data"] for row in rows}}
    for row in rows:
        if holds[row["data"]]:
            layer: Layer = "mix" if row["layer"] == "mix" else int(row["layer"])
            value, half = float(row["value"]), float(row["half_interval"])
            results.append(
                Result("published", task, layer, row["metric"], value, value - half, value + half, of=row["model"])
            )
            sources[row["source"]] = f"published: {row['source']}"
    return results, list(sources.values())


def is_english_web_treebank(path: Path) -> bool:
    """Whether a CoNLL-U file is a part of UD English EWT, by the names of its sentences."""
    found = 0
    for name, file in open_members(str(path)):
        for line in read_lines(file, name):
            if line.startswith("# sent_id"):
                if not _EWT_SENTENCE.fullmatch(line):
                    return False
                found += 1
    return found > 0


RECOGNISED: dict[str, Callable[[Path], bool]] = {"en_ewt": is_english_web_treebank}
"""By the column `data` of the table."""
