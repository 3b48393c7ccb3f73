"""Where text comes from, and how it becomes blocks and lanes."""

import codecs
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from pretrain.config.base import Converted, Section
from pretrain.config.languages import known_language

Share = Annotated[float, Field(ge=0, lt=1)]

Files = Annotated[
    Annotated[str, Tag("one")] | Annotated[tuple[str, ...], Field(min_length=1, strict=False), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]
Lines = Literal["paragraph", "sentence", "wrapped"]


def _known_encoding(name: str) -> str:
    try:
        "text".encode(name)  # unlike codecs.lookup, refuses what is no encoding of text, such as hex
    except LookupError:
        raise ValueError(f"{name!r} is no encoding of text: give one such as utf-8, latin-1 or cp1252") from None
    return codecs.lookup(name).name


Encoding = Annotated[str, AfterValidator(_known_encoding)]


class AnySource(Section):
    """What every source has."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    """The source's name in reports and folders; by default its kind and its place in the list."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """This source's share of the training tokens, relative to the other sources."""

    @property
    def fields(self) -> dict[str, object]:
        """What decides the text that the source gives: not its weight, not its name."""
        return self.model_dump(mode="json", exclude={"weight", "name"})


class FilesSource(AnySource):
    """What every source that is made of files has."""

    files: Files
    """Paths, globs or URLs (`hf://`, `s3://`, `https://`); hidden files and folders only where a pattern names them."""


class TextSource(FilesSource):
    """Plain text, documents separated by blank lines; compressed (`.gz`, `.bz2`, `.xz`, `.zst`) or in archives too."""

    kind: Literal["text"]
    encoding: Encoding = "utf-8"
    """How the files are encoded."""
    lines: Lines = "paragraph"
    """What a line is: a paragraph to be cut into sentences, one sentence, or a piece of hard-wrapped text."""


class RecordSource(FilesSource):
    """JSON lines, CSV or TSV, one document per record; compressed or in archives too.

    The first line of CSV and TSV names the fields. In TSV a quotation mark is text.
    """

    kind: Literal["json", "csv", "tsv"]
    encoding: Encoding = "utf-8"
    """How the files are encoded."""
    field: str = "text"
    """The record's field that holds the document."""
    lines: Lines = "paragraph"
    """What a line of the document is."""


class TableSource(FilesSource):
    """Parquet or Arrow, one document per row."""

    kind: Literal["parquet", "arrow"]
    field: str = "text"
    """The column that holds the document."""
    lines: Lines = "paragraph"
    """What a line of the document is."""


class ConlluSource(FilesSource):
    """CoNLL-U: sentences as their `# text` says, else as their words say; `# newdoc` begins a document."""

    kind: Literal["conllu"]
    encoding: Encoding = "utf-8"
    """How the files are encoded."""

    @property
    def lines(self) -> Literal["sentence"]:
        """The format has sentences of its own."""
        return "sentence"


class XmlSource(FilesSource):
    """XML, one document per element of a name, TEI included: namespaces are ignored, and so is all other text."""

    kind: Literal["xml"]
    document: str = "text"
    """The element that holds a document, by its name without a namespace."""
    paragraph: str | None = None
    """The element, within a document, that holds a line; without one, the lines of the document are its text's own."""
    encoding: Encoding | None = None
    """How the files are encoded; by default as they declare."""
    lines: Lines = "paragraph"
    """What a line of the document is."""


class HubSource(AnySource):
    """A data set of the Hugging Face hub, or a local folder that `datasets` has saved or can load."""

    kind: Literal["hub"]
    dataset: str
    """The data set's name, such as `wikimedia/wikipedia`, or a folder."""
    subset: str | None = None
    """The data set's configuration, such as `20231101.sw`."""
    split: str = "train"
    """The split to read."""
    revision: str | None = None
    """The branch, tag or commit to read; by default the newest, which may change from one day to the next."""
    field: str = "text"
    """The record's field that holds the document."""
    lines: Lines = "paragraph"
    """What a line of the document is."""


class PythonDocsSource(AnySource):
    """Python's own documentation, which every machine has: about 2 MB of English."""

    kind: Literal["python_docs"]

    @property
    def lines(self) -> Literal["paragraph"]:
        """The reader unwraps the text itself."""
        return "paragraph"


Source = TextSource | RecordSource | TableSource | ConlluSource | XmlSource | HubSource | PythonDocsSource
AnyKind = Annotated[Source, Field(discriminator="kind")]

HeldOut = Annotated[
    Annotated[Share, Tag("share")] | Annotated[tuple[AnyKind, ...], Converted, Tag("sources")],
    Discriminator(lambda value: "sources" if isinstance(value, list | tuple) else "share"),
]


class DataConfig(Section):
    """The corpus and how it is read."""

    sources: Annotated[tuple[AnyKind, ...], Field(min_length=1, strict=False)]
    """Where text comes from."""
    folder: str | None = None
    """Where prepared shards are kept: a path or URL; by default a folder under `run_root`, named by its content."""
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$"), AfterValidator(known_language)] = "en"
    """The language whose rules cut paragraphs into sentences, by its code of ISO 639-1 or -3. Where the splitter has
    no rules for it, a related language's or English's are taken, and the log says so."""
    held_out: HeldOut = 0.02
    """Text that is never trained on: a share of the documents (0: none), or sources of its own."""
    block_tokens: Annotated[int, Field(ge=64)] = 65_536
    """Tokens of a block, the unit of shuffling and resuming."""
    lanes: Annotated[int, Field(gt=0)] = 8
    """Independent readers that share out the blocks; a multiple of the ranks, fixed for the run."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Loader processes per rank; 0 reads in the training process."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [*self.source_names(), *self.held_out_names()]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two sources are named {repeated[0]}: give them names that differ")
        return self

    def source_names(self) -> list[str]:
        """The name of each source."""
        return [source.name or f"{source.kind}-{i}" for i, source in enumerate(self.sources)]

    def held_out_sources(self) -> tuple[Source, ...]:
        """The sources that are held out whole; empty where a share of the documents is."""
        return self.held_out if isinstance(self.held_out, tuple) else ()

    def held_out_names(self) -> list[str]:
        """The name of each held-out source."""
        return [source.name or f"held-out-{source.kind}-{i}" for i, source in enumerate(self.held_out_sources())]
