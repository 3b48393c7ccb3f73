"""Reads W&B's own offline file back: what `wandb sync` would send."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

MAGIC = b":W&B\xe1\xbe\x00"
BLOCK = 32768
"""The file is a LevelDB log: blocks of records, each with checksum (4 bytes), length (2) and type (1)."""


@dataclass(frozen=True)
class WandbFile:
    """What a run recorded."""

    config: dict[str, Any]
    history: list[dict[str, Any]]


def read_wandb(run_folder: Path) -> WandbFile:
    """The only W&B run of a run folder."""
    (path,) = run_folder.glob("wandb/offline-run-*/*.wandb")
    config: dict[str, Any] = {}
    history = []
    for payload in records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(payload)
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            items = record.history.item
            history.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return WandbFile(config, history)


def records(content: bytes) -> Iterator[bytes]:
    """The payloads of a LevelDB log."""
    assert content.startswith(MAGIC)
    offset, parts = len(MAGIC), b""
    while offset + 7 <= len(content):
        if BLOCK - offset % BLOCK < 7:  # no room for a header: zeros up to the next block
            offset += BLOCK - offset % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, offset)
        parts += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""
