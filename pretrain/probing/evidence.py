"""What was probed of a run: kept in its folder, a file for each task and step, and told in the card of its exports."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import ExportError
from pretrain.probing.results import Outcome, Result
from pretrain.probing.subjects import Subject
from pretrain.probing.tasks import Inputs
from pretrain.probing.verdict import DESCRIPTIVE, Standing, is_floor_of, metrics, shown, standing, verdict
from pretrain.runs.checkpoints import sha256
from pretrain.runs.folder import RunFolder, versions
from pretrain.runtime.files import write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evidence:
    """One task's figures of one checkpoint."""

    outcome: Outcome
    """Of this model and what it was held against, and nothing of others that were probed beside it."""
    model: str
    """What its results call it."""
    files: dict[str, dict[str, str]]
    """`data`, and `test` and `static` where they were given: the `name` and `sha256` of each file."""
    seed: int
    weights: str
    """SHA-256 of the checkpoint's complete.json."""


def record(outcome: Outcome, subject: Subject, inputs: Inputs) -> str:
    """Writes what was found of a run's checkpoint into its folder; says where, or why it could not."""
    assert subject.checkpoint is not None
    folder = RunFolder(subject.checkpoint.parents[1])
    path = folder.probes / f"{outcome.task}-{subject.checkpoint.name}.json"
    try:
        text = json.dumps(_values(evidence_of(outcome, subject, inputs)), indent=1, allow_nan=False)
        folder.probes.mkdir(exist_ok=True)
        write_atomically(path, text + "\n")
    except OSError as error:
        return f"{path}: cannot be written ({error.strerror}): exports will not tell of this probe"
    return f"recorded in {path}, for the card of exports"


def _values(found: Evidence) -> dict[str, Any]:
    """For JSON, which has no number for what is not known: that is left out."""
    results = [
        {key: value for key, value in result.values().items() if not isinstance(value, float) or math.isfinite(value)}
        for result in found.outcome.results
    ]
    values: dict[str, Any] = {
        "task": found.outcome.task,
        "model": found.model,
        "weights": found.weights,
        "seed": found.seed,
    }
    values |= {"files": found.files, "versions": versions(), "results": results}
    return values | {"notes": list(found.outcome.notes), "details": dict(found.outcome.details)}


def evidence_of(outcome: Outcome, subject: Subject, inputs: Inputs) -> Evidence:
    """The part of an outcome that is about one model; sentences of the data are left out."""
    assert subject.checkpoint is not None
    name = subject.name
    results = tuple(result for result in outcome.results if result.model == name or is_floor_of(result, name))
    weights = outcome.details.get("mixing_weights", {})
    details = {"mixing_weights": {name: weights[name]}} if name in weights else {}
    given = {"data": inputs.data, "test": inputs.test, "static": inputs.static}
    files = {key: {"name": path.name, "sha256": sha256(path)} for key, path in given.items() if path is not None}
    notes = []
    for note in outcome.notes:  # where files lie on this machine is nobody's business
        for path in given.values():
            note = note if path is None else note.replace(str(path), path.name)
        notes.append(note)
    kept = Outcome(outcome.task, results, tuple(notes), details)
    return Evidence(kept, name, files, inputs.seed, sha256(subject.checkpoint / "complete.json"))


def read_evidence(folder: RunFolder, checkpoint: Path) -> list[Evidence]:
    """What was probed of a checkpoint, by task; raises ExportError for a file that holds something else.

    What was probed of other weights of the same step is left out, which the log says.
    """
    found = []
    weights = sha256(checkpoint / "complete.json")
    for path in sorted(folder.probes.glob(f"*-{checkpoint.name}.json")):
        evidence = _read(path)
        if evidence.weights == weights:
            found.append(evidence)
        else:
            log.warning("%s: of other weights than %s holds now: left out of the card", path, checkpoint)
    return found


def _read(path: Path) -> Evidence:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        unknown = dict.fromkeys(("value", "low", "high"), math.nan)
        results = [Result(**unknown | result) for result in values["results"]]
        outcome = Outcome(values["task"], tuple(results), tuple(values["notes"]), values["details"])
        return Evidence(outcome, values["model"], values["files"], values["seed"], values["weights"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{path}: not what pretrain probe writes ({error!r}): remove it, or probe anew") from None


def card_section(found: Sequence[Evidence]) -> str:
    """For a model card, in Markdown: of each task the verdict, and the figures that it is about."""
    if not found:
        return "* nothing was probed"
    return "\n\n".join(["In brackets, 95 % bootstrap intervals.", *map(_card_part, found)])


def _card_part(found: Evidence) -> str:
    files = ", ".join(
        f"{key} `{_plain(file['name'])}` (SHA-256 `{file['sha256'][:16]}…`)" for key, file in found.files.items()
    )
    parts = [f"### {found.outcome.task}", f"{files}, seed {found.seed}.", verdict(found.outcome, found.model)]
    if found.outcome.notes:  # what the figures are of, such as a part of the pairs
        parts.insert(2, _plain(found.outcome.notes[0]))
    if found.outcome.task not in DESCRIPTIVE and (rows := list(_rows(found))):
        names = [metric.replace("_", " ") for metric in metrics(found.outcome)]
        lines = [["", *names], ["---"] * (len(names) + 1), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def _rows(found: Evidence) -> Iterator[list[str]]:
    """The best layer by the first metric, the mix, and the floors, each with all metrics."""
    named = metrics(found.outcome)
    if not named:
        return
    held = standing(found.outcome, found.model, named[0])
    for title, result in _chosen(held):
        figures = (_same(found.outcome, result, metric) for metric in named)
        yield [title.replace("|", "/"), *("" if figure is None else shown(figure) for figure in figures)]


def _chosen(held: Standing) -> Iterator[tuple[str, Result]]:
    if (best := held.best) is not None and best is not held.mix:
        several = len(held.layers) > 1 and best.layer != 0
        yield (f"best contextual layer, {best.layer}" if several else f"layer {best.layer}"), best
    if held.mix is not None:
        yield "learned mix of all layers", held.mix
    yield from held.rivals()


def _same(outcome: Outcome, result: Result, metric: str) -> Result | None:
    """Another metric of the same model, or floor, and layer."""
    key = (result.model, result.of, result.layer, metric)
    overall = (other for other in outcome.results if other.group is None)
    return next((other for other in overall if (other.model, other.of, other.layer, other.metric) == key), None)


def _plain(name: str) -> str:
    """A file's name, or a note that has it, for Markdown."""
    return " ".join(name.replace("`", "'").split())
