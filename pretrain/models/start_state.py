"""The state that texts start from, in families that carry one: a file beside the weights that other readers ignore."""

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pretrain.errors import ConfigError, ExportError
from pretrain.models.published_files import identify
from pretrain.runtime.files import write_atomically

if TYPE_CHECKING:  # a model folder may hold one of these
    from pretrain.models.family import ModelFolder

log = logging.getLogger(__name__)

Start = Literal["auto", "zero", "primed"]
"""What texts start from: what the model folder says (zero, where it says nothing), zero, or the primed state."""

START_STATE_FILE = "start_state.safetensors"
GAIN = 0.01
"""The share by which the loss from a primed state must be lower to make it a default: all other readers start from
zero, and would give other vectors."""
_TENSOR = "state"


@dataclass(frozen=True)
class StartState:
    """A state that a model has reached by reading some text, from which every text may start."""

    state: Tensor
    """float32 [state size], on the CPU."""
    made_of: str
    """What was read, in words."""
    default: bool = False
    """Whether texts start from it where nothing else is asked."""
    loss: float | None = None
    """Mean loss of sentences that start from it, in nats; None where the model has no softmax."""
    zero_loss: float | None = None
    """The same of the same sentences, from zero."""
    measured_on: str = "nothing"
    """Which sentences, in words."""

    @property
    def gains(self) -> bool:
        """Whether sentences are so much better from it that it should be the default."""
        return self.loss is not None and self.zero_loss is not None and self.loss < (1 - GAIN) * self.zero_loss

    def check(self, what: str) -> None:
        """Raises ExportError where sentences are no better from it than from zero; warns where that is not known."""
        if self.loss is None or self.zero_loss is None:
            log.warning("%s: the primed state could not be checked, since the model has no softmax", what)
        elif not self.loss < self.zero_loss:
            raise ExportError(
                f"{what}: sentences are no better from the primed state (loss {self.loss:.4f} on {self.measured_on}) "
                f"than from zero ({self.zero_loss:.4f}): start from zero"
            )


def choose_start(
    folder: "ModelFolder", make: "Callable[[ModelFolder], StartState] | None", start: Start, what: str
) -> Tensor | None:
    """The state that texts of a model start from, float32 [state size]; None for zero.

    `make` is the family's `make_start_state`; `what` names the model in errors. Raises ValueError for another `start`,
    ConfigError for a primed state of a family that carries none, ExportError where it cannot be made, or is no better.
    """
    if start not in get_args(Start):
        raise ValueError(f"start is {start!r}, not one of {', '.join(map(repr, get_args(Start)))}")
    held = folder.start_state
    if start == "primed":
        if make is None:
            raise ConfigError(f"start primed: {what} is a {folder.config.kind}, which carries no state")
        held = held or make(folder)
        held.check(what)
        return held.state
    return held.state if start == "auto" and held is not None and held.default else None


def fingerprint(encoder: nn.Module) -> str:
    """16 hex digits, equal for equal weights of an encoder."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in sorted(encoder.named_parameters()):
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        digest.update(parameter.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def write_start_state(path: Path, start_state: StartState, encoder: nn.Module) -> None:
    """Writes a state of `encoder`, with how it was made and measured."""
    losses = {name: getattr(start_state, name) for name in ("loss", "zero_loss")}
    metadata = {
        "weights": fingerprint(encoder),
        "made_of": start_state.made_of,
        "default": str(start_state.default).lower(),
        "measured_on": start_state.measured_on,
    } | {name: repr(loss) for name, loss in losses.items() if loss is not None}
    write_atomically(path, save({_TENSOR: start_state.state.contiguous()}, metadata))


def read_start_state(path: Path, encoder: nn.Module) -> StartState:
    """A state of `encoder`, which has a `state_size`; raises ExportError for another's, and for what is none."""
    size = cast(int, encoder.state_size)
    if (what := identify(path)) is not None:
        raise ExportError(f"{path} is {what}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _TENSOR not in file.keys():  # noqa: SIM118
                raise ExportError(f"{path} has no tensor {_TENSOR}")
            declared = file.get_slice(_TENSOR)
            if (declared.get_dtype(), declared.get_shape()) != ("F32", [size]):
                raise ExportError(
                    f"{path}: {_TENSOR} is {declared.get_dtype()} {declared.get_shape()}, the model beside it asks for "
                    f"F32 [{size}]"
                )
            state: Tensor = file.get_tensor(_TENSOR)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} is no safetensors file, or is damaged: {error}") from error
    if not state.isfinite().all():
        raise ExportError(f"{path}: {_TENSOR} holds values that are NaN or infinite")
    theirs, ours = metadata.get("weights"), fingerprint(encoder)
    if theirs != ours:
        raise ExportError(
            f"{path} belongs to other weights ({theirs or 'it does not say which'}) than those beside it ({ours}): "
            "remove it, and texts start from zero"
        )
    return StartState(
        state,
        made_of=metadata.get("made_of", "unknown text"),
        default=_truth(path, metadata.get("default", "false")),
        loss=_number(path, "loss", metadata),
        zero_loss=_number(path, "zero_loss", metadata),
        measured_on=metadata.get("measured_on", "nothing"),
    )


def _truth(path: Path, text: str) -> bool:
    if text not in ("true", "false"):
        raise ExportError(f"{path}: default is {text!r}, not true or false")
    return text == "true"


def _number(path: Path, name: str, metadata: dict[str, str]) -> float | None:
    text = metadata.get(name)
    try:
        number = None if text is None else float(text)
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise ExportError(f"{path}: {name} is {text!r}, not a number")
    return number
