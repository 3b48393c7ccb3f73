"""Ranks: who we are, starting them on this host, and ending when the launcher is gone."""

import atexit
import contextlib
import faulthandler
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

log = logging.getLogger(__name__)

LAUNCHER = "PRETRAIN_LAUNCHER_PID"
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0


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
    before = dict(os.environ)
    os.environ |= rank_environment(0, 1, free_port())
    try:
        yield World(rank=0, local_rank=0, size=1, local_size=1)
    finally:
        os.environ.clear()
        os.environ |= before


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


def spawn_ranks(command: Sequence[str], ranks: int) -> int:
    """Runs `command` once per rank and waits; the first failure ends them all. Returns the exit code to leave with.

    SIGTERM and SIGINT are passed on. Nothing is left behind: a rank whose launcher is killed ends by itself.
    """
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    shared = os.environ | {LAUNCHER: str(os.getpid()), "OMP_NUM_THREADS": threads}
    port = free_port()
    running: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for rank in range(ranks):
            running.append(subprocess.Popen(command, env=shared | rank_environment(rank, ranks, port)))
        return _wait(running)
    finally:
        _end(running)
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits until all have ended well or one has not."""
    while True:
        codes = [process.poll() for process in running]
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if failed:
            time.sleep(POLL_SECONDS)  # the rank at fault and those it takes along end together: prefer a user's error
            codes = [process.poll() for process in running]
            if 2 in codes:
                return 2
            rank, code = failed[0]
            log.error("rank %d ended with %s", rank, f"exit code {code}" if code > 0 else signal.Signals(-code).name)
            return code if code > 0 else 128 - code
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL_SECONDS / 5)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_with_launcher() -> None:
    """Ends this process within a second or so of its launcher's death, however that died; a crash says where it was."""
    faulthandler.enable()
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(POLL_SECONDS)
        sys.stderr.write("the launcher is gone: this rank ends\n")
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def leave_ranks() -> None:
    """Ends the process group, once a rank's work is done and well.

    gloo's threads may still hold tensors. One that lets go of them while Python shuts down aborts the process
    ("terminate called without an active exception"), so they are joined before. Not for a rank that failed: the others
    may never answer it.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def end_rank() -> NoReturn:
    """Ends the process of a rank whose work is done and well, without taking its interpreter down.

    Threads of process groups outlive `leave_ranks` in some runs, and end the process with SIGABRT when static objects
    are destroyed: a finished run would be reported as a failed one. What Python was asked to do at exit is done.
    """
    leave_ranks()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def sum_over_ranks(values: Any) -> Any:
    """A tensor summed over all ranks, in place; as it is where there is one process."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


class HostSums:
    """Sums of integers over all ranks, on the hosts: nobody waits for an accelerator. Made by all ranks together."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        on_hosts = not self._several or dist.get_backend() == "gloo"
        self._group = None if on_hosts else dist.new_group(backend="gloo")

    def __call__(self, values: Sequence[int]) -> list[int]:
        """The sum of each value; every rank must call it with as many, each within int64."""
        import torch
        import torch.distributed as dist

        if not self._several:
            return list(values)
        sums = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(sums, group=self._group)
        return list(sums.tolist())


def max_over_ranks(value: int, device: Any) -> int:
    """The largest of the ranks' values."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    values = torch.tensor([value], device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return int(values.item())


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, on every rank, in rank order."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
