"""Probes of a run's checkpoints while it trains: a few sentences, and figures by name for its metrics."""

import contextlib
import logging
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from pretrain.config.run import RunConfig
from pretrain.config.training import ProbeConfig
from pretrain.data.files import open_members
from pretrain.data.text import read_lines
from pretrain.errors import DataError, PretrainError
from pretrain.probing.results import Outcome
from pretrain.probing.subjects import Subject, open_subject
from pretrain.probing.tasks import Inputs, get_task
from pretrain.probing.verdict import best_of, metrics, models, standing
from pretrain.probing.word_in_context import DATA, GOLD
from pretrain.runs.trained import build_untrained, read_tokenizer

log = logging.getLogger(__name__)

TREEBANKS = ("pos", "dependencies", "entities")
"""Tasks whose files have a word a line, and a blank line after each sentence; those of others have an item a line."""
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".tbz2", ".txz"}


class CheckpointProbes:
    """What `evaluation.probes` asks for, with files that are read once, so that nothing is missing hours later."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        """Where the sentences that are taken lie, for as long as the run trains."""
        self._probes: list[tuple[ProbeConfig, Inputs, dict[Path, str]]] = []
        self._floors_told = False

    def rehearse(self, tokenizer: Path) -> None:
        """Takes the sentences, and probes an untrained model with them; raises PretrainError where that cannot be done.

        `tokenizer` is the folder of the run's.
        """
        self._probes = [self._taken(probe) for probe in self._config.evaluation.probes]
        model = build_untrained(self._config, read_tokenizer(self._config, tokenizer))
        self._measure(Subject(self._config.name, model))

    def __call__(self, step: int) -> Mapping[str, float]:
        """The figures of the checkpoint of a step; those of floors that stay the same only the first time.

        Texts start from zero in families that carry state. Where it cannot be probed, as when the device is full, there
        are no figures, and a warning: the training goes on.
        """
        try:
            with own_randomness():
                outcomes = self._measure(open_subject(self._config.folder, str(step), "zero"))
        except (PretrainError, OSError, RuntimeError, MemoryError) as error:
            log.warning("step %d is not probed: %s", step, error, exc_info=not isinstance(error, PretrainError))
            return {}
        figures = {name: value for outcome in outcomes for name, value in figures_of(outcome).items()}
        if not self._floors_told:
            figures |= {name: value for outcome in outcomes for name, value in floors_of(outcome).items()}
        self._floors_told = True
        return figures

    def _measure(self, subject: Subject) -> list[Outcome]:
        return [self._probe(subject, *probe) for probe in self._probes]

    def _probe(self, subject: Subject, probe: ProbeConfig, inputs: Inputs, names: Mapping[Path, str]) -> Outcome:
        with tempfile.TemporaryDirectory(dir=self._folder) as vectors, own_randomness(), quietly():
            try:
                given = Inputs(inputs.data, inputs.test, vectors=Path(vectors), seed=inputs.seed)
                return get_task(probe.task)([subject], given)
            except PretrainError as error:
                said = str(error)
                for path, name in names.items():
                    said = said.replace(str(path), name)
                raise type(error)(
                    "\n".join(f"evaluation.probes, task {probe.task}: {line}" for line in said.splitlines())
                ) from None

    def _taken(self, probe: ProbeConfig) -> tuple[ProbeConfig, Inputs, dict[Path, str]]:
        data, names = self._copied(probe, "data", probe.data)
        if probe.test is None:
            return probe, Inputs(data), names
        test, more = self._copied(probe, "test", probe.test)
        return probe, Inputs(data, test), names | more

    def _copied(self, probe: ProbeConfig, role: str, path: Path) -> tuple[Path, dict[Path, str]]:
        """A file's sentences that are taken, in a file of their own; and what messages call it."""
        name = path.name
        while Path(name).suffix in COMPRESSED:
            name = Path(name).stem
        copy, most = self._folder / f"{probe.task}-{role}-{name}", probe.max_sentences
        blocks, words = probe.task in TREEBANKS or name.endswith(".conllu"), probe.task == "senses"
        names = {copy: take_sentences(path, copy, most, blocks=blocks, words=words)}
        if probe.task == "wic" and DATA in path.name:  # labels beside it, a line for each of its lines
            gold, beside = path.with_name(path.name.replace(DATA, GOLD)), copy.with_name(copy.name.replace(DATA, GOLD))
            names[beside] = str(gold)
            if gold.is_file():
                take_sentences(gold, beside, most, blocks=False)
        return copy, names


