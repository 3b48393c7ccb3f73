"""What computes: its name, how fast it multiplies matrices, and how much memory a stretch of work takes."""

import contextlib
import ctypes
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

MATRIX_SECONDS = 0.5
"""How long matrix products of one type are repeated."""


def device_name(device: torch.device) -> str:
    """What computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """On CUDA, float32 that is float32: cuDNN convolves in TF32 by default, which keeps three digits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def wait(device: torch.device) -> None:
    """Returns once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_peaks(precision: str, device: torch.device) -> dict[str, float]:
    """FLOP/s of large square matrix products: float32, and after it bfloat16 where the run computes in it."""
    dtypes = [torch.float32, torch.bfloat16] if precision == "bf16-mixed" else [torch.float32]
    return {str(dtype).removeprefix("torch."): _matrix_peak(device, dtype) for dtype in dtypes}


def _matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several products of random matrices."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fastest = min(repeat(lambda: left @ right, device, seconds=MATRIX_SECONDS))
    return 2 * size**3 / fastest


def repeat(work: Callable[[], object], device: torch.device, *, seconds: float) -> list[float]:
    """Seconds of each repetition of `work`, three at least, until they add up to `seconds`."""
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        taken.append(seconds_of(work, device))
    return taken


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long `work` takes on the device."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


class MemoryMeter:
    """The memory that training a model takes at most: made before the model is moved to the device, read after.

    On CUDA what torch allocated; on Linux what of the process was resident; elsewhere unknown.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        there = sum(parameter.nbytes for parameter in model.parameters() if parameter.device.type == device.type)
        self._before = self._now() - there

    def start(self) -> None:
        """From here on the highest mark counts."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif _STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM falls to VmRSS

    def peak(self) -> int | None:
        """Bytes since `start` at most, less what was there before the model; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated() - self._before
        return _resident("VmHWM") - self._before if _STATUS.exists() else None

    def _now(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated()
        if not _STATUS.exists():
            return 0
        # what was freed, but kept for later, would be taken again unseen
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)
        return _resident("VmRSS")


_STATUS = Path("/proc/self/status")


def _resident(field: str) -> int:
    """A field of the process's status, in bytes."""
    (line,) = (line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
