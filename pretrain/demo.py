"""`pretrain demo`: both families, two ranks, from text that every machine has to vectors, in minutes on a laptop."""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.load import load_config
from pretrain.config.run import RunConfig
from pretrain.data.corpus import open_corpus, source_weights
from pretrain.evaluate import evaluate
from pretrain.export import export
from pretrain.models import FAMILIES, get_family
from pretrain.probing.results import Outcome, Result
from pretrain.probing.senses import Occurrence, probe_occurrences, read_occurrences
from pretrain.probing.subjects import open_subject
from pretrain.runs.evaluation import Evaluation
from pretrain.runs.folder import RunFolder
from pretrain.runs.held_out import evaluate_model
from pretrain.runs.trained import build_untrained, read_tokenizer
from pretrain.train import count_gpus, local_ranks, train

log = logging.getLogger(__name__)

SENSES = Path(__file__).with_name("demo_senses.tsv")
"""Words in two senses, eight sentences of each, in the demo's own domain but none of its text."""
DRAWN = 4
"""Words whose vectors are drawn: the first ones of the file, so that none is chosen for how it looks."""


@dataclass(frozen=True)
class Shown:
    """What came out of one family."""

    run: Path
    model: Path
    metrics: list[dict[str, Any]]
    before: Evaluation
    after: Evaluation
    senses: Outcome

    def accuracies(self, model: str) -> list[Result]:
        """How often a word is nearest to its own sense, by layer: of the trained model (its folder) or `untrained`."""
        return [
            result
            for result in self.senses.results
            if (result.model, result.metric, result.group) == (model, "nearest_sense", None)
        ]

    @property
    def chance(self) -> float:
        """The share of the most frequent sense."""
        return self.accuracies("majority")[0].value


def demo(folder: Path, say: Callable[[str], None]) -> Path:
    """Trains, exports and shows both families in `folder`; returns the picture. Says what it does line by line."""
    began = time.monotonic()
    occurrences = read_occurrences(SENSES)
    shown = {kind: show_family(kind, folder, occurrences, say) for kind in FAMILIES}
    picture = folder / "demo.png"
    draw(shown, picture)
    say(f"\nDone in {time.monotonic() - began:.0f} s. What it made:")
    for kind, result in shown.items():
        say(f"  {result.run}   the {kind} run: config.yaml, metrics.jsonl, checkpoints")
        say(f"  {result.model}   the exported model: Embedder.load reads it")
    say(f"  {picture}   the picture of all this")
    say("\nNext, on your own text (UTF-8, a paragraph per line, an empty line between documents):")
    say("  pretrain train configs/elmo/little.yaml name=mine 'data.sources=[{kind: text, files: \"my/*.txt\"}]'")
    say(
        "docs/which-config.md says which config suits how much text, and docs/own-text.md which other formats are read."
    )
    return picture


def show_family(kind: str, folder: Path, occurrences: Sequence[Occurrence], say: Callable[[str], None]) -> Shown:
    """Trains one family's demo config, exports it, and looks at what it has learned."""
    gpus = ["sharding.ranks=auto"] if count_gpus() else []  # each rank needs one of its own
    config = load_config(f"configs/{kind}/demo.yaml", [f"run_root={folder}", *gpus])
    ranks = local_ranks(config)
    say(f"\n{kind}: training {config.schedule.total_steps} steps on {ranks} ranks, ZeRO {config.sharding.zero_stage}")
    ended = train(config)
    if ended.code:
        raise SystemExit(ended.code)
    run = ended.folder
    model = folder / f"{config.name}-model"
    if not model.exists():
        export(run, model)
    result = inspect_run(config, run, model, occurrences)
    for line in describe(kind, result):
        say(line)
    return result


def inspect_run(config: RunConfig, run: Path, model: Path, occurrences: Sequence[Occurrence]) -> Shown:
    """The numbers behind the picture: of the trained model, beside the untrained one.

    Where states could be carried, held-out sentences are read by themselves all the same, as the sentences are whose
    vectors are shown.
    """
    corpus = open_corpus(RunFolder(run).prepared(), source_weights(config.data))
    untrained = build_untrained(config, read_tokenizer(config, RunFolder(run).tokenizer))
    reset = get_family(config.model.kind).training.build_sentences is not None
    with tempfile.TemporaryDirectory(prefix="pretrain-demo-") as vectors:
        senses = probe_occurrences([open_subject(model)], occurrences, Path(vectors))
    return Shown(
        run=run,
        model=model,
        metrics=RunFolder(run).read_metrics(),
        before=Evaluation("before training", evaluate_model(untrained, corpus.held_out, reset=reset), None),
        after=evaluate(run, states="reset" if reset else None),
        senses=senses,
    )


