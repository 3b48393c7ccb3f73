"""How many threads a rank computes with on CPU: what a trial on the machine, as busy as it is, finds fastest."""

import os
import time
from typing import Literal

from pretrain.runtime.collectives import gather_objects

TRIAL_SECONDS = 0.8
"""Of all candidates together."""
WORTH = 0.9
"""More threads are taken where they need at most this share of the time."""


def set_threads(wanted: int | Literal["auto"], ranks: int, before: int | None) -> str | None:
    """Sets torch's threads in this rank, one of `ranks` on this host; returns what the log should say, if anything.

    `auto` leaves what `OMP_NUM_THREADS` says (torchrun says 1 where it starts several ranks), or else takes as many as
    `before`, the run's last start on as many ranks, since sums may be rounded otherwise with another number; or else
    tries. All ranks call it together, try at once, and take the same number.
    """
    import torch

    told = wanted != "auto" or "OMP_NUM_THREADS" in os.environ
    asked = gather_objects((told, max(1, (os.cpu_count() or 1) // ranks)))
    most = min(number for _, number in asked)
    if wanted != "auto":
        torch.set_num_threads(wanted)
        return None
    if any(one_told for one_told, _ in asked):
        number = torch.get_num_threads()
        return None if number == most else f"{_threads(number)} for each rank, as OMP_NUM_THREADS says"
    if before is not None and before <= most:
        torch.set_num_threads(before)
        return f"{_threads(before)} for each rank, as before (compute.threads)" if most > 1 else None
    seconds = {number: 0.0 for number in _candidates(most)}
    if len(seconds) > 1:
        each = TRIAL_SECONDS / len(seconds)
        for taken in gather_objects({number: _seconds_of_work(number, each) for number in seconds}):
            for number in seconds:
                seconds[number] += taken[number]
    chosen = choose(seconds)
    torch.set_num_threads(chosen)
    if len(seconds) == 1:
        return None
    shown = ", ".join(f"{number}: {seconds[chosen] / taken:.2f}" for number, taken in seconds.items())
    return f"{_threads(chosen)} for each rank, the fastest in a trial (speed of {shown}); compute.threads sets another"


def _threads(number: int) -> str:
    return f"{number} thread" if number == 1 else f"{number} threads"


def _candidates(most: int) -> list[int]:
    """Powers of two, and the most."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def choose(seconds: dict[int, float]) -> int:
    """The number of threads to take, of the seconds that each needed for the same work."""
    best = min(seconds)
    for number in sorted(seconds):
        if seconds[number] < WORTH * seconds[best]:
            best = number
    return best


def _seconds_of_work(threads: int, limit: float) -> float:
    """Mean seconds of a piece of work like a small model's: matrix products with pointwise work between them."""
    import torch

    torch.set_num_threads(threads)
    left, right = torch.ones(256, 256), torch.ones(256, 1024)
    rounds, began = 0, time.perf_counter()
    while rounds < 3 or time.perf_counter() - began < limit:
        for _ in range(4):
            (left @ right).sigmoid_().sum(dim=1)
        rounds += 1
    return (time.perf_counter() - began) / rounds
