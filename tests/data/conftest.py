"""A small run over made-up text, prepared with whole words: quick, and without a model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedSource
from tests.tiny import tiny_config

Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(corpus: Path, tmp_path: Path) -> Configure:
    """A function of overrides to a tiny run of the family that reads words."""

    def build(*overrides: str, files: Path = corpus, family: str = "elmo") -> RunConfig:
        return tiny_config(family, files, tmp_path / "runs", *overrides)

    return build


def words_of(sources: tuple[PreparedSource, ...]) -> list[str]:
    """All their words, sorted."""
    found: list[str] = []
    for source in sources:
        for number in range(source.shards.blocks):
            block = source.block(number)
            assert block.words is not None
            found += [block.words[token] for token in block.tokens]
    return sorted(found)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by relative name; no locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
