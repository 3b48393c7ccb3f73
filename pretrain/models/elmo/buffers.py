"""Memory that the recurrence uses again.

Above 32 MiB the C library takes memory from the system each time, and its pages are cleared when they are first
touched: a tenth of the time of a training step.
"""

from collections import OrderedDict

import torch
from torch import Tensor

MAX_SHAPES = 6
"""A window needs two or three: training and held-out text have one each."""


class BufferPool:
    """Buffers in CPU memory of the shapes asked for last, never more of a shape than were in use at once."""

    def __init__(self) -> None:
        self._free: OrderedDict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = OrderedDict()
        """By shape and dtype, the latest last."""

    def take(self, *shape: int, like: Tensor) -> Tensor:
        """An uninitialised tensor with the dtype and device of another; `give_back` makes it free."""
        if like.device.type != "cpu":  # CUDA's allocator has a pool of its own
            return like.new_empty(shape)
        free = self._free.setdefault((shape, like.dtype), [])
        self._free.move_to_end((shape, like.dtype))
        if len(self._free) > MAX_SHAPES:
            self._free.popitem(last=False)
        return free.pop() if free else like.new_empty(shape)

    def give_back(self, *buffers: Tensor) -> None:
        """Keeps those whose shape is among the latest."""
        for buffer in buffers:
            free = self._free.get((tuple(buffer.shape), buffer.dtype))
            # autograd saves no tensor that was made in inference mode
            if free is not None and buffer.device.type == "cpu" and not buffer.is_inference():
                free.append(buffer)

    def free_bytes(self) -> int:
        """The memory that is free to use again."""
        return sum(buffer.nbytes for free in self._free.values() for buffer in free)
