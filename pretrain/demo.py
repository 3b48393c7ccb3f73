"""`pretrain demo`: both families, two ranks, from text that every machine has to vectors, in minutes on a laptop."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.config.load import load_config
from pretrain.config.run import RunConfig
from pretrain.data.corpus import open_corpus, source_weights
from pretrain.embedding.embedder import Embedder
from pretrain.evaluate import evaluate
from pretrain.export import export
from pretrain.models import FAMILIES, get_family
from pretrain.models.family import ModelFolder
from pretrain.runs.evaluation import Evaluation
from pretrain.runs.folder import RunFolder
from pretrain.runs.held_out import evaluate_model
from pretrain.runs.trained import build_untrained, read_tokenizer
from pretrain.train import count_gpus, local_ranks, train

log = logging.getLogger(__name__)

SENSES: dict[str, dict[str, list[str]]] = {
    "key": {
        "of a dictionary": [
            "If the key is not in the dictionary, a KeyError is raised.",
            "The mapping returns the value stored under the key.",
            "Each key in the dictionary must be hashable.",
        ],
        "for sorting": [
            "The key function is called once for each element to be sorted.",
            "Sort the list with a key function that returns the length of each item.",
            "The key argument specifies a function of one argument used for ordering.",
        ],
    },
    "class": {
        "of objects": [
            "The class defines a method that is called when an instance is created.",
            "A subclass inherits the attributes of its base class.",
            "Create an instance of the class and call its methods.",
        ],
        "of characters": [
            "The special character class matches any decimal digit in the string.",
            "Inside a character class, most characters of the pattern lose their meaning.",
            "The pattern uses a character class to match white space.",
        ],
    },
    "pass": {
        "the statement": [
            "The pass statement is a null operation and nothing happens.",
            "Use the pass statement when no code needs to be executed.",
            "A pass statement is useful as a placeholder in a function body.",
        ],
        "hand over": [
            "You can pass the file name as the first argument.",
            "To change the default, pass a function that returns a string.",
            "If you pass a keyword argument, it is given to the constructor.",
        ],
    },
}
"""Words with several meanings, in sentences of the demo's own domain."""


@dataclass(frozen=True)
class Contrast:
    """Mean cosines between a word's vectors in one layer: sentences of one sense, and of different senses."""

    same: float
    different: float


@dataclass(frozen=True)
class Shown:
    """What came out of one family."""

    run: Path
    model: Path
    metrics: list[dict[str, Any]]
    before: Evaluation
    after: Evaluation
    vectors: dict[str, NDArray[np.float32]]
    """Per word: [layers, sentences, width]."""
    contrasts: dict[str, dict[str, Contrast]]
    """Per word: of layer 0, of the top layer, and of the untrained model's top layer."""


def demo(folder: Path, say: Callable[[str], None]) -> Path:
    """Trains, exports and shows both families in `folder`; returns the picture. Says what it does line by line."""
    began = time.monotonic()
    shown = {kind: show_family(kind, folder, say) for kind in FAMILIES}
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


def show_family(kind: str, folder: Path, say: Callable[[str], None]) -> Shown:
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
    result = inspect_run(config, run, model)
    for line in describe(kind, result):
        say(line)
    return result


def inspect_run(config: RunConfig, run: Path, model: Path) -> Shown:
    """The numbers behind the picture: of the trained model, beside the untrained one."""
    corpus = open_corpus(RunFolder(run).prepared(), source_weights(config.data))
    untrained = build_untrained(config, read_tokenizer(config, RunFolder(run).tokenizer))
    embedder = Embedder.load(model)
    vectors = {word: word_vectors(embedder, word) for word in SENSES}
    fresh = as_embedder(config, untrained)
    return Shown(
        run=run,
        model=model,
        metrics=RunFolder(run).read_metrics(),
        before=Evaluation("before training", evaluate_model(untrained, corpus.held_out), None),
        after=evaluate(run),
        vectors=vectors,
        contrasts={
            word: {
                "layer 0": contrast(word, vectors[word][0]),
                "top layer": contrast(word, vectors[word][-1]),
                "untrained": contrast(word, word_vectors(fresh, word)[-1]),
            }
            for word in SENSES
        },
    )


def as_embedder(config: RunConfig, folder: ModelFolder) -> Embedder:
    """An Embedder of a model in memory."""
    assert folder.tokenizer is not None
    return Embedder(get_family(config.model.kind), folder.model, folder.tokenizer)


