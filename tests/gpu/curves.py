"""The training runs' curves: RUNS WORK PICTURE. Fails where a run wrote nothing, or learned nothing."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pretrain.runs.folder import RunFolder
from tests.gpu import DRY
from tests.gpu.sizes import TRAIN


def curve(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss by step, held-out loss by step, and the median-like middle of the tokens per second."""
    rates = sorted(line["tokens_per_second"] for line in metrics)
    return {
        "steps": metrics[-1]["step"],
        "tokens_per_second": rates[len(rates) // 2],
        "loss": [(line["step"], line["loss"]) for line in metrics],
        "held_out": [(line["step"], line["held_out_loss"]) for line in metrics if "held_out_loss" in line],
    }


def main() -> None:
    """Draws the picture, and writes the numbers beside the other parts'."""
    runs, work, picture = map(Path, sys.argv[1:])
    figure = Figure(figsize=(5 * len(TRAIN), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    flat = []
    for axis, name in zip(figure.subplots(1, len(TRAIN), squeeze=False)[0], TRAIN, strict=True):
        metrics = RunFolder(runs / name).read_metrics()
        axis.set(title=name, xlabel="step", ylabel="loss (nats)")
        if not metrics:
            flat.append(f"{name}: no metrics")
            continue
        numbers = curve(metrics)
        (work / f"train-{name}.json").write_text(json.dumps(numbers), encoding="utf-8")
        first, last = numbers["loss"][0][1], numbers["loss"][-1][1]
        print(f"{name}: loss {first:.3f} to {last:.3f} in {numbers['steps']} steps")
        if last >= first and not DRY:
            flat.append(f"{name}: the loss did not fall")
        axis.plot(*zip(*numbers["loss"], strict=True), label="training")
        if numbers["held_out"]:
            axis.plot(*zip(*numbers["held_out"], strict=True), "o-", label="held out")
        axis.legend()
    figure.savefig(picture, dpi=100)
    if flat:
        sys.exit("\n".join(flat))


if __name__ == "__main__":
    main()
