"""How many threads a rank takes: a pure choice, and what is left as it is."""

import os

import pytest
import torch

from pretrain.runtime import threads
from pretrain.runtime.threads import choose, set_threads


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 0.5, 4: 0.25}, 4),
        ({1: 1.0, 2: 0.95}, 1),  # hardly faster: others may want the core
        ({1: 1.0, 2: 10.0}, 1),  # a busy machine
        ({1: 1.0, 2: 0.6, 4: 0.58}, 2),
    ],
)
def test_more_threads_are_taken_where_they_help(seconds: dict[int, float], chosen: int) -> None:
    assert choose(seconds) == chosen


def test_a_trial_says_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {1: 0.2, 2: 0.1, 4: 0.5}
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "_seconds_of_work", lambda number, limit: taken[number])
    line = set_threads("auto", 1, None)
    assert line is not None
    assert line.startswith("2 threads for each rank, the fastest in a trial (speed of 1: 0.50, 2: 1.00, 4: 0.20); ")
    assert torch.get_num_threads() == 2


def test_what_a_run_began_with_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums may be rounded otherwise by another number of threads, and a resumed run is to be bitwise the same."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "_seconds_of_work", lambda number, limit: pytest.fail("no trial"))
    assert set_threads("auto", 1, 3) == "3 threads for each rank, as before (compute.threads)"
    assert torch.get_num_threads() == 3
    assert set_threads(2, 1, 3) is None and torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert set_threads("auto", 1, None) == "2 threads for each rank, as OMP_NUM_THREADS says"
    assert torch.get_num_threads() == 2, "torch has heeded the variable"


def test_one_core_a_rank_needs_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert set_threads("auto", 2, None) is None
    assert torch.get_num_threads() == 1


def test_a_real_trial() -> None:
    assert threads._seconds_of_work(1, 0.01) > 0
