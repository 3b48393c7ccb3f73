"""Where text comes from, and how it becomes blocks and lanes."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pretrain.config.base import Converted, Section

Share = Annotated[float, Field(ge=0, lt=1)]

Files = Annotated[
    Annotated[str, Tag("one")] | Annotated[tuple[str, ...], Field(min_length=1, strict=False), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


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


class TextSource(AnySource):
    """Plain text in UTF-8, documents separated by blank lines; `.gz` and other compressions too."""

    kind: Literal["text"]
    files: Files
    """Paths, globs or URLs (`hf://`, `s3://`, `https://`)."""
    lines: Literal["paragraph", "sentence", "wrapped"] = "paragraph"
    """What a line is: a paragraph to be cut into sentences, one sentence, or a piece of hard-wrapped text."""


class RecordSource(AnySource):
    """JSON lines, Parquet or Arrow, one document per record; compressed too."""

    kind: Literal["json", "parquet", "arrow"]
    files: Files
    """Paths, globs or URLs (`hf://`, `s3://`, `https://`)."""
    field: str = "text"
    """The record's field that holds the document."""
    lines: Literal["paragraph", "sentence", "wrapped"] = "paragraph"
    """What a line of the document is."""


class HubSource(AnySource):
    """A data set of the Hugging Face hub, or a local folder that `datasets` can load."""

    kind: Literal["hub"]
    dataset: str
    """The data set's name, such as `wikimedia/wikipedia`, or a folder."""
    subset: str | None = None
    """The data set's configuration, such as `20231101.sw`."""
    split: str = "train"
    """The split to read."""
    field: str = "text"
    """The record's field that holds the document."""
    lines: Literal["paragraph", "sentence", "wrapped"] = "paragraph"
    """What a line of the document is."""


class PythonDocsSource(AnySource):
    """Python's own documentation, which every machine has: about 2 MB of English."""

    kind: Literal["python_docs"]

    @property
    def lines(self) -> Literal["paragraph"]:
        """The reader unwraps the text itself."""
        return "paragraph"


AnyKind = Annotated[TextSource | RecordSource | HubSource | PythonDocsSource, Field(discriminator="kind")]
Source = TextSource | RecordSource | HubSource | PythonDocsSource

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
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    """The language whose rules cut paragraphs into sentences (ISO 639); English's where it has none."""
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