def describe(kind: str, shown: Shown) -> list[str]:
    """What came out, for a terminal."""
    losses = [line["loss"] for line in shown.metrics if "loss" in line]
    before, after = shown.before.losses, shown.after.losses
    trained, untrained = shown.accuracies(str(shown.model)), shown.accuracies("untrained")
    lines = [
        f"{kind}: loss {losses[0]:.2f} {sparkline(losses)} {losses[-1]:.2f}",
        f"{kind}: held-out perplexity {before.perplexity:,.0f} before, {after.perplexity:,.1f} after training "
        f"(a unigram model: {np.exp(shown.after.unigram_loss or 0.0):,.0f})",
        f"{kind}: words nearest to their own sense of two, in sentences never trained on (chance {shown.chance:.0%}; "
        "ties are wrong; 95 % intervals)",
        f"  {'layer':8s}{'trained':>22s}{'untrained':>22s}",
    ]
    for one, other in zip(trained, untrained, strict=True):
        lines.append(f"  {one.layer!s:8s}{_percent(one):>22s}{_percent(other):>22s}")
    return lines


def _percent(result: Result) -> str:
    return f"{100 * result.value:.1f} % [{100 * result.low:.0f}, {100 * result.high:.0f}]"


def sparkline(values: list[float], width: int = 48) -> str:
    """A curve in one line of text."""
    bars = "▁▂▃▄▅▆▇█"
    chosen = [values[i * len(values) // min(width, len(values))] for i in range(min(width, len(values)))]
    low, span = min(chosen), max(max(chosen) - min(chosen), 1e-9)
    return "".join(bars[int((value - low) / span * (len(bars) - 1))] for value in chosen)


def draw(shown: dict[str, Shown], path: Path) -> None:
    """The picture: for each family its loss, how well each layer tells senses apart, and some words' vectors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 + 3.0 * DRAWN, 3.7 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(shown), 2 + DRAWN, squeeze=False, width_ratios=[1.2, 1.3] + [1] * DRAWN)
    for row, (kind, result) in zip(grid, shown.items(), strict=True):
        _draw_loss(row[0], kind, result)
        _draw_senses(row[1], kind, result)
        for axis, drawn in zip(row[2:], result.senses.details["sense_maps"], strict=False):
            _draw_word(axis, kind, drawn)
    figure.suptitle("pretrain demo: what a few minutes on Python's documentation teach")
    figure.savefig(path, dpi=110)


def _draw_loss(axis: Any, kind: str, shown: Shown) -> None:
    training = [(line["step"], line["loss"]) for line in shown.metrics if "loss" in line]
    axis.plot(*zip(*training, strict=True), label="training")
    held_out = [(line["step"], line["held_out_loss"]) for line in shown.metrics if "held_out_loss" in line]
    held_out.insert(0, (0, shown.before.losses.loss))
    axis.plot(*zip(*held_out, strict=True), "o-", label="held out")
    axis.set(title=f"{kind}: loss (nats)", xlabel="step")
    axis.legend()


def _draw_senses(axis: Any, kind: str, shown: Shown) -> None:
    for name, model, shift in (("trained", str(shown.model), -0.06), ("untrained", "untrained", 0.06)):
        results = shown.accuracies(model)
        values = np.array([[result.value, result.low, result.high] for result in results]) * 100
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        layers = np.arange(len(results)) + shift
        axis.errorbar(layers, values[:, 0], yerr=errors, marker="o", capsize=3, label=name)
    axis.axhline(100 * shown.chance, color="gray", linestyle=":", label="chance")
    axis.set(
        title=f"{kind}: nearest to its own sense (%)", xlabel="layer (0: the word alone; ties are wrong)", ylim=(0, 100)
    )
    axis.set_xticks(range(len(shown.accuracies("untrained"))))
    axis.legend(loc="lower right", fontsize=8)


def _draw_word(axis: Any, kind: str, drawn: dict[str, Any]) -> None:
    points, senses = np.array(drawn["points"]), np.array(drawn["senses"])
    for marker, sense in zip("osD^", dict.fromkeys(drawn["senses"]), strict=False):
        group = points[senses == sense]
        axis.scatter(group[:, 0], group[:, 1], marker=marker, s=50, label=sense)
    axis.set_title(f"{kind}: “{drawn['word']}”, layer {drawn['layer']} (PCA)", fontsize=10)
    axis.set(xticks=[], yticks=[])
    axis.legend(fontsize=8)
