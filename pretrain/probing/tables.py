"""The files of probes, line by line: what a line holds, and what is said of one that holds something else."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pretrain.data.files import open_members
from pretrain.data.text import read_lines
from pretrain.errors import ConfigError, DataError
from pretrain.probing.tasks import Inputs


class Row(NamedTuple):
    """A line's cells, and where it stands."""

    cells: list[str]
    where: str
    """The file and the number of the line, for messages."""


def read_numbered(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, decompressed, each with where it stands; raises DataError."""
    for name, file in open_members(str(path)):
        for number, line in enumerate(read_lines(file, name), 1):
            if line.strip():
                yield line, f"{name}, line {number}"


def read_rows(path: Path, columns: Sequence[str], comment: str | None = None) -> list[Row]:
    """The lines of a file of cells separated by tabs, which must be as many as `columns`, none of them blank.

    Lines that begin with `comment` are left out. Raises DataError, also for a file without a row.
    """
    rows = []
    for line, where in read_numbered(path):
        if comment is not None and line.startswith(comment):
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != len(columns) or not all(cells):
            shape = "<TAB>".join(columns)
            raise DataError(
                f"{where}: expected {shape}, {len(columns)} cells that are not blank; found {_shown(cells)}"
            )
        rows.append(Row(cells, where))
    if not rows:
        raise DataError(f"{path}: no line of {'<TAB>'.join(columns)}")
    return rows


def refuse_options(inputs: Inputs, task: str, reasons: Mapping[str, str]) -> None:
    """Raises ConfigError where an option is given that the task has no use for; `reasons` says why, by option."""
    for option, reason in reasons.items():
        if getattr(inputs, option) is not None:
            raise ConfigError(f"--{option} {getattr(inputs, option)}: not used with --task {task}: {reason}")


def _shown(cells: Sequence[str]) -> str:
    shown = "<TAB>".join(cell if len(cell) < 30 else f"{cell[:27]}…" for cell in cells[:8])
    return f"{len(cells)}: {shown}"