def take_sentences(path: Path, copy: Path, most: int | None, *, blocks: bool, words: bool = False) -> str:
    """Writes `most` sentences of a file (None: all), evenly spread, to `copy`; what a message calls them.

    A sentence is a line, or with `blocks` the lines up to a blank one. The first, which may name columns, is taken.
    With `words`, which are compared each with itself, the first words are taken with all of their lines, one word at
    least. Raises DataError for a file without any.
    """
    sentences = list(_sentences(path, blocks=blocks))
    if not sentences:
        raise DataError(f"evaluation.probes: {path}: no sentence")
    count = len(sentences) if most is None else min(most, len(sentences))
    if words and count < len(sentences):
        taken = _whole_words(sentences, count)
        count = len(taken)
    else:
        taken = [sentences[number * len(sentences) // count] for number in range(count)]
    copy.write_text("".join(taken), encoding="utf-8")
    return str(path) if count == len(sentences) else f"{count:,} of {len(sentences):,} sentences of {path}"


def _whole_words(lines: list[str], most: int) -> list[str]:
    """The lines of as many words, which are their first column, as `most` lines hold."""
    by_word: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("#"):
            by_word.setdefault(line.partition("\t")[0], []).append(line)
    taken: list[str] = []
    for of_word in by_word.values():
        if taken and len(taken) + len(of_word) > most:
            break
        taken += of_word
    return taken


def _sentences(path: Path, *, blocks: bool) -> Iterator[str]:
    """Each with its line ends; with blocks, with the blank lines after it."""
    kept, ended = "", False
    for name, file in open_members(str(path)):
        for line in read_lines(file, name):
            blank = not line.strip()
            if kept and (not blocks or ended) and not blank:
                yield kept
                kept = ""
            if kept or not blank:
                kept += f"{line}\n"
            ended = blank
    if kept:
        yield kept if not blocks or ended else f"{kept}\n"  # the next one may follow


def figures_of(outcome: Outcome) -> dict[str, float]:
    """The first metric of each layer and of the mix, as `probe_<task>_layer_<number>` and `probe_<task>_mix`."""
    held = standing(outcome, _model(outcome), metrics(outcome)[0])
    figures = {f"layer_{result.layer}": result.value for result in held.layers}
    return _named(outcome, figures | ({} if held.mix is None else {"mix": held.mix.value}))


def floors_of(outcome: Outcome) -> dict[str, float]:
    """The floors that do not change from step to step, as `probe_<task>_<floor>`; of several layers the best."""
    held = standing(outcome, _model(outcome), metrics(outcome)[0])
    best = {name: best_of(r for r in held.floors if r.model == name) for name in ("majority", "untrained")}
    return _named(outcome, {name: result.value for name, result in best.items() if result is not None})


def _model(outcome: Outcome) -> str:
    return models([outcome])[0]


def _named(outcome: Outcome, figures: Mapping[str, float]) -> dict[str, float]:
    task = outcome.task.replace("-", "_")
    return {f"probe_{task}_{name}": value for name, value in figures.items() if np.isfinite(value)}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Leaves the log to the training: tasks say each figure as it is found, for one who waits for it."""
    logger = logging.getLogger(__package__)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Whatever is drawn within, the training draws what it would have drawn; memory of an accelerator is given back."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
