"""Documents in random order, as blocks, as Parquet files: nothing lost, nothing twice, and damage is seen."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.shards import Shards, cut_blocks, read_block, write_shards
from pretrain.data.shuffle_buckets import Part, ShuffleBuckets
from pretrain.data.store import Store
from pretrain.errors import DataError

Sentences = list[list[int]]


def made_up(rng: np.random.Generator, documents: int, longest: int) -> list[Sentences]:
    """Documents of 1 to `longest` sentences of distinct tokens."""
    counter = iter(range(10**9))
    return [
        [[next(counter) for _ in range(rng.integers(1, 20))] for _ in range(rng.integers(1, longest + 1))]
        for _ in range(documents)
    ]


def shuffled(documents: list[Sentences], part_tokens: int) -> list[Part]:
    with ShuffleBuckets(part_tokens) as buckets:
        for number, sentences in enumerate(documents):
            buckets.add(number, sentences)
        assert buckets.tokens == sum(len(sentence) for document in documents for sentence in document)
        return list(buckets)


def sentences_of(part: Part) -> list[list[object]]:
    ends = np.cumsum(part.lengths)
    return [list(part.tokens[end - length : end]) for end, length in zip(ends, part.lengths, strict=True)]


def tokens_of(parts: list[Part]) -> int:
    return sum(len(part.tokens) for part in parts)


def test_buckets_give_back_every_sentence_in_an_order_of_its_own() -> None:
    documents = made_up(np.random.default_rng(0), 200, 12)
    parts = shuffled(documents, 50)
    assert parts[0].number != 0 or parts[1].number != 1
    assert [part.number for part in parts] == [part.number for part in shuffled(documents, 50)]
    found: dict[int, list[list[object]]] = {}
    for part in parts:
        found.setdefault(part.number, []).extend(sentences_of(part))
        assert tokens_of([part]) <= 50 or len(part.lengths) == 1
    for number, document in enumerate(documents):
        assert sorted(map(tuple, found[number])) == sorted(map(tuple, document))


def test_buckets_take_words_too() -> None:
    with ShuffleBuckets(4) as buckets:
        buckets.add(0, [["a", "b", "a"], ["c", "d"], ["e"]])
        parts = sorted(buckets, key=lambda part: part.tokens[0])
    assert [sentences_of(part) for part in parts] == [[["a", "b", "a"]], [["c", "d"], ["e"]]]


@pytest.mark.parametrize("seed", range(30))
def test_blocks_are_equal_and_hold_everything_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block_tokens = int(rng.integers(100, 1000))
    parts = shuffled(made_up(rng, int(rng.integers(1, 120)), int(rng.integers(1, 60))), block_tokens // 4)
    total = tokens_of(parts)
    blocks = list(cut_blocks(iter(parts), total, block_tokens))
    cut = Counter(token for block in blocks for part in block for token in part.tokens)
    assert cut == Counter(token for part in parts for token in part.tokens)
    assert len(blocks) == max(1, round(total / block_tokens))
    largest = max(len(part.tokens) for part in parts)
    assert all(abs(tokens_of(block) - total / len(blocks)) <= largest for block in blocks)


def test_parts_of_one_document_go_to_different_blocks_where_possible() -> None:
    rng = np.random.default_rng(5)
    long = [[[1] * 10 for _ in range(40)] for _ in range(3)]  # 400 tokens each: 4 parts of 100
    parts = shuffled([*made_up(rng, 200, 4), *long], 100)
    blocks = list(cut_blocks(iter(parts), tokens_of(parts), 400))
    assert len(blocks) > 10
    assert all(len({part.number for part in block}) == len(block) for block in blocks)


def test_a_single_document_still_fills_equal_blocks() -> None:
    parts = shuffled([[[1] * 10 for _ in range(2000)]], 100)
    blocks = list(cut_blocks(iter(parts), 20_000, 400))
    assert {tokens_of(block) for block in blocks} == {400}


def written(folder: Path, documents: list[Any]) -> tuple[Store, Shards, list[dict[str, object]]]:
    store = Store(str(folder))
    with ShuffleBuckets(25) as buckets:
        for number, sentences in enumerate(documents):
            buckets.add(number, sentences)
        entries = write_shards(store, "train/a", buckets, 100)
    return store, Shards(entries), entries


def test_blocks_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.data.shards.BLOCKS_PER_SHARD", 3)
    documents = made_up(np.random.default_rng(1), 60, 5)
    store, shards, entries = written(tmp_path, documents)
    assert [entry["blocks"] for entry in entries[:-1]] == [3] * (len(entries) - 1)
    assert shards.blocks == sum(int(str(entry["blocks"])) for entry in entries) > 6
    sentences: list[tuple[int, ...]] = []
    for number in range(shards.blocks):
        block = read_block(store, shards, number)
        assert block.tokens.dtype == np.int32
        assert block.words is None
        assert len(block.document_starts) == len(block.document_numbers) + 1
        assert block.document_starts[-1] == len(block.sentence_starts) - 1
        assert block.sentence_starts[-1] == len(block.tokens)
        sentences += [tuple(row) for row in np.split(block.tokens, block.sentence_starts[1:-1])]
    assert sorted(sentences) == sorted(tuple(sentence) for document in documents for sentence in document)


def test_words_are_read_as_indexes_into_the_blocks_words(tmp_path: Path) -> None:
    store, shards, _ = written(tmp_path, [[["the", "cat", "saw", "the", "ü"]], [["the", "end"]]])
    block = read_block(store, shards, 0)
    assert block.words is not None
    assert len(set(block.words)) == len(block.words) == 5
    spelt = [block.words[token] for token in block.tokens]
    assert sorted(spelt) == sorted(["the", "cat", "saw", "the", "ü", "the", "end"])


@pytest.mark.parametrize("kind", [int, str])
def test_a_flipped_byte_is_never_read_as_data(kind: Callable[[int], object], tmp_path: Path) -> None:
    """Wherever it is: either the block is read as it was, or the shard is named."""
    documents = [[[kind(t) for t in s] for s in document] for document in made_up(np.random.default_rng(2), 40, 5)]
    store, shards, entries = written(tmp_path, documents)
    file = tmp_path / str(entries[0]["file"])
    whole = file.read_bytes()
    blocks = [read_block(store, shards, number) for number in range(shards.blocks)]
    rng = np.random.default_rng(3)
    refused = 0
    for offset in rng.choice(len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << rng.integers(0, 8)
        file.write_bytes(damaged)
        for number, block in enumerate(blocks):
            try:
                read = read_block(store, shards, number)
            except DataError as error:
                assert str(error).startswith(f"{store.url}/train/a-00000.parquet: block {number}: ")
                assert "\n" not in str(error)
                refused += 1
            else:
                assert read.words == block.words
                for name in ("tokens", "sentence_starts", "document_starts", "document_numbers"):
                    np.testing.assert_array_equal(getattr(read, name), getattr(block, name))
    assert refused > 60


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    store, shards, entries = written(tmp_path, [[[1, 2, 3]]])
    (tmp_path / str(entries[0]["file"])).unlink()
    with pytest.raises(DataError, match=r"train/a-00000\.parquet: missing"):
        read_block(store, shards, 0)
