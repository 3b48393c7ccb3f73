"""Sources as streams of texts: plain text, records, tables and data sets, each read in one way wherever it lies.

Text is read line by line by ourselves, so that an error can name the file and the line, and no host is asked for a
local file; `datasets` reads data sets of the hub and folders that it has saved.
"""

import csv
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pretrain.config.data import (
    ConlluSource,
    HubSource,
    PythonDocsSource,
    RecordSource,
    Source,
    TableSource,
    TextSource,
    XmlSource,
)
from pretrain.data.files import list_files, open_file, open_files
from pretrain.data.markup import read_conllu, read_xml
from pretrain.data.python_docs import python_docs
from pretrain.data.text import first_line, read_lines, split_paragraphs
from pretrain.errors import DataError

ROWS_AT_A_TIME = 1000
FIELDS_SHOWN = 20
Item = TypeVar("Item")

Skipped = Counter[str]
"""How many records were passed over, by the reason."""


def describe_skipped(skipped: Skipped) -> str:
    """How many records were passed over, and why."""
    return ", ".join(f"{count:,} records whose text is {reason}" for reason, count in sorted(skipped.items()))


def read_source(source: Source, skipped: Skipped | None = None) -> Iterator[str]:
    """The texts of a source's documents, in a fixed order; raises DataError naming the file and what is wrong.

    A record whose field is null or missing has no text: it is counted in `skipped`. One whose text is empty is counted
    too, and given as it is: it has a place in the order.
    """
    skipped = Counter() if skipped is None else skipped
    match source:
        case TextSource():
            return read_text(source)
        case RecordSource():
            return read_records(source, skipped)
        case TableSource():
            return read_tables(source, skipped)
        case ConlluSource():
            return read_conllu(source)
        case XmlSource():
            return read_xml(source)
        case HubSource():
            return read_hub(source, skipped)
        case PythonDocsSource():
            return iter(python_docs())


def read_text(source: TextSource) -> Iterator[str]:
    """Documents separated by blank lines; the end of a file ends a document too."""
    for name, file in open_files(source.files):
        for lines in split_paragraphs(read_lines(file, name, source.encoding)):
            yield "\n".join(lines)


def read_records(source: RecordSource, skipped: Skipped) -> Iterator[str]:
    """One document per record of JSON lines (or of one JSON array), CSV or TSV."""
    for name, file in open_files(source.files):
        lines = read_lines(file, name, source.encoding)
        records = _json_records(lines, name) if source.kind == "json" else _rows(lines, name, source)
        field = _Field(source.field, skipped)
        for where, record in records:
            text = field.text(record, where)
            if text is not None:
                yield text
        field.check(name)


class _Field:
    """The field of records that holds the text, in one file."""

    def __init__(self, name: str, skipped: Skipped) -> None:
        self.name = name
        self.skipped = skipped
        self._exists = False
        self._others: dict[str, None] = {}

    def text(self, record: object, where: str) -> str | None:
        """The text of a record; None, and counted, where there is none. Raises DataError where it is no text."""
        if not isinstance(record, dict):
            raise DataError(f"{where}: a {type(record).__name__}, not an object with a field {self.name!r}")
        if self.name not in record:
            self.skipped["missing"] += 1
            if len(self._others) < FIELDS_SHOWN:
                self._others |= dict.fromkeys(record)
            return None
        self._exists = True
        return next(_texts([record[self.name]], self.name, where, self.skipped), None)

    def check(self, file: str) -> None:
        """Raises DataError where there were records, but none with the field."""
        if self._others and not self._exists:
            _check_field(file, self.name, self._others)


def _json_records(lines: Iterator[str], name: str) -> Iterator[tuple[str, object]]:
    """A JSON value a line, with where it stands; or the values of an array that is all of the file."""
    first = True
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        if first and line.lstrip().startswith("["):
            values = _parse_json("\n".join((line, *lines)), name, "neither JSON lines nor one JSON array")
            yield from ((f"{name}, record {i}", value) for i, value in enumerate(values, 1))
            return
        first = False
        where = f"{name}, line {number}"
        yield where, _parse_json(line, where, "not JSON, of which each line must be an object")


