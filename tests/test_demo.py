"""The pieces of the demo on tiny runs; CI runs the whole of it."""

import re
from pathlib import Path

import numpy as np
import pytest

from pretrain.demo import SENSES, contrast, describe, draw, inspect_run, sparkline
from pretrain.export import export
from pretrain.train import train
from tests.tiny import metrics, tiny_config

ONE = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=4", "evaluation.every_steps=2"]


def test_every_word_stands_in_each_of_its_sentences_once() -> None:
    for word, senses in SENSES.items():
        assert len(senses) > 1
        for sentence in (sentence for group in senses.values() for sentence in group):
            assert re.findall(r"\w+", sentence).count(word) == 1, sentence


def test_contrast() -> None:
    """Sentences of one sense along one axis, of the other along another; lengths do not matter."""
    vectors = np.zeros((6, 4), np.float32)
    vectors[:3, 0] = [1, 2, 3]
    vectors[3:, 1] = [4, 5, 6]
    found = contrast("key", vectors)
    assert found.same == pytest.approx(1)
    assert found.different == pytest.approx(0)
    alike = contrast("key", np.ones((6, 4), np.float32))
    assert (alike.same, alike.different) == pytest.approx((1, 1))


def test_sparkline() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    falling = sparkline([float(1000 - i) for i in range(1000)], width=10)
    assert len(falling) == 10 and falling[0] == "█" and falling[-1] == "▁"


def test_the_picture(corpus: Path, tmp_path: Path) -> None:
    shown = {}
    for kind in ("elmo", "bert"):
        config = tiny_config(kind, corpus, tmp_path, *ONE, *(["model.max_positions=128"] if kind == "bert" else []))
        train(config)
        result = inspect_run(config, config.folder, export(config.folder, tmp_path / kind))
        assert result.metrics == metrics(config)
        assert result.before.losses.loss > result.after.losses.loss, "four steps teach something"
        for word, vectors in result.vectors.items():
            assert vectors.shape[:2] == (3, 6), "layers, sentences"
            assert list(result.contrasts[word]) == ["layer 0", "top layer", "untrained"]
            if kind == "elmo":
                assert result.contrasts[word]["layer 0"].different == pytest.approx(1), "spelling knows no context"
                assert result.contrasts[word]["top layer"].different < 0.9999
        text = describe(kind, result)
        assert len(text) == 4 + len(SENSES) and text[0].startswith(f"{kind}: loss ")
        assert f"{result.after.losses.perplexity:,.1f} after" in text[1]
        shown[kind] = result
    draw(shown, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
