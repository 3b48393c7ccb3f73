"""Whether the texts of a run's model start from zero or from a primed state: measured on held-out text, and kept.

The run folder's `start_states/step-00001000.safetensors` is the state of that checkpoint, in the format of model
folders, so that a run gives the vectors of its export.
"""

import logging
from dataclasses import replace
from pathlib import Path

from torch import nn

from pretrain.errors import ExportError, PretrainError
from pretrain.models import get_family
from pretrain.models.family import ModelFolder
from pretrain.models.start_state import Start, StartState, read_start_state, write_start_state
from pretrain.runs.held_out import evaluate_model
from pretrain.runs.trained import Trained, read_trained

log = logging.getLogger(__name__)

HELD_OUT = "held-out text"
BATCHES = 24
"""Of the first held-out block, which are read from both states: some thousand words."""


def read_with_start_state(run: Path, checkpoint: str, start: Start) -> Trained:
    """A run's checkpoint (`best`, `newest` or a step), its model with a start state where `start` asks for one."""
    trained = read_trained(run, checkpoint)
    return trained if start == "zero" else replace(trained, folder=with_start_state(trained))


def with_start_state(trained: Trained) -> ModelFolder:
    """The model of a run's checkpoint with its start state, by default or not; as it is in families that carry none.

    The state is made and measured once, on held-out text. Without that it is no default, whatever the family finds.
    """
    family = get_family(trained.config.model.kind)
    if family.make_start_state is None:
        return trained.folder
    encoder = trained.folder.model.get_submodule("encoder")
    file = trained.run.start_states / f"{trained.path.resolve().name}.safetensors"
    start_state = _read(file, encoder)
    if start_state is None:
        start_state = _measured(trained, family.make_start_state(trained.folder))
        if start_state.measured_on == HELD_OUT:  # else it may be, another time
            _write(file, start_state, encoder)
    return replace(trained.folder, start_state=start_state)


def _measured(trained: Trained, made: StartState) -> StartState:
    """With the losses of held-out sentences that start from it and from zero, and whether it is the default."""
    try:
        sources = trained.open_corpus().held_out
    except (PretrainError, OSError, ImportError) as error:  # it may be on a server
        log.warning("%s: its start state is not measured on held-out text, which is not there: %s", trained.path, error)
        sources = ()
    if sources:
        loss, zero_loss = (
            evaluate_model(trained.folder, sources, reset=True, start=start, limit=1, batches=BATCHES).loss
            for start in (made.state, None)
        )
        made = replace(made, loss=loss, zero_loss=zero_loss, measured_on=HELD_OUT)
        made = replace(made, default=made.gains)
    log.info(
        "%s: texts start from %s: sentences of %s have a loss of %.4f from zero, of %.4f from the primed state",
        trained.path,
        "the primed state" if made.default else "zero",
        made.measured_on,
        made.zero_loss,
        made.loss,
    )
    return made


def _read(file: Path, encoder: nn.Module) -> StartState | None:
    """What was measured before, of these weights."""
    if not file.exists():
        return None
    try:
        return read_start_state(file, encoder)
    except ExportError as error:
        log.info("%s; it is made anew", error)
        return None


def _write(file: Path, start_state: StartState, encoder: nn.Module) -> None:
    try:
        file.parent.mkdir(exist_ok=True)
        write_start_state(file, start_state, encoder)
    except OSError as error:
        log.info("%s cannot be written, so the start state is measured each time: %s", file, error.strerror)
