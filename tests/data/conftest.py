"""A small run over made-up text, prepared with whole words: quick, and without a model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config.run import RunConfig
from tests.tiny import tiny_config

Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(corpus: Path, tmp_path: Path) -> Configure:
    """A function of overrides to a tiny run of the family that reads words."""

    def build(*overrides: str, files: Path = corpus, family: str = "elmo") -> RunConfig:
        return tiny_config(family, files, tmp_path / "runs", *overrides)

    return build