def _parse_json(text: str, where: str, problem: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {problem} ({first_line(error)})") from None


def _rows(lines: Iterator[str], name: str, source: RecordSource) -> Iterator[tuple[str, object]]:
    """The rows of CSV or TSV by the names in the first one, with the line they end in."""
    csv.field_size_limit(sys.maxsize)  # a field is a whole document
    ended = (f"{line}\n" for line in lines)
    if source.kind == "csv":
        rows = csv.reader(ended, strict=True)
    else:
        rows = csv.reader(ended, delimiter="\t", quoting=csv.QUOTE_NONE)
    names: list[str] = []
    try:
        for row in rows:
            where = f"{name}, line {rows.line_num}"
            if not row:
                continue
            if not names:
                names = row
                _check_field(name, source.field, names)
            elif len(row) > len(names):
                raise DataError(f"{where}: {len(row)} fields, the first line names {len(names)}")
            else:
                yield where, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise DataError(f"{name}, line {rows.line_num}: not {source.kind.upper()}: {error}") from None


def read_tables(source: TableSource, skipped: Skipped) -> Iterator[str]:
    """One document per row of Parquet or Arrow; of Parquet, only the column that holds them is read."""
    columns = _parquet_columns if source.kind == "parquet" else _arrow_columns
    for file in list_files(source.files):
        with open_file(file.path) as opened:
            for values in _reporting(columns(opened, source.field, file.path), f"{file.path}: cannot be read"):
                yield from _texts(values, source.field, file.path, skipped)


def _parquet_columns(file: Any, field: str, where: str) -> Iterator[list[object]]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    _check_field(where, field, table.schema_arrow.names)
    for batch in table.iter_batches(ROWS_AT_A_TIME, columns=[field]):
        yield batch.column(field).to_pylist()


def _arrow_columns(file: Any, field: str, where: str) -> Iterator[list[object]]:
    """Of Arrow's format of streams, which `datasets` writes, or of files."""
    import pyarrow as pa

    try:
        batches = pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        file.seek(0)
        opened = pa.ipc.open_file(file)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
    for batch in batches:
        _check_field(where, field, batch.schema.names)
        yield batch.column(field).to_pylist()


def read_hub(source: HubSource, skipped: Skipped) -> Iterator[str]:
    """One document per record of a data set of the hub, or of a folder that `datasets` has saved or can load."""
    where = f"{source.dataset} ({source.subset or 'default'}, {source.split})"
    # `.iter()`: plain iteration would silently split the stream in a loader worker
    batches = _open_data_set(source, where).iter(batch_size=ROWS_AT_A_TIME)
    for batch in _reporting(iter(batches), f"{where}: cannot be read"):
        _check_field(where, source.field, batch)
        yield from _texts(batch[source.field], source.field, where, skipped)


def _open_data_set(source: HubSource, where: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what goes wrong we say ourselves
    folder = Path(source.dataset)
    try:
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(folder))
            return saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(
            source.dataset, source.subset, split=source.split, revision=source.revision, streaming=True
        )
    except Exception as error:  # of the network, or of any file format
        raise DataError(f"{where}: cannot be opened: {first_line(error)}") from None


def _reporting(batches: Iterator[Item], problem: str) -> Iterator[Item]:
    """The same, with a DataError for what a library raises: each has exceptions of its own."""
    try:
        yield from batches
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{problem}: {first_line(error)}") from None


def _check_field(where: str, field: str, fields: Iterable[str]) -> None:
    if field not in fields:
        raise DataError(f"{where}: no field {field!r}; there are {', '.join(sorted(fields)[:FIELDS_SHOWN])}")


def _texts(values: list[object], field: str, where: str, skipped: Skipped) -> Iterator[str]:
    """The texts of a column, without its nulls."""
    for value in values:
        if value is None:
            skipped["null"] += 1
        elif not isinstance(value, str):
            raise DataError(f"{where}: field {field!r} is {type(value).__name__}, not text")
        else:
            if not value.strip():
                skipped["empty"] += 1
            yield value
