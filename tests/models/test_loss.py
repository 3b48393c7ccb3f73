"""Sums of loss terms against hand-computed numbers."""

from collections.abc import Sequence

import pytest
import torch

from pretrain.models.loss import LossSums, LossTerm, zeroed
from pretrain.runs.held_out import measure_held_out

CPU = torch.device("cpu")


def words(total: float, count: int, correct: int | None = None) -> LossTerm:
    return LossTerm(
        torch.tensor(total), torch.tensor(count), correct=None if correct is None else torch.tensor(correct)
    )


def pairs(total: float, correct: int, classes: Sequence[int]) -> LossTerm:
    return LossTerm(
        torch.tensor(total),
        torch.tensor(sum(classes)),
        predicts_tokens=False,
        correct=torch.tensor(correct),
        classes=torch.tensor(classes),
    )


def test_losses_accuracies_and_majorities() -> None:
    """Of three micro-batches, the second of which repeats another's: it counts for nothing."""
    sums = LossSums()
    repeated = {"mlm": words(99.0, 9), "nsp": pairs(99.0, 4, [4, 0]), "kind": words(9.0, 9, 9)}
    sums.add({"mlm": words(6.0, 3), "nsp": pairs(2.0, 3, [3, 1]), "kind": words(4.0, 2, 1)})
    sums.add({name: zeroed(term) for name, term in repeated.items()})
    sums.add({"mlm": words(4.0, 2), "nsp": pairs(3.0, 2, [1, 5]), "kind": words(5.0, 4, 2)})
    losses = sums.reduce(["nsp", "mlm", "kind"], CPU)
    assert losses.terms == {"nsp": 5 / 10, "mlm": 10 / 5, "kind": 9 / 6}
    assert losses.counts == {"nsp": 10, "mlm": 5, "kind": 6}
    assert losses.accuracies == {"nsp": 5 / 10, "kind": 3 / 6}
    assert losses.majorities == {"nsp": 6 / 10}, "of the sums: the micro-batches' own are 3 and 5"
    assert losses.metrics == {
        "nsp_loss": 0.5, "mlm_loss": 2, "kind_loss": 1.5,
        "nsp_accuracy": 0.5, "kind_accuracy": 0.5, "nsp_majority": 0.6,
    }  # fmt: skip


def test_nothing_is_said_of_a_term_without_predictions() -> None:
    """No loss, no perplexity, no accuracy: only that there are none."""
    sums = LossSums()
    sums.add({"mlm": words(6.0, 3), "kind": zeroed(words(5.0, 4, 2)), "nsp": zeroed(pairs(1.0, 1, [1, 0]))})
    losses = sums.reduce(["nsp", "mlm", "kind"], CPU)
    assert losses.counts == {"nsp": 0, "mlm": 3, "kind": 0}
    assert (losses.terms, losses.metrics) == ({"mlm": 2}, {"mlm_loss": 2})
    assert (losses.loss, losses.token_loss, list(losses.perplexities)) == (2, 2, ["mlm"])
    sums = LossSums()
    sums.add({"mlm": zeroed(words(6.0, 3))})
    losses = sums.reduce(["mlm"], CPU)
    assert (losses.counts, losses.metrics, losses.perplexities) == ({"mlm": 0}, {}, {})
    with pytest.raises(AssertionError, match="no loss over 0 predictions"):
        _ = losses.loss


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_measures_its_own_blocks(rank: int) -> None:
    """Of three blocks of two ranks, the second has one; what it repeats meanwhile is left out."""
    blocks = [[1], [2, 3], [4, 5]]
    mine = [1, 4, 5] if rank == 0 else [2, 3]

    def step(batch: int, carried: object) -> tuple[dict[str, LossTerm], None]:
        return {"nsp": pairs(float(batch), 1, [batch, 1]), "mlm": words(1.0, 1)}, None

    losses = measure_held_out(step, blocks, lambda block: block, rank=rank, ranks=2, device=CPU)
    count = sum(mine) + len(mine)
    assert losses.counts == {"nsp": count, "mlm": len(mine)}
    assert losses.terms == {"nsp": pytest.approx(sum(mine) / count), "mlm": 1}
    assert losses.accuracies == {"nsp": len(mine) / count}
    assert losses.majorities == {"nsp": sum(mine) / count}
