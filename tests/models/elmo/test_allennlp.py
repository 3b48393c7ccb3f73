"""AllenNLP's own `Elmo` reads what we write, and gives the same vectors, states carried from batch to batch.

AllenNLP 2.10.1, the last release, pins old versions of much that its `Elmo` does not need. Installed alone, into a
folder of its own, it runs with stand-ins for the rest (allennlp_vectors.py):

    pip install --no-deps --target ALLENNLP allennlp==2.10.1
    PYTHONPATH=ALLENNLP python -m pytest tests/models/elmo/test_allennlp.py
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.config.models import ElmoConfig
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer
from pretrain.models.family import ModelFolder

SCRIPT = Path(__file__).with_name("allennlp_vectors.py")
BATCHES = [
    [["The", "cat", "sat", "."], ["Naïve", "x" * 60, "日本"], ["One"]],
    [["It", "went", "on", "and", "on", "."], ["<S>", "</S>", "<UNK>"]],
    [["é" * 24 + "a"], ["Two", "rows", ",", "then", "three", "!"], ["The", "last"]],
]
MODELS: list[dict[str, Any]] = [
    {"num_highways": 2, "cell_clip": 0.5, "projection_clip": 0.4},
    {"num_layers": 1, "num_highways": 1, "activation": "tanh"},
    {"num_layers": 4, "num_highways": 3, "cell_clip": 0.0, "projection_clip": 0.0},
]


def layers_of(folder: Path, **changes: float) -> list[np.ndarray[Any, Any]]:
    """Our vectors of each batch, float32 [layers, rows, words, width], read one after another."""
    read = FAMILY.read(folder)
    encoder, carried, vectors = read.model.encoder, None, []
    if changes:
        encoder = ElmoModel(read.config.model_copy(update=changes), None).eval().encoder
        encoder.load_state_dict(read.model.encoder.state_dict())
    assert read.tokenizer is not None
    for batch in BATCHES:
        found, carried = FAMILY.encode(encoder, [read.tokenizer.pieces(sentence) for sentence in batch], carried)
        vectors.append(torch.stack(found.layers).numpy())
    return vectors


@pytest.mark.skipif(
    importlib.util.find_spec("allennlp") is None, reason="needs AllenNLP (this file's docstring says how to install it)"
)
def test_allennlp_gives_the_same_vectors(tmp_path: Path) -> None:
    folders = []
    for number, changes in enumerate(MODELS):
        sizes = {"character_embedding_size": 4, "filters": ((1, 8), (3, 16)), "cell_size": 24, "projection_size": 8}
        config = ElmoConfig.model_validate(sizes | changes | {"softmax": "full"})
        torch.manual_seed(number)
        model = ElmoModel(config, None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.35)
        folders.append(tmp_path / str(number))
        FAMILY.write(folders[-1], ModelFolder(model, WordTokenizer(SPECIAL_WORDS), config))
    job, out = tmp_path / "job.json", tmp_path / "vectors.npz"
    job.write_text(json.dumps({"folders": list(map(str, folders)), "batches": BATCHES}))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(job), str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = np.load(out)
    for number, folder in enumerate(folders):
        # four layers without bounds add up more rounding: each side is 1.6e-6 from the same model in float64
        rtol = 1e-5 if MODELS[number].get("num_layers") == 4 else 0.0
        for batch, ours in enumerate(layers_of(folder)):
            np.testing.assert_allclose(ours, theirs[f"{number}/{batch}/layers"], rtol=rtol, atol=1e-6)
            np.testing.assert_allclose(ours.mean(0), theirs[f"{number}/{batch}/mixed"], rtol=rtol, atol=1e-6)
    for clip in ("cell_clip", "projection_clip"):
        assert np.abs(layers_of(folders[0])[0] - layers_of(folders[0], **{clip: 0.0})[0]).max() > 0.1, "bounds count"
