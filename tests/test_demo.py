"""The pieces of the demo on tiny runs; CI runs the whole of it."""

import re
from collections import Counter
from pathlib import Path

from pretrain.data.python_docs import python_docs
from pretrain.demo import DRAWN, SENSES, describe, draw, inspect_run, sparkline
from pretrain.export import export
from pretrain.probing.senses import read_occurrences
from pretrain.train import train
from tests.tiny import metrics, tiny_config

ONE = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=4", "evaluation.every_steps=2"]


def test_the_sentences_are_eight_a_sense_and_none_is_trained_on() -> None:
    occurrences = read_occurrences(SENSES)
    counts = Counter((occurrence.word, occurrence.sense) for occurrence in occurrences)
    assert set(counts.values()) == {8}
    assert set(Counter(word for word, _ in counts).values()) == {2}
    assert len(counts) // 2 >= 8
    text = _letters(" ".join(python_docs()))
    assert [occurrence.sentence for occurrence in occurrences if _letters(occurrence.sentence) in text] == []


def _letters(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_sparkline() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    falling = sparkline([float(1000 - i) for i in range(1000)], width=10)
    assert len(falling) == 10 and falling[0] == "█" and falling[-1] == "▁"


def test_the_picture(corpus: Path, tmp_path: Path) -> None:
    shown = {}
    occurrences = read_occurrences(SENSES)
    for kind in ("elmo", "bert"):
        config = tiny_config(kind, corpus, tmp_path, *ONE, *(["model.max_positions=128"] if kind == "bert" else []))
        train(config)
        result = inspect_run(config, config.folder, export(config.folder, tmp_path / kind), occurrences)
        assert result.metrics == metrics(config)
        assert result.before.losses.loss > result.after.losses.loss, "four steps teach something"
        assert result.after.states == ("reset" if kind == "elmo" else None), "as the sentences are read"
        assert result.chance == 0.5
        trained, untrained = result.accuracies(str(result.model)), result.accuracies("untrained")
        assert [one.layer for one in trained] == [one.layer for one in untrained] == [0, 1, 2]
        if kind == "elmo":
            assert trained[0].value == untrained[0].value == 0, "spelling knows no context: all are ties"
            assert trained[-1].value > 0
        text = describe(kind, result)
        assert len(text) == 4 + 3 and text[0].startswith(f"{kind}: loss ")
        assert f"{result.after.losses.perplexity:,.1f} after" in text[1]
        assert f"{100 * trained[-1].value:.1f} %" in text[-1]
        assert len(result.senses.details["sense_maps"]) >= DRAWN
        shown[kind] = result
    draw(shown, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
