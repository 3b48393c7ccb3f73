"""The baselines of `pretrain bench`: transformers' model in the way that its users run it."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from pretrain.bench import bench
from pretrain.models.baselines import Baseline, UnavailableBaseline
from pretrain.models.bert.baselines import COMPILED, NAME, build_baselines
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.family import ModelFolder
from pretrain.runtime.timing import OURS
from tests.models.bert.conftest import tiny_configs
from tests.tiny import tiny_config


def test_what_transformers_is_asked_for(tokenizer: WordPieceTokenizer) -> None:
    """Attention by PyTorch's kernels, and our dropouts."""
    config, objective = tiny_configs(dropout=0.2, attention_dropout=0.0)
    ours = BertModel(config, objective, tokenizer.vocabulary_size)
    (baseline,) = build_baselines(ModelFolder(ours, tokenizer, config, objective), compiled=False)
    assert isinstance(baseline, Baseline) and baseline.name == NAME
    theirs = baseline.model.config
    assert theirs._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert (theirs.hidden_dropout_prob, theirs.attention_probs_dropout_prob) == (0.2, 0.0)  # type: ignore[union-attr]


def test_without_a_compiler(model: BertModel, tokenizer: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    present, unavailable = build_baselines(ModelFolder(model, tokenizer, model.config, model.objective), compiled=True)
    assert isinstance(present, Baseline)
    assert unavailable == UnavailableBaseline(COMPILED, "there is no C++ compiler no-such-compiler; CXX names another")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning:torch.jit._script")
def test_compiled(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does the same work, and whatever the batches' shapes, it is compiled once, in the warm-up."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    counters.clear()
    options = ["model.dropout=0", "model.num_layers=1", "batch.global_size=8"]
    config = tiny_config("bert", corpus, tmp_path, *options, "objective.pack_length=96")
    result = bench(config, 4, compiled=True)
    assert list(result.step.seconds) == [OURS, NAME, COMPILED]
    torch.testing.assert_close(result.losses[COMPILED], result.losses[OURS], rtol=2e-4, atol=1e-5)
    assert len(set(result.step.sequences)) > 1
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
