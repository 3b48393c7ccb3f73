"""Annotated text as plain text: CoNLL-U and XML."""

import html
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO, NamedTuple
from xml.parsers import expat

from pretrain.config.data import ConlluSource, XmlSource
from pretrain.data.files import open_files
from pretrain.data.text import check_is_text, first_line, read_lines
from pretrain.errors import DataError

CHUNK = 1 << 16
COLUMNS = 10
_INDEX = re.compile(r"(\d+)(?:-(\d+)|(\.\d+))?")
"""The number of a word, of several (2-3), or of an empty node (8.1), which is no word of the text."""
BLOCKS = {
    *("p", "div", "head", "item", "list", "l", "lg", "s", "u", "w", "sp", "speaker", "stage", "table", "row", "cell"),
    *("tr", "td", "th", "li", "ul", "ol", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article"),
    *("abstract", "body", "quote", "blockquote", "note", "figure", "caption", "title"),
}
"""Elements of HTML and TEI whose text is apart from what stands beside them, words that are marked as such included."""
BREAKS = {"br", "lb", "cb", "pb"}
"""Empty elements that stand for white space (unless TEI's `break="no"` says otherwise)."""


class ConlluRow(NamedTuple):
    """A line of CoNLL-U that is no comment."""

    columns: list[str]
    first: int
    """The number of the word; of several words, which `first`-`last` stands for, that of the first."""
    last: int | None
    is_empty: bool
    """Whether it is an empty node, which is no word of the text."""

    @property
    def is_word(self) -> bool:
        """Whether it is a single word."""
        return self.last is None and not self.is_empty


def read_conllu(source: ConlluSource) -> Iterator[str]:
    """Documents as lines of a sentence each; a file without `# newdoc` is one document."""
    for name, file in open_files(source.files):
        document: list[str] = []
        for sentence in conllu_sentences(file, name, source.encoding):
            if begins_document(sentence) and document:
                yield "\n".join(document)
                document = []
            if text := _sentence(sentence, name):
                document.append(text)
        if document:
            yield "\n".join(document)


def conllu_sentences(file: BinaryIO, name: str, encoding: str = "utf-8") -> Iterator[list[tuple[int, str]]]:
    """The sentences of a CoNLL-U file: their lines, comments too, each with its number."""
    sentence: list[tuple[int, str]] = []
    for number, line in enumerate(chain(read_lines(file, name, encoding), [""]), 1):
        if line.strip():
            sentence.append((number, line))
        elif sentence:
            yield sentence
            sentence = []


def begins_document(sentence: Iterable[tuple[int, str]]) -> bool:
    """Whether a sentence's comments say that it is the first of a document."""
    return any(line.startswith("#") and line[1:].split()[:1] == ["newdoc"] for _, line in sentence)


def conllu_row(line: str, number: int, name: str) -> ConlluRow:
    """The row on a line; raises DataError, with file and line, for what is none."""
    columns = line.split("\t")
    index = _INDEX.fullmatch(columns[0])
    if len(columns) != COLUMNS or index is None:
        raise DataError(
            f"{name}, line {number}: not CoNLL-U, whose lines have {COLUMNS} columns separated by tabs, first the "
            f"number of a word (here: {len(columns)}, first {columns[0][:20]!r})"
        )
    first, last, empty = index.groups()
    return ConlluRow(columns, int(first), int(last) if last else None, bool(empty))


def _sentence(lines: list[tuple[int, str]], name: str) -> str:
    """The text of a sentence: that of its `# text`, else its words, with a space after each unless SpaceAfter=No."""
    words: list[str] = []
    covered = 0  # "2-3 vámonos" is a word of the text; "2 vamos" and "3 nos" beneath it are not
    for number, line in lines:
        if line.startswith("#"):
            key, _, value = line[1:].partition("=")
            if key.strip() == "text" and value.strip():
                return value.strip()
            continue
        row = conllu_row(line, number, name)
        if not row.is_empty and row.first > covered:
            form, misc = row.columns[1], row.columns[-1]
            words.append(form if "SpaceAfter=No" in misc.split("|") else f"{form} ")
        covered = row.last or covered
    return "".join(words).strip()


def read_xml(source: XmlSource) -> Iterator[str]:
    """The text of each outermost `document` element; with `paragraph`, a line per outermost one within it.

    Nothing is held but the document being read. Entities that a file declares are refused (a few lines of them can
    stand for gigabytes), and nothing outside of the file is read; those of HTML, such as `&nbsp;`, are known.
    """
    for name, file in open_files(source.files):
        reader = _XmlReader(source, name)
        for chunk in _chunks(file, name, source.encoding):
            yield from reader.read(chunk)
        yield from reader.read(b"", final=True)
        lacking = source.document if not reader.found else None if reader.found_paragraph else source.paragraph
        if lacking is not None:
            raise DataError(f"{name}: no element {lacking!r}; there are {', '.join(sorted(reader.seen)[:20])}")


def _chunks(file: BinaryIO, name: str, encoding: str | None) -> Iterator[bytes | str]:
    """An XML file as its parser takes it: text where its encoding is given, else bytes."""
    if encoding is not None:
        yield from (f"{line}\n" for line in read_lines(file, name, encoding))
        return
    check_is_text(file, name, encoding)
    try:
        while chunk := file.read(CHUNK):
            yield chunk
    except Exception as error:  # every compression, and every file system, has exceptions of its own
        raise DataError(f"{name}: cannot be read: {first_line(error)}") from None


class _XmlReader:
    """Collects the text of documents from one XML file, fed in chunks."""

    def __init__(self, source: XmlSource, name: str) -> None:
        self.seen: set[str] = set()
        """Names of elements."""
        self.found = self.found_paragraph = False
        self._source, self._name = source, name
        self._document = self._paragraph = 0  # how many elements deep we are in one; 0: outside
        self._text: list[str] = []
        self._lines: list[str] = []
        self._documents: list[str] = []
        self._parser: Any = expat.ParserCreate(namespace_separator="}")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text_found
        self._parser.EntityDeclHandler = self._refuse
        self._parser.SkippedEntityHandler = self._entity
        self._parser.UseForeignDTD(True)  # so that an undeclared entity is asked for instead of an error

    def read(self, chunk: bytes | str, final: bool = False) -> Iterator[str]:
        """The documents that end in a chunk."""
        try:
            self._parser.Parse(chunk, final)
        except expat.ExpatError as error:
            problem = expat.ErrorString(error.code)
            raise DataError(f"{self._name}, line {error.lineno}: not XML: {problem}") from None
        except (LookupError, ValueError) as error:  # an encoding that the parser does not know
            raise DataError(
                f"{self._name}: its declared encoding cannot be read ({first_line(error)}): name it by the source's "
                "`encoding`"
            ) from None
        documents, self._documents = self._documents, []
        yield from documents

    def _start(self, qualified: str, attributes: dict[str, str]) -> None:
        name = qualified.rpartition("}")[2]
        if len(self.seen) < 1000:
            self.seen.add(name)
        if self._document or name == self._source.document:
            self._document += 1
            self.found = True
            if self._paragraph or name == self._source.paragraph:
                if not self._paragraph:
                    self._text, self.found_paragraph = [], True
                self._paragraph += 1
        if name in BLOCKS or (name in BREAKS and attributes.get("break") != "no"):
            self._text_found(" ")

    def _end(self, qualified: str) -> None:
        if qualified.rpartition("}")[2] in BLOCKS:
            self._text_found(" ")
        if self._paragraph:
            self._paragraph -= 1
            if not self._paragraph:
                self._lines.append(" ".join("".join(self._text).split()))
        if self._document:
            self._document -= 1
            if not self._document:
                text = "".join(self._text) if self._source.paragraph is None else "\n".join(self._lines)
                self._documents.append(text)
                self._text, self._lines = [], []

    def _text_found(self, text: str) -> None:
        if self._paragraph or (self._document and self._source.paragraph is None):
            self._text.append(text)

    def _entity(self, name: str, is_parameter: bool) -> None:
        if not is_parameter:
            text = html.unescape(f"&{name};")
            if text == f"&{name};":
                self._fail(f"the entity &{name}; is not known")
            self._text_found(text)

    def _refuse(self, name: str, *_: Any) -> None:
        self._fail(f"it declares the entity {name!r}: such files are not read; replace its entities first")

    def _fail(self, problem: str) -> None:
        raise DataError(f"{self._name}, line {self._parser.CurrentLineNumber}: {problem}")
