"""Tokens per second over training time only."""

import time


class Throughput:
    """Counts tokens between two readings; time spent evaluating or saving is left out."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._since: float | None = time.perf_counter()

    def add(self, tokens: int) -> None:
        """Counts the real (unpadded) tokens of a step, over all ranks."""
        self._tokens += tokens

    def pause(self) -> None:
        """Stops the clock."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def go_on(self) -> None:
        """Starts the clock again."""
        if self._since is None:
            self._since = time.perf_counter()

    def read(self) -> float:
        """Tokens per second since the last reading; a clock that stands still goes on standing."""
        running = self._since is not None
        self.pause()
        rate = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        if running:
            self.go_on()
        return rate
