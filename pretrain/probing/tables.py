"""The files of probes, line by line: what a line holds, and what is said of one that holds something else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pretrain.data.files import open_members
from pretrain.data.text import read_lines
from pretrain.errors import ConfigError, DataError
from pretrain.probing.tasks import Inputs
from pretrain.runtime.seeding import generator

Item = TypeVar("Item")
TEST_SHARE = 0.2
"""Of the data, where no file to test on is given."""


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


def read_columns(
    path: Path, names: Mapping[str, Sequence[str]], layouts: Mapping[int, Sequence[int]] | None = None
) -> list[Row]:
    """The cells that are meant of each line of a file of cells separated by tabs.

    `names` are the columns that are meant, and what a first line of names may call each, in small letters. Without
    such a line, the cells are these columns in their order; or, where the first line has as many cells as `layouts`
    says, those columns of lines of any such number. Raises DataError where a line has another number of cells, or a
    blank one that is meant.
    """
    rows: list[Row] = []
    columns: Sequence[int] = ()
    widths: Sequence[int] = ()
    for line, where in read_numbered(path):
        cells = [cell.strip() for cell in line.split("\t")]
        if not columns:
            titled = _titles(cells, names, where)
            columns, widths = titled or range(len(names)), [len(cells) if titled else len(names)]
            if titled:
                continue
            if layouts and len(cells) in layouts:
                columns, widths = layouts[len(cells)], [*layouts]
        if len(cells) not in widths or not all(cells[column] for column in columns):
            expected = f"{_listed(widths)} cells, those of {', '.join(names)} not blank"
            hint = "" if rows else f" (or a first line of names: {', '.join(map(_either, names.values()))})"
            raise DataError(f"{where}: expected {expected}, separated by tabs{hint}; found {_shown(cells)}")
        rows.append(Row([cells[column] for column in columns], where))
    if not rows:
        raise DataError(f"{path}: no line of {'<TAB>'.join(names)}")
    return rows


def _titles(cells: Sequence[str], names: Mapping[str, Sequence[str]], where: str) -> list[int] | None:
    """Which cells of a first line name the columns that are meant; None where it names none of them."""
    titles = [cell.lower() for cell in cells]
    columns = {
        name: next((titles.index(title) for title in known if title in titles), -1) for name, known in names.items()
    }
    lacking = [name for name, column in columns.items() if column < 0]
    if len(lacking) == len(names):
        return None
    if lacking:
        raise DataError(f"{where}: names columns, but not {_either(names[lacking[0]])}: {_shown(cells)}")
    return list(columns.values())


def _either(titles: Sequence[str]) -> str:
    return " or ".join(titles)


def _listed(widths: Sequence[int]) -> str:
    return " or ".join(map(str, widths))


def divide_rows(inputs: Inputs, read: Callable[[Path], list[Item]]) -> tuple[list[Item], list[Item], str]:
    """What to learn from, what to test on, and a line that says so: `--test`, or a fifth of `--data` by the seed."""
    items = read(inputs.data)
    if inputs.test is not None:
        if inputs.test.resolve() == inputs.data.resolve():
            raise DataError(f"{inputs.test}: the file that is learned from too: give --data or --test another")
        test = read(inputs.test)
        return items, test, f"{len(items):,} lines to learn from, {len(test):,} to test on"
    order = generator("test part", inputs.seed).permutation(len(items))
    chosen = {int(number) for number in order[: round(len(items) * TEST_SHARE)]}
    if not chosen or len(chosen) == len(items):
        raise DataError(f"{inputs.data}: {len(items)} lines, too few to learn from some and test on others")
    training = [item for number, item in enumerate(items) if number not in chosen]
    test = [item for number, item in enumerate(items) if number in chosen]
    return (
        training,
        test,
        f"{len(training):,} lines to learn from, a fifth drawn by the seed, {len(test):,}, to test on",
    )


def refuse_options(inputs: Inputs, task: str, reasons: Mapping[str, str | None]) -> None:
    """Raises ConfigError where an option is given that the task has no use for; `reasons` says why, by option."""
    for option, reason in reasons.items():
        if getattr(inputs, option) is not None:
            why = "" if reason is None else f": {reason}"
            raise ConfigError(f"--{option} {getattr(inputs, option)}: not used with --task {task}{why}")


def _shown(cells: Sequence[str]) -> str:
    shown = "<TAB>".join(cell if len(cell) < 30 else f"{cell[:27]}…" for cell in cells[:8])
    return f"{len(cells)}: {shown}"
