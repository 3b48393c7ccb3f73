"""Requests to stop: the terminal's Ctrl-C and SIGTERM, noted instead of died from."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.received = False
        self._process = os.getpid()

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Notes the first SIGINT or SIGTERM; a second one ends the process as if nobody listened."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may change what signals do
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.take_over()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def take_over(self) -> None:
        """Puts our handlers in the place of any that a library has set since `listen`."""
        if threading.current_thread() is threading.main_thread() and not self.received:
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker, which the terminal's Ctrl-C reaches too: the rank ends it when it is done
        self.received = True
        for one in SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        log.info("%s: saving after this step; a second one ends the run at once", signal.Signals(number).name)
