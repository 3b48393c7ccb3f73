"""Prepared shards: Parquet files in which a row group is a block and a row a document or a part of one.

pyarrow is imported where files are read or written: what a manifest says of them can be known without it.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pretrain.data.blocks import Block
from pretrain.data.shuffle_buckets import Part, ShuffleBuckets
from pretrain.data.store import Store
from pretrain.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BLOCKS_PER_SHARD = 256
LOOK_AHEAD = 256
"""Parts put aside, at most, because another part of their document is in the block already."""


def cut_blocks(parts: Iterable[Part], tokens: int, block_tokens: int) -> Iterator[list[Part]]:
    """Equal blocks of about `block_tokens` of the `tokens` in all, without losing any.

    Parts of one document go to different blocks, as far as there are other documents to fill a block with.
    """
    count = max(1, round(tokens / block_tokens))
    incoming = iter(parts)
    waiting: deque[Part] = deque()
    done = 0
    for number in range(1, count + 1):
        block: list[Part] = []
        documents: set[int] = set()
        postponed: deque[Part] = deque()
        while done * count < number * tokens:
            part = waiting.popleft() if waiting else next(incoming, None)
            if part is not None and part.number in documents and len(postponed) < LOOK_AHEAD:
                postponed.append(part)
                continue
            part = part or postponed.popleft()
            block.append(part)
            documents.add(part.number)
            done += len(part.tokens)
        waiting.extendleft(reversed(postponed))
        if block:
            yield block


def write_shards(store: Store, name: str, buckets: ShuffleBuckets, block_tokens: int) -> list[dict[str, Any]]:
    """Writes all blocks; returns per shard its file, number of blocks, size in bytes and checksums.

    A checksum for each block and one for the metadata, since Parquet's own leave out its headers and its footer; and
    `content`, a hash of what the blocks say, whatever the bytes that say it.
    """
    import pyarrow.parquet as pq

    shards: list[dict[str, Any]] = []
    blocks = cut_blocks(buckets, buckets.tokens, block_tokens)
    while first := next(blocks, None):
        file = f"{name}-{len(shards):05d}.parquet"
        table = _table(first)
        written = 0
        content = hashlib.blake2b(digest_size=8)
        with store.open(file, "wb") as stream, pq.ParquetWriter(stream, table.schema, compression="zstd") as writer:
            for block in itertools.chain([first], itertools.islice(blocks, BLOCKS_PER_SHARD - 1)):
                table = _table(block)
                writer.write_table(table, row_group_size=len(table))
                _hash_content(block, content)
                written += 1
        shard = {"file": file, "blocks": written, "content": content.hexdigest()}
        with store.open(file) as stream, pq.ParquetFile(stream) as parquet:
            shard["bytes"] = stream.seek(0, 2)
            shard["footer"] = _hash_footer(stream)
            shard["checksums"] = [_hash_row_group(stream, parquet, number) for number in range(written)]
        shards.append(shard)
    return shards


def _hash_content(block: list[Part], content: "hashlib.blake2b") -> None:
    """Adds a block's documents, sentences and tokens to a hash."""
    content.update(f"block of {len(block)}\n".encode())
    for part in block:
        words = isinstance(part.tokens, list)
        tokens = "\n".join(part.tokens).encode() if words else np.asarray(part.tokens, "<i4").tobytes()
        content.update(f"{part.number} {len(part.lengths)} {len(tokens)}\n".encode())
        content.update(part.lengths.astype("<i4").tobytes())
        content.update(tokens)


def _hash_footer(stream: IO[bytes]) -> str:
    """A hash of a Parquet file's metadata."""
    end = stream.seek(0, 2)
    stream.seek(end - 8)
    size = int.from_bytes(stream.read(4), "little")
    return _hash(stream, max(0, end - 8 - size), end)


def _hash_row_group(stream: IO[bytes], parquet: "pq.ParquetFile", number: int) -> str:
    """A hash of all bytes of a row group."""
    group = parquet.metadata.row_group(number)
    columns = [group.column(column) for column in range(group.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    stops = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return _hash(stream, min(starts), max(stops))


def _hash(stream: IO[bytes], start: int, stop: int) -> str:
    stream.seek(start)
    return hashlib.blake2b(stream.read(stop - start), digest_size=8).hexdigest()


def _table(block: list[Part]) -> "pa.Table":
    import pyarrow as pa

    kind = pa.string() if isinstance(block[0].tokens, list) else pa.int32()
    return pa.table(
        {
            "document": pa.array([part.number for part in block], pa.int64()),
            "lengths": pa.array([part.lengths for part in block], pa.list_(pa.int32())),
            "tokens": pa.array([part.tokens for part in block], pa.list_(kind)),
        }
    )


class Shards:
    """Where each block of a source is: shard and row group."""

    def __init__(self, shards: list[dict[str, Any]]) -> None:
        self._files = [shard["file"] for shard in shards]
        self.contents: list[str] = [shard["content"] for shard in shards]
        """A hash of what each file's blocks say, independent of the bytes of Parquet."""
        self._footers = [shard["footer"] for shard in shards]
        self._checksums = [checksum for shard in shards for checksum in shard["checksums"]]
        self._starts = np.cumsum([0, *(shard["blocks"] for shard in shards)])

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return int(self._starts[-1])

    def locate(self, block: int) -> tuple[str, int]:
        """File and row group of a block."""
        shard = int(np.searchsorted(self._starts, block, side="right")) - 1
        return self._files[shard], block - int(self._starts[shard])

    def checksums(self, block: int) -> tuple[str, str]:
        """The checksums of a block: of its file's metadata, and of its own bytes."""
        shard = int(np.searchsorted(self._starts, block, side="right")) - 1
        return self._footers[shard], self._checksums[block]


def read_block(store: Store, shards: Shards, number: int) -> Block:
    """One block; raises DataError naming the shard where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, row_group = shards.locate(number)
    footer, checksum = shards.checksums(number)
    try:
        with store.open(file) as stream:
            if _hash_footer(stream) != footer:
                raise OSError("the checksum of the file's metadata does not match the manifest")
            with pq.ParquetFile(stream) as parquet:
                if _hash_row_group(stream, parquet, row_group) != checksum:
                    raise OSError("its checksum does not match the manifest")
                # in this thread: another one may still hold the stream while Python shuts down, and abort the process
                table = parquet.read_row_group(row_group, use_threads=False).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{store.url}/{file}: block {row_group}: {str(error).splitlines()[0]}") from None
    lengths, tokens = (table[name].combine_chunks() for name in ("lengths", "tokens"))
    sentences_per_part = np.diff(lengths.offsets.to_numpy())
    values, words = tokens.flatten(), None
    if pa.types.is_string(values.type):
        dictionary = values.dictionary_encode()
        values, words = dictionary.indices, tuple(dictionary.dictionary.to_pylist())
    return Block(
        tokens=values.to_numpy(zero_copy_only=False).astype(np.int32),
        sentence_starts=_starts(lengths.flatten().to_numpy()),
        document_starts=_starts(sentences_per_part),
        document_numbers=table["document"].to_numpy(),
        words=words,
    )


def _starts(lengths: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
