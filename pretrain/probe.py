"""`pretrain probe`: what each layer of a model knows, beside what it must beat."""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pretrain.errors import ConfigError, DataError
from pretrain.models.start_state import Start
from pretrain.probing.evidence import record
from pretrain.probing.results import FLOORS, Outcome
from pretrain.probing.subjects import open_subject
from pretrain.probing.tasks import Inputs, get_task
from pretrain.runs.trained import is_run


def probe(
    targets: Sequence[Path],
    task: str,
    inputs: Inputs,
    checkpoint: str = "best",
    vectors: Path | None = None,
    *,
    start: Start = "auto",
) -> Outcome:
    """Probes models, run folders or model folders, all with the same data; their texts start as in `Embedder.load`.

    `vectors` is a folder where the vectors of words are kept for the next time; without it, they are only kept until
    all is done. What is found of a run is recorded in its folder, for the card of its exports. Raises ConfigError,
    DataError or ExportError for what cannot be probed.
    """
    for path in (inputs.data, inputs.test, inputs.static):
        if path is not None and not path.is_file():
            raise DataError(f"{path}: no such file")
    _check_options(task, inputs, vectors)
    if checkpoint != "best" and not any(map(is_run, targets)):
        raise ConfigError(f"--checkpoint {checkpoint}: none of what is probed is a run folder")
    names = [str(target) for target in targets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{twice[0]}: given twice")
    if taken := sorted({*names} & {*FLOORS}):
        raise ConfigError(f"{taken[0]}: the name of a floor: give the folder's whole path, {Path(taken[0]).absolute()}")
    subjects = [open_subject(target, checkpoint if is_run(target) else "best", start) for target in targets]
    with contextlib.ExitStack() as kept:
        folder = vectors or Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="pretrain-vectors-")))
        outcome = get_task(task)(subjects, replace(inputs, vectors=folder))
    primed = [
        f"{subject.name}: texts start from its primed state" for subject in subjects if subject.start_state is not None
    ]
    recorded = []
    if start == "auto":  # as exports are read
        recorded = [record(outcome, subject, inputs) for subject in subjects if subject.checkpoint is not None]
    return replace(outcome, notes=(*outcome.notes, *primed, *recorded))


def _check_options(task: str, inputs: Inputs, vectors: Path | None) -> None:
    """Raises ConfigError for an option that the task has no use for."""
    of_pairs = {"--scores": inputs.scores, "--pairs": inputs.pairs}
    of_vectors = {"--test": inputs.test, "--static": inputs.static, "--vectors": vectors}
    for option, value in (of_vectors if task == "minimal-pairs" else of_pairs).items():
        if value is not None:
            raise ConfigError(f"{option} {value}: --task {task} has no use for it")