def word_vectors(embedder: Embedder, word: str) -> NDArray[np.float32]:
    """The vectors of a word in its sentences, float32 [layers, sentences, width], senses one after another."""
    sentences = [sentence for group in SENSES[word].values() for sentence in group]
    encoded = embedder.encode(sentences, layers="all")
    places = [embedder.words(sentence).index(word) for sentence in sentences]
    return np.stack([vectors[:, place] for vectors, place in zip(encoded, places, strict=True)], axis=1)


def contrast(word: str, vectors: NDArray[np.float32]) -> Contrast:
    """Mean cosines of a word's vectors [sentences, width], within and across senses."""
    senses = np.repeat(np.arange(len(SENSES[word])), [len(group) for group in SENSES[word].values()])
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = units @ units.T
    others = ~np.eye(len(senses), dtype=bool)
    same = senses[:, None] == senses[None, :]
    return Contrast(float(cosines[same & others].mean()), float(cosines[~same].mean()))


def describe(kind: str, shown: Shown) -> list[str]:
    """What came out, for a terminal."""
    losses = [line["loss"] for line in shown.metrics]
    before, after = shown.before.losses, shown.after.losses
    lines = [
        f"{kind}: loss {losses[0]:.2f} {sparkline(losses)} {losses[-1]:.2f}",
        f"{kind}: held-out perplexity {before.perplexity:,.0f} before, {after.perplexity:,.1f} after training "
        f"(a unigram model: {np.exp(shown.after.unigram_loss or 0.0):,.0f})",
        f"{kind}: cosine of a word with itself in sentences of the same sense | of different senses",
        f"  {'word':8s}{'layer 0':>18s}{'top layer':>18s}{'untrained, top':>18s}",
    ]
    for word, by_layer in shown.contrasts.items():
        cells = "".join(f"{c.same:>10.3f} | {c.different:.3f}" for c in by_layer.values())
        lines.append(f"  {word:8s}{cells}")
    return lines


def sparkline(values: list[float], width: int = 48) -> str:
    """A curve in one line of text."""
    bars = "▁▂▃▄▅▆▇█"
    chosen = [values[i * len(values) // min(width, len(values))] for i in range(min(width, len(values)))]
    low, span = min(chosen), max(max(chosen) - min(chosen), 1e-9)
    return "".join(bars[int((value - low) / span * (len(bars) - 1))] for value in chosen)


def draw(shown: dict[str, Shown], path: Path) -> None:
    """The picture: loss curves, and for each word its vectors in two dimensions, layer 0 beside the top layer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    words = list(SENSES)
    figure = Figure(figsize=(4 + 3.1 * len(words), 3.6 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(shown), 1 + len(words), squeeze=False, width_ratios=[1.3] + [1] * len(words))
    for row, (kind, result) in zip(grid, shown.items(), strict=True):
        _draw_loss(row[0], kind, result)
        for axis, word in zip(row[1:], words, strict=True):
            _draw_word(axis, kind, word, result.vectors[word][-1], result.contrasts[word])
    figure.suptitle("pretrain demo: what a few minutes on Python's documentation teach")
    figure.savefig(path, dpi=110)


def _draw_loss(axis: Any, kind: str, shown: Shown) -> None:
    steps = [line["step"] for line in shown.metrics]
    axis.plot(steps, [line["loss"] for line in shown.metrics], label="training")
    held_out = [(line["step"], line["held_out_loss"]) for line in shown.metrics if "held_out_loss" in line]
    held_out.insert(0, (0, shown.before.losses.loss))
    axis.plot(*zip(*held_out, strict=True), "o-", label="held out")
    axis.set(title=f"{kind}: loss (nats)", xlabel="step")
    axis.legend()


def _draw_word(axis: Any, kind: str, word: str, vectors: NDArray[np.float32], by_layer: dict[str, Contrast]) -> None:
    centred = vectors - vectors.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :2] * scale[:2]
    start = 0
    for marker, (sense, sentences) in zip("osD", SENSES[word].items(), strict=False):
        group = points[start : start + len(sentences)]
        axis.scatter(group[:, 0], group[:, 1], marker=marker, s=60, label=sense)
        start += len(sentences)
    top, bottom = by_layer["top layer"], by_layer["layer 0"]
    axis.set_title(f"{kind}: “{word}”, top layer (PCA)", fontsize=10)
    axis.set_xlabel(
        f"same − different sense: {top.same - top.different:+.3f}\n(layer 0: {bottom.same - bottom.different:+.3f})",
        fontsize=9,
    )
    axis.set(xticks=[], yticks=[])
    axis.legend(fontsize=8)
