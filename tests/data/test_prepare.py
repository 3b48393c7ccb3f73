"""Preparing: what is written, what it reports, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus
from pretrain.data.prepare import ensure_prepared, find_prepared
from pretrain.errors import ConfigError, DataError
from pretrain.models import get_family
from tests.data.conftest import contents, words_of
from tests.tiny import run_cli, tiny_overrides

Configure = Callable[..., RunConfig]


def prepared(config: RunConfig) -> PreparedCorpus:
    return ensure_prepared(config, get_family(config.model.kind))


def test_everything_is_prepared_once(configure: Configure, corpus: Path) -> None:
    config = configure("tokenizer.word_split=whitespace")
    found = prepared(config)
    words = words_of(found.training) + words_of(found.held_out)
    assert sorted(words) == sorted(corpus.read_text().split())
    folder = Path(found.url)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "tokenizer",
        "unigrams.npy",
        "train",
        "held_out",
    }
    assert prepared(config).url == found.url
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    sentences = sum(source.counts["sentences"] for source in found.training)
    assert found.unigrams("train").sum() == len(words_of(found.training)) + sentences


def test_the_report_of_a_corpus_counted_by_hand(configure: Configure, tmp_path: Path) -> None:
    """Three documents, three sentences, eleven words; the vocabulary holds what stands there twice: `a` and `b`.

    Of a word of 60 letters an ELMo sees 48: 50 ids less the marks of its beginning and end.
    """
    path = tmp_path / "hand.txt"
    path.write_text(f"a b a c. d a\n\nb e\n\nb {'x' * 60} a\n", encoding="utf-8")
    options = (
        "data.held_out=0",
        "tokenizer.minimum_count=2",
        "tokenizer.word_split=whitespace",
        "data.block_tokens=64",
    )
    found = prepared(configure(*options, files=path))
    assert found.training[0].counts == {
        "documents": 3,
        "sentences": 3,
        "words": 11,
        "tokens": 11,
        "unknown_words": 4,  # c. d e x…
        "characters": 11 + 60,
        "characters_left_out": 12,
    }
    assert found.report() == [
        "train text-0: 3 documents, 3 sentences, 11 tokens in 1 blocks; 1.000 tokens per word, 36.36% unknown words, "
        "16.901% characters left out"
    ]


def test_wordpieces_are_reported_per_word(configure: Configure) -> None:
    found = prepared(configure(family="bert"))
    counts = found.training[0].counts
    assert counts["tokens"] > counts["words"] > 0
    assert f"{counts['tokens'] / counts['words']:.3f} tokens per word" in found.report()[0]


def test_a_changed_manifest_is_refused(configure: Configure) -> None:
    config = configure()
    path = Path(prepared(config).url) / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"documents": ', '"documents": 1', 1))
    with pytest.raises(DataError, match=r"manifest\.json: damaged: its checksum does not match"):
        prepared(config)
    path.write_text(text[:-20])
    with pytest.raises(DataError, match=r"manifest\.json: damaged: "):
        prepared(config)


def test_a_missing_or_cut_shard_is_named(configure: Configure) -> None:
    config = configure()
    path = Path(prepared(config).url) / "train" / "text-0-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        DataError, match=rf"text-0-00000\.parquet: {len(whole) - 1} bytes, the manifest says {len(whole)}"
    ):
        prepared(config)
    path.unlink()
    with pytest.raises(DataError, match=r"text-0-00000\.parquet: missing"):
        prepared(config)


def test_a_source_that_changed_since_is_refused(configure: Configure, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one two three. four five.\n\nsix seven.\n" * 20)
    sources = f"data.sources=[{{kind: text, files: {json.dumps(str(folder / '*.txt'))}}}]"
    config = configure(sources, "data.held_out=0")
    prepared(config)
    (folder / "b.txt").write_text("more.\n")
    with pytest.raises(DataError, match=r"b\.txt: new since .* was prepared"):
        prepared(config)
    (folder / "b.txt").unlink()
    with (folder / "a.txt").open("a") as stream:
        stream.write("more.\n")
    with pytest.raises(
        DataError, match=r"a\.txt: changed \(was 760 bytes, .* is 766 bytes, .*\) since .* was prepared"
    ):
        prepared(config)
    (folder / "a.txt").unlink()
    prepared(config)  # a machine that has only the prepared data


def test_another_run_may_use_the_same_folder_only_for_the_same_data(configure: Configure, tmp_path: Path) -> None:
    folder = f"data.folder={tmp_path / 'shared'}"
    first = prepared(configure(folder, "name=first", "seed=1"))
    assert prepared(configure(folder, "name=second", "seed=2", "data.lanes=4")).url == first.url
    with pytest.raises(ConfigError) as caught:
        prepared(configure(folder, "data.block_tokens=2048", "tokenizer.lowercase=true"))
    assert str(caught.value).splitlines() == [
        f"{first.url}: prepared with block_tokens 1024, this run has 2048",
        f"{first.url}: prepared with tokenizer.lowercase False, this run has True",
    ]


@pytest.mark.parametrize("family", ["elmo", "bert"])
def test_the_same_corpus_gives_the_same_bytes_in_every_process(
    family: str, configure: Configure, corpus: Path, tmp_path: Path
) -> None:
    run_cli(
        "prepare",
        f"configs/{family}/demo.yaml",
        *tiny_overrides(family, corpus, tmp_path / "theirs"),
        PYTHONHASHSEED="1",  # this process has a random one
    )
    prepared(configure(family=family))
    ours, theirs = contents(tmp_path / "runs"), contents(tmp_path / "theirs")
    assert len(ours) >= 6
    assert ours == theirs


@pytest.mark.parametrize("scheme", ["memory://", "file://"])
def test_the_folder_may_be_a_url(scheme: str, configure: Configure, tmp_path: Path) -> None:
    local = prepared(configure())
    url = f"{scheme}{tmp_path}/remote"
    config = configure(f"data.folder={url}")
    found = prepared(config)
    assert found.url == url
    assert found.identity == local.identity
    assert words_of(found.training) == words_of(local.training)
    again = prepared(config)
    np.testing.assert_array_equal(again.unigrams("held_out"), local.unigrams("held_out"))
    assert contents(again.fetch_tokenizer()) == contents(local.fetch_tokenizer())
    with pytest.raises(ConfigError, match="prepared with language 'en', this run has 'de'"):
        prepared(configure(f"data.folder={url}", "data.language=de"))


def test_several_sources_and_held_out_ones(configure: Configure, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("other words here. and there.\n\nnothing else.\n" * 30)
    sources = f"data.sources=[{{kind: text, files: {corpus}}}, {{kind: text, files: {tmp_path / 'b.txt'}, name: b}}]"
    found = prepared(configure(sources, f"data.held_out=[{{kind: text, files: {tmp_path / 'b.txt'}, name: c}}]"))
    assert [source.name for source in found.training] == ["b", "text-0"]
    assert [source.name for source in found.held_out] == ["c"]
    assert [source.counts["documents"] for source in (*found.training, *found.held_out)] == [31, 300, 31]


def test_held_out_text_of_a_very_small_corpus(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("one two.\n\nthree four.\n")
    with pytest.raises(DataError, match=r"data.held_out is 0.001: none of 2 documents; raise it to 0.27, or give 0"):
        prepared(configure("data.held_out=0.001", files=tmp_path / "few.txt"))
    assert prepared(configure("data.held_out=0", files=tmp_path / "few.txt")).held_out == ()


def test_a_source_without_text_is_named(configure: Configure, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    sources = f"data.sources=[{{kind: text, files: {corpus}}}, {{kind: text, files: {tmp_path / 'empty.txt'}}}]"
    with pytest.raises(DataError, match=r"source text-1 \(.*empty\.txt\): no text in it"):
        prepared(configure(sources))


def test_a_text_without_full_stops_is_cut_all_the_same(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 5000)
    found = prepared(configure("data.held_out=0", files=tmp_path / "long.txt"))
    (source,) = found.training
    sizes = [len(source.block(number).tokens) for number in range(source.shards.blocks)]
    assert sum(sizes) == 5000
    assert max(sizes) <= 1024 + 256
    assert found.unigrams("train").sum() == 5000 + source.counts["sentences"]


def test_a_folder_to_start_from_must_be_there(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"model\.initialize_from: nowhere: no such folder"):
        prepared(configure("model.initialize_from=nowhere"))


def test_text_that_leaves_nothing_to_predict_is_refused(configure: Configure, tmp_path: Path) -> None:
    """Lines of letters without a space are too long for WordPiece: all of it is [UNK]."""
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abcdefgh"), 150)) for _ in range(40)]
    (tmp_path / "letters.txt").write_text("\n\n".join(lines))
    options = ("data.held_out=0", "tokenizer.vocabulary_size=101")
    config = configure(*options, files=tmp_path / "letters.txt", family="bert")
    with pytest.raises(DataError, match=r"source text-0: all of its 40 words are unknown to the vocabulary"):
        prepared(config)
    assert find_prepared(config) is None


def test_figures_are_said_once(corpus: Path, tmp_path: Path) -> None:
    done = run_cli("prepare", "configs/elmo/demo.yaml", *tiny_overrides("elmo", corpus, tmp_path / "runs"))
    assert (done.stdout + done.stderr).count("train text-0: ") == 1
    assert done.stdout.startswith("train text-0: ")
