"""Preparing: what is written, what it reports, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared, prepared_store, report
from pretrain.data.shards import Shards, read_block
from pretrain.data.store import Store
from pretrain.errors import ConfigError, DataError
from pretrain.models import get_family
from tests.runs import REPOSITORY, clean_environment, run_cli, tiny_overrides

Configure = Callable[..., RunConfig]


def prepared(config: RunConfig) -> Store:
    return ensure_prepared(config, get_family(config.model.kind))


def manifest_of(config: RunConfig) -> dict[str, object]:
    manifest = prepared(config).read_manifest()
    assert manifest is not None
    return manifest


def words_of(store: Store, split: str) -> list[str]:
    """All words of a split, sorted."""
    manifest = store.read_manifest()
    assert manifest is not None
    found: list[str] = []
    for entry in manifest[split]:
        shards = Shards(entry["shards"])
        for number in range(shards.blocks):
            block = read_block(store, shards, number)
            assert block.words is not None
            found += [block.words[token] for token in block.tokens]
    return sorted(found)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_everything_is_prepared_once(configure: Configure, corpus: Path) -> None:
    config = configure("tokenizer.word_split=whitespace")
    store = prepared(config)
    words = words_of(store, "train") + words_of(store, "held_out")
    assert sorted(words) == sorted(corpus.read_text().split())
    folder = Path(store.url)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "tokenizer",
        "unigrams.npy",
        "train",
        "held_out",
    }
    assert prepared(config).url == store.url
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    unigrams = store.read_array("unigrams.npy")
    sentences = sum(entry["counts"]["sentences"] for entry in store.read_manifest()["train"])  # type: ignore[index]
    assert unigrams[0].sum() == len(words_of(store, "train")) + sentences


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
    manifest = manifest_of(configure(*options, files=path))
    assert manifest["train"][0]["counts"] == {  # type: ignore[index]
        "documents": 3,
        "sentences": 3,
        "words": 11,
        "tokens": 11,
        "unknown_words": 4,  # c. d e x…
        "characters": 11 + 60,
        "characters_left_out": 12,
    }
    assert report(manifest) == [
        "train text-0: 3 documents, 3 sentences, 11 tokens in 1 blocks; 1.000 tokens per word, 36.36% unknown words, "
        "16.901% characters left out"
    ]


def test_wordpieces_are_reported_per_word(configure: Configure) -> None:
    manifest = manifest_of(configure(family="bert"))
    counts = manifest["train"][0]["counts"]  # type: ignore[index]
    assert counts["tokens"] > counts["words"] > 0
    assert f"{counts['tokens'] / counts['words']:.3f} tokens per word" in report(manifest)[0]


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
    with pytest.raises(DataError, match=r"a\.txt: changed since .* was prepared from it \(760 bytes, .* now 766 bytes"):
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


@pytest.mark.parametrize("name", ["train", "notes.txt", ".git"])
def test_a_folder_of_something_else_is_left_alone(name: str, configure: Configure, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    if name == "train":
        (folder / name).mkdir()
        (folder / name / "precious.parquet").write_bytes(b"data")
    else:
        (folder / name).write_text("precious")
    before = contents(folder)
    with pytest.raises(DataError, match=rf"not a prepared folder: it holds {name} and no manifest"):
        prepared(configure(f"data.folder={folder}"))
    assert contents(folder) == before


def test_an_interrupted_preparation_is_done_again(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure()
    whole = contents(Path(prepared(config).url))

    folder = Path(prepared_store(config).url)
    for name in whole:
        (folder / name).unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()

    class Killed(BaseException):
        """Stands for a kill: nothing catches it."""

    def killed(self: Store, name: str, array: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_array", killed)
        with pytest.raises(Killed):
            prepared(config)
    assert (folder / "train" / "text-0-00000.parquet").exists()
    assert prepared_store(config).read_manifest() is None
    (folder / "train" / "text-0-00001.parquet").write_bytes(b"left over")
    assert contents(Path(prepared(config).url)) == whole


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
    store = prepared(config)
    assert store.url == url
    assert words_of(store, "train") == words_of(local, "train")
    again = prepared(config)
    np.testing.assert_array_equal(again.read_array("unigrams.npy"), local.read_array("unigrams.npy"))
    assert contents(again.fetch_folder("tokenizer")) == contents(local.fetch_folder("tokenizer"))
    with pytest.raises(ConfigError, match="prepared with language 'en', this run has 'de'"):
        prepared(configure(f"data.folder={url}", "data.language=de"))


def test_several_sources_and_held_out_ones(configure: Configure, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("other words here. and there.\n\nnothing else.\n" * 30)
    sources = f"data.sources=[{{kind: text, files: {corpus}}}, {{kind: text, files: {tmp_path / 'b.txt'}, name: b}}]"
    manifest = manifest_of(configure(sources, f"data.held_out=[{{kind: text, files: {tmp_path / 'b.txt'}, name: c}}]"))
    assert [entry["name"] for entry in manifest["train"]] == ["text-0", "b"]  # type: ignore[attr-defined]
    assert [entry["name"] for entry in manifest["held_out"]] == ["c"]  # type: ignore[attr-defined]
    counts = [entry["counts"]["documents"] for entry in (*manifest["train"], *manifest["held_out"])]  # type: ignore[misc]
    assert counts == [300, 31, 31]


def test_held_out_text_of_a_very_small_corpus(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("one two.\n\nthree four.\n")
    with pytest.raises(DataError, match=r"data.held_out is 0.001: none of 2 documents; raise it, or give 0"):
        prepared(configure("data.held_out=0.001", files=tmp_path / "few.txt"))
    store = prepared(configure("data.held_out=0", files=tmp_path / "few.txt"))
    assert store.read_manifest()["held_out"] == []  # type: ignore[index]


def test_a_source_without_text_is_named(configure: Configure, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    sources = f"data.sources=[{{kind: text, files: {corpus}}}, {{kind: text, files: {tmp_path / 'empty.txt'}}}]"
    with pytest.raises(DataError, match=r"source text-1 \(.*empty\.txt\): no text to train on"):
        prepared(configure(sources))


def test_a_text_without_full_stops_is_cut_all_the_same(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 5000)
    store = prepared(configure("data.held_out=0", files=tmp_path / "long.txt"))
    manifest = store.read_manifest()
    assert manifest is not None
    shards = Shards(manifest["train"][0]["shards"])
    sizes = [len(read_block(store, shards, number).tokens) for number in range(shards.blocks)]
    assert sum(sizes) == 5000
    assert max(sizes) <= 1024 + 256
    assert store.read_array("unigrams.npy")[0].sum() == 5000 + manifest["train"][0]["counts"]["sentences"]


def test_a_folder_to_start_from_must_be_there(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"model\.initialize_from: nowhere: no such folder"):
        prepared(configure("model.initialize_from=nowhere"))


def test_a_second_process_waits_for_the_first(configure: Configure) -> None:
    store = prepared_store(configure())
    code = f"from pretrain.data.store import Store\nwith Store({store.url!r}).lock():\n    print('got it')"
    with store.lock():
        waiting = subprocess.Popen(
            [sys.executable, "-c", code], cwd=REPOSITORY, env=clean_environment(), stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2)
    assert waiting.communicate(timeout=30)[0] == "got it\n"
