"""What ranks tell each other. Nothing here imports torch before it is called."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from pretrain.errors import PretrainError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others in a step."""
PATIENCE = timedelta(days=7)
"""How long it waits for what rank 0 does alone, such as preparing a corpus."""


def join_ranks(size: int, device: Any) -> None:
    """Makes this process one of `size` ranks, on a device that it has set already; nothing where it is one before."""
    import torch.distributed as dist

    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)


def from_rank_0(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on every rank; where it raises there, every rank raises the same.

    The others wait on their hosts, for as long as it takes.
    """
    import torch.distributed as dist

    if not _several():
        return make()
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    made: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            made = [(make(), None)]
        except PretrainError as error:
            made = [(None, error)]
        except Exception as error:  # which may be nothing that can be sent
            dist.broadcast_object_list([(None, RuntimeError(f"rank 0: {error!r}"))], src=0, group=group)
            raise
    dist.broadcast_object_list(made, src=0, group=group)
    dist.destroy_process_group(group)
    value, problem = made[0]
    if problem is not None:
        raise problem
    result: T = value
    return result


def _several() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def leave_ranks() -> None:
    """Ends the process group, once a rank's work is done and well.

    gloo's threads may still hold tensors. One that lets go of them while Python shuts down aborts the process
    ("terminate called without an active exception"), so they are joined before. Not for a rank that failed: the others
    may never answer it.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: Any) -> Any:
    """A tensor summed over all ranks, in place; as it is where there is one process."""
    import torch.distributed as dist

    if _several():
        dist.all_reduce(values)
    return values


def rank_and_ranks() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)


def sum_on_rank(values: Any, rank: int) -> None:
    """A tensor summed over all ranks, in place on one of them; what the others are left with means nothing."""
    import torch.distributed as dist

    if _several():
        dist.reduce(values, dst=rank)


def broadcast(values: Any, rank: int) -> None:
    """A tensor of one rank on every rank, in place."""
    import torch.distributed as dist

    if _several():
        dist.broadcast(values, src=rank)


class HostSums:
    """Sums of integers over all ranks, on the hosts: nobody waits for an accelerator. Made by all ranks together."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._several = _several()
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

    if not _several():
        return value
    values = torch.tensor([value], device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return int(values.item())


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, on every rank, in rank order."""
    import torch.distributed as dist

    if not _several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
