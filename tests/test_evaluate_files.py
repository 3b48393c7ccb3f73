"""Files given to `pretrain evaluate --data` as sources."""

import pytest

from pretrain.data.documents import sentence_splitter
from pretrain.errors import ConfigError
from pretrain.evaluate import sources_of_files


def test_kinds_are_told_by_names() -> None:
    names = ["a.txt", "b.md", "c.jsonl.gz", "d.csv", "e.tsv", "f.conllu.xz", "g.parquet", "h.v2.txt.zst", "*.json"]
    config = sources_of_files(names, "sentence")
    assert [source.kind for source in config.sources] == (
        ["text", "text", "json", "csv", "tsv", "conllu", "parquet", "text", "json"]
    )
    assert {source.lines for source in config.sources} == {"sentence"}
    assert config.held_out == 0
    with pytest.raises(ConfigError, match=r"--data a\.doc: unknown kind of file: expected \.txt"):
        sources_of_files(["a.doc"])
    with pytest.raises(ConfigError, match=r"^--data: language: 'xx' is no language of ISO 639-1"):
        sources_of_files(["a.txt"], language="xx")


def test_the_language_decides_how_they_are_cut() -> None:
    """Abbreviations end no sentence, and every language has its own."""
    config = sources_of_files(["a.txt"], language="deu")
    text = "Sie wohnt in der Haupt- bzw. Bahnhofstr. Nr. 7."
    assert sentence_splitter(config.language)(text, "paragraph") == sentence_splitter("de")(text, "paragraph")
    assert sentence_splitter(config.language)(text, "paragraph") != sentence_splitter("en")(text, "paragraph")
