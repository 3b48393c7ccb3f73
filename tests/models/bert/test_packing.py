import numpy as np
import pytest

from pretrain.models.bert.packing import Budgets, best_fit, pack_sequences


def test_the_fullest_pack_that_has_room_is_taken() -> None:
    # 6 and 5 open a pack each; 4 fits the first exactly, 3 and then 2 only the second; the last 2 opens another.
    assert best_fit([6, 5, 4, 3, 2, 2], [0] * 6, Budgets(10, 9, 9)) == [0, 1, 0, 1, 1, 2]


def test_a_pack_is_closed_when_a_budget_is_used_up() -> None:
    assert best_fit([3, 3, 3, 3], [0] * 4, Budgets(100, 2, 9)) == [0, 0, 1, 1]
    assert best_fit([4, 3, 2, 1], [2, 2, 2, 1], Budgets(100, 9, 3)) == [0, 1, 2, 2]
    assert best_fit([10, 10], [9, 9], Budgets(10, 1, 9)) == [0, 1]


@pytest.mark.parametrize("sequences", [6, 16])
@pytest.mark.parametrize("seed", range(3))
def test_budgets_hold_and_nothing_overlaps(seed: int, sequences: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 129, 700)
    masked = np.maximum(1, np.rint(0.15 * lengths).astype(np.int64))
    most = Budgets(256, sequences, 41)
    placement = pack_sequences(lengths, masked, rng.permutation(700), most)
    assert sorted(set(placement.pack)) == list(range(placement.packs))
    for pack in range(placement.packs):
        members = np.flatnonzero(placement.pack == pack)
        members = members[placement.number[members].argsort()]
        assert placement.number[members].tolist() == list(range(len(members)))
        assert placement.offset[members].tolist() == [0, *lengths[members].cumsum()[:-1]]
        assert lengths[members].sum() <= 256 and len(members) <= sequences and masked[members].sum() <= 41
    assert lengths.sum() / (256 * placement.packs) > (0.97 if sequences == 16 else 0.94)


def test_the_order_given_decides_among_sequences_of_one_length() -> None:
    lengths, masked, most = np.full(6, 10), np.ones(6, dtype=np.int64), Budgets(20, 4, 9)
    order = np.array([4, 2, 0, 5, 1, 3])
    placement = pack_sequences(lengths, masked, order, most)
    assert placement.pack[order].tolist() == [0, 0, 1, 1, 2, 2]
    assert placement.number[order].tolist() == [0, 1] * 3


def test_no_sequences_no_packs() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert pack_sequences(nothing, nothing, nothing, Budgets(10, 1, 1)).packs == 0
