"""Seeds, throughput and logging."""

import logging
import time
from collections.abc import Iterator

import numpy as np
import pytest

from pretrain.runtime.logging import set_up_logging
from pretrain.runtime.seeding import generator, seed_of
from pretrain.runtime.throughput import Throughput


def test_random_numbers_are_functions_of_their_key_for_ever() -> None:
    """Golden values, of this code: were they to change, no run could be repeated or resumed."""
    assert seed_of("weights", 1) == 4305571108613983971
    assert generator("block order", 1, 0, 0).permutation(8).tolist() == [7, 1, 5, 4, 6, 2, 0, 3]
    assert generator("a", 2).integers(0, 1000, 5).tolist() == [430, 720, 221, 248, 68]


def test_different_keys_give_different_seeds() -> None:
    keys: list[tuple[int | str, ...]] = [(), (1,), ("1",), (1, 2), (12,), (2, 1), ("a", "b"), ("ab",), ("a, b",), (-1,)]
    seeds = [seed_of(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert np.mean([seed_of("even", i) / 2**63 for i in range(2000)]) == pytest.approx(0.5, abs=0.03)


def test_throughput_leaves_pauses_out() -> None:
    throughput = Throughput()
    throughput.add(500)
    time.sleep(0.05)
    throughput.pause()
    throughput.pause()
    time.sleep(0.15)
    throughput.go_on()
    throughput.add(500)
    rate = throughput.read()
    assert 1000 / 0.15 < rate <= 1000 / 0.05


def test_a_reading_starts_afresh_and_keeps_a_pause() -> None:
    throughput = Throughput()
    throughput.add(10)
    throughput.pause()
    assert throughput.read() > 0
    time.sleep(0.05)
    throughput.add(10)
    throughput.go_on()
    assert throughput.read() > 10 / 0.05
    assert throughput.read() == 0.0


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("pretrain")
    handlers, level, our_level = root.handlers, root.level, ours.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(("rank", "expected"), [("0", "news\nworry\n"), ("1", "[rank 1] worry\n")])
def test_only_rank_0_tells_news(
    rank: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    set_up_logging()
    log = logging.getLogger("pretrain.somewhere")
    log.debug("detail")
    log.info("news")
    log.warning("worry")
    assert capsys.readouterr().err == expected
