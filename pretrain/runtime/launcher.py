"""Ranks on this host: started together, ended together."""

import atexit
import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from pretrain.runtime.collectives import leave_ranks
from pretrain.runtime.files import adopt
from pretrain.runtime.world import free_port, rank_environment

log = logging.getLogger(__name__)

LAUNCHER = "PRETRAIN_LAUNCHER_PID"
LOCKS = "PRETRAIN_LOCKS"
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0
STOPPED = 75
"""Exit code of a run that was asked to stop, and saved first: the same command goes on."""


def launched_here() -> bool:
    """Whether this process is a rank that `spawn_ranks` started."""
    return LAUNCHER in os.environ


def spawn_ranks(command: Sequence[str], ranks: int, *, inherited: Sequence[int] = ()) -> int:
    """Runs `command` once per rank and waits; the first failure ends them all. Returns the exit code to leave with.

    Ranks that stop because they were asked to leave with `STOPPED`, and so does this. SIGTERM and SIGINT are passed on,
    each once: ranks are a process group of their own, which a terminal's Ctrl-C does not reach. Nothing is left behind:
    a rank whose launcher is killed ends by itself. Ranks hold the locks whose descriptors are `inherited`, too.
    """
    shared = os.environ | {LAUNCHER: str(os.getpid()), LOCKS: " ".join(map(str, inherited))}
    port = free_port()
    running: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        for process in running:
            process.send_signal(number)

    may_listen = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if may_listen else ()
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        for rank in range(ranks):
            environment = shared | rank_environment(rank, ranks, port)
            running.append(subprocess.Popen(command, env=environment, pass_fds=inherited, process_group=0))
        return _wait(running)
    finally:
        _end(running)
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits until all have ended well or one has not."""
    while True:
        codes = [process.poll() for process in running]
        failed = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0, STOPPED)]
        if failed:
            time.sleep(POLL_SECONDS)  # the rank at fault and those it takes along end together: prefer a user's error
            codes = [process.poll() for process in running]
            if 2 in codes:
                return 2
            rank, code = failed[0]
            log.error("rank %d ended with %s", rank, f"exit code {code}" if code > 0 else signal.Signals(-code).name)
            return code if code > 0 else 128 - code
        if None not in codes:
            return STOPPED if STOPPED in codes else 0
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
    for handle in os.environ.get(LOCKS, "").split():
        adopt(int(handle))
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(POLL_SECONDS)
        sys.stderr.write("the launcher is gone: this rank ends\n")
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def end_rank(code: int = 0) -> NoReturn:
    """Ends the process of a rank that has finished successfully, without taking its interpreter down.

    Threads of process groups outlive `leave_ranks` in some runs, and end the process with SIGABRT when static objects
    are destroyed: a finished run would be reported as a failed one. What Python was asked to do at exit is done.
    """
    leave_ranks()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
