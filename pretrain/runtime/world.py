"""Who this process is among the ranks of a run."""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run."""

    rank: int
    local_rank: int
    size: int
    local_size: int


def world() -> World | None:
    """Who this process is, as torchrun and our own launcher say it; None where it was not launched as a rank."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    size = int(os.environ["WORLD_SIZE"])
    return World(
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        size=size,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
    )


@contextlib.contextmanager
def only_rank() -> Iterator[World]:
    """Makes this process a world of one, without a launcher; afterwards it is no rank again, and may train another."""
    own = rank_environment(0, 1, free_port())
    before = {name: os.environ.get(name) for name in own}
    os.environ |= own
    try:
        yield World(rank=0, local_rank=0, size=1, local_size=1)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that tell a process which rank it is, in torchrun's spelling."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "NODE_RANK": "0",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
