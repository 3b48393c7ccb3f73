"""A prepared corpus: what it is, whose weights its sources have, and what is said of it."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus, open_corpus, source_weights
from pretrain.data.prepare import ensure_prepared, find_prepared
from pretrain.data.tokenizer import settle_tokenizer
from pretrain.errors import ConfigError, DataError
from pretrain.models import FAMILIES, get_family
from tests.data.conftest import contents, words_of

Configure = Callable[..., RunConfig]
WRITER = pq.ParquetWriter


def prepared(config: RunConfig) -> PreparedCorpus:
    return ensure_prepared(config, get_family(config.model.kind))


def test_the_identity_is_that_of_the_content(
    configure: Configure, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other bytes of the same blocks are the same corpus; other text, held-out text, or vocabulary is not."""
    first = prepared(configure())
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetWriter", lambda *a, **k: WRITER(*a, **k | {"compression": "snappy"}))
        again = prepared(configure(f"run_root={tmp_path / 'again'}"))
    files = [Path(one.store.url) / "train" / "text-0-00000.parquet" for one in (first, again)]
    assert files[0].read_bytes() != files[1].read_bytes()
    assert again.identity == first.identity
    assert len(first.identity) == 16 and int(first.identity, 16)
    text = corpus.read_text()
    (tmp_path / "other.txt").write_text(text.replace(text.split()[200], "somewhat", 1))
    others = [
        configure(files=tmp_path / "other.txt"),
        configure("data.held_out=0.1"),
        configure("tokenizer.vocabulary_size=140"),
        configure("data.block_tokens=2048"),
    ]
    assert len({first.identity, *(prepared(config).identity for config in others)}) == 5


def test_weights_go_with_names_whatever_the_order(configure: Configure, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("other words here. and there.\n\nnothing else.\n" * 30)
    large = f"{{kind: text, files: {corpus}, name: large, weight: 5}}"
    small = f"{{kind: text, files: {tmp_path / 'b.txt'}, name: small}}"
    runs = [configure(f"data.sources=[{one}, {other}]") for one, other in ((large, small), (small, large))]
    found = [prepared(config) for config in runs]
    assert found[0].url == found[1].url
    for one in found:
        assert [(source.name, source.weight) for source in one.training] == [("large", 5), ("small", 1)]
        assert words_of(one.training[1:])[0] == "."
    apart = prepared(configure(f"data.sources=[{small}, {large}]", f"run_root={tmp_path / 'apart'}"))
    assert apart.identity == found[0].identity, "a vocabulary does not depend on the order either"
    with pytest.raises(DataError, match=r"holds the sources large, small; this run has large, tiny"):
        open_corpus(found[0].url, {"large": 1, "tiny": 1})


def test_what_is_not_there_is_said_alike(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    assert find_prepared(config) is None
    with pytest.raises(DataError, match=r"nowhere: not prepared, or no longer there"):
        open_corpus(str(tmp_path / "nowhere"), source_weights(config.data))
    manifest = Path(prepared(config).url) / "manifest.json"
    content = json.loads(manifest.read_text())["manifest"] | {"format": 2}
    text = json.dumps(content, sort_keys=True)
    manifest.write_text(json.dumps({"manifest": content, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    with pytest.raises(DataError, match=r"prepared by another version of pretrain \(format 2, this one reads 3\)"):
        find_prepared(config)


def test_many_unknown_words_are_warned_of(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    def warnings() -> list[str]:
        return [record.message for record in caplog.records if record.levelno >= logging.WARNING]

    prepared(configure("tokenizer.vocabulary_size=1000"))
    assert not warnings()
    config = configure("tokenizer.vocabulary_size=20")
    prepared(config)
    first = warnings()
    assert len(first) == 2, "of the training and of the held-out text"
    assert first[0].startswith("source text-0: ") and "% of its words are not in the vocabulary" in first[0]
    caplog.clear()
    prepared(config)
    assert warnings() == first, "at every start"


@pytest.mark.parametrize("family", FAMILIES)
def test_options_that_a_models_vocabulary_contradicts_are_refused(
    family: str, configure: Configure, tmp_path: Path
) -> None:
    """Those that were given; the others become the model's, so that the run records what it does."""
    record = get_family(family)
    start = f"model.initialize_from={tmp_path / 'model'}"
    options = {"elmo": ["tokenizer.word_split=whitespace"], "bert": []}[family]
    learned = prepared(configure("tokenizer.lowercase=true", *options, family=family))
    tokenizer = record.tokenizer.load(learned.fetch_tokenizer())
    assert tokenizer is not None
    (tmp_path / "model").mkdir()
    tokenizer.save(tmp_path / "model")
    wrong = {"elmo": "tokenizer.word_split=unicode", "bert": "tokenizer.strip_accents=true"}[family]
    config = configure("tokenizer.lowercase=false", wrong, "tokenizer.vocabulary_size=101", start, family=family)
    with pytest.raises(ConfigError) as caught:
        settle_tokenizer(config, record)
    lines = sorted(str(caught.value).splitlines())
    rule = {"elmo": ("word_split", "'unicode'", "'whitespace'"), "bert": ("strip_accents", True, False)}[family]
    expected = sorted([("lowercase", False, True), rule])
    for line, (key, ours, theirs) in zip(lines, expected, strict=True):
        assert line.startswith(f"tokenizer.{key} is {ours}, and {theirs} in the model that the run starts from")
        assert f"model.initialize_from: {tmp_path / 'model'}" in line
    with pytest.raises(ConfigError, match=r"tokenizer\.lowercase is False, and True"):
        prepared(config)
    bare = configure(start, family=family).model_copy(update={"tokenizer": type(config.tokenizer)()})
    settled = settle_tokenizer(bare, record)
    assert settled.tokenizer.lowercase is True
    assert settle_tokenizer(settled, record) == settled
    assert contents(prepared(settled).fetch_tokenizer()) == contents(learned.fetch_tokenizer())


@pytest.mark.parametrize(
    ("url", "says"),
    [("nowhere://bucket/prepared", "Protocol not known: nowhere"), ("gdrive://folder/prepared", "nstall")],
)
def test_a_store_that_cannot_be_reached_is_one_line(url: str, says: str) -> None:
    """Of a protocol that nobody knows, or whose package is not installed."""
    with pytest.raises(DataError, match=says) as error:
        open_corpus(url, {})
    assert str(error.value).startswith(f"{url}: cannot be reached: ") and "\n" not in str(error.value)
