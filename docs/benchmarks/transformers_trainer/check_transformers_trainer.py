"""Both sides of the comparison are asked the same, and a whole small comparison works.

Run it after a change: `pytest docs/benchmarks/transformers_trainer/check_transformers_trainer.py`. It needs accelerate.
"""

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # a study is no package
from report import loss_at, reached
from sentence_pairs import NEXT, RANDOM, Document, Pair, PairDataset, draw_pairs, read_documents
from train_with_trainer import HeldOut, build_model

from pretrain.config.load import load_config
from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus
from pretrain.data.prepare import ensure_prepared
from pretrain.models import get_family
from pretrain.models.bert.export import write
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.runs.held_out import evaluate_model
from pretrain.runs.trained import build_untrained, read_tokenizer

HERE = Path(__file__).parent
SMALL = [
    "tokenizer.vocabulary_size=300",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.intermediate_size=64",
    "model.max_positions=40",
    "objective.max_sequence_length=32",
    "data.block_tokens=1024",
    "data.held_out=0.1",
    "schedule.total_steps=20",
    "schedule.warmup_steps=2",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 120 documents, whose sentences count up."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(120):
        first, count = rng.integers(0, 900), rng.integers(3, 12)
        documents.append("\n".join(f"{first + n} men and {first + n + 1} horses went." for n in range(count)))
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return file


def overrides(text: Path, run_root: Path, *more: str) -> list[str]:
    source = f"data.sources=[{{kind: text, files: {json.dumps(str(text))}, lines: sentence}}]"
    return [*SMALL, source, f"run_root={run_root}", *more]


def prepared(text: Path, run_root: Path, *more: str) -> tuple[RunConfig, PreparedCorpus, WordPieceTokenizer]:
    config = load_config("configs/bert/demo.yaml", overrides(text, run_root, *more))
    corpus = ensure_prepared(config, get_family("bert"))
    tokenizer = read_tokenizer(config, corpus.fetch_tokenizer())
    assert isinstance(tokenizer, WordPieceTokenizer)
    return config, corpus, tokenizer


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_same_weights_have_the_same_losses(text: Path, tmp_path: Path, packing: str) -> None:
    from transformers import BertForPreTraining

    large = "model.initializer_range=0.3"  # far from a uniform distribution, so that a wrong input shows
    config, corpus, tokenizer = prepared(text, tmp_path, f"objective.packing={packing}", large)
    ours = build_untrained(config, tokenizer)
    write(tmp_path / "model", ours)
    theirs = BertForPreTraining.from_pretrained(tmp_path / "model").train()
    found = HeldOut(config, corpus, ours).measure(theirs)
    assert theirs.training, "it goes on training"
    expected = evaluate_model(ours, corpus.held_out)
    assert expected.terms["mlm"] > 6 and expected.counts["mlm"] > 100
    assert found.terms == pytest.approx(expected.terms, rel=0, abs=1e-5)
    assert found.counts == expected.counts and found.accuracies == expected.accuracies
    assert found.majorities == expected.majorities


def test_the_model_is_of_the_same_size(text: Path, tmp_path: Path) -> None:
    config, corpus, tokenizer = prepared(text, tmp_path)
    ours = build_untrained(config, tokenizer)
    theirs = build_model(ours, tokenizer.vocabulary_size, tokenizer.padding_id)
    assert theirs.num_parameters() == config.parameters(tokenizer.vocabulary_size)
    untrained = [HeldOut(config, corpus, ours).measure(theirs), evaluate_model(ours, corpus.held_out)]
    losses = [losses.terms["mlm"] for losses in untrained]
    assert losses == pytest.approx([np.log(tokenizer.vocabulary_size)] * 2, abs=0.1)


def test_the_text_is_the_same(text: Path, tmp_path: Path) -> None:
    _, corpus, _ = prepared(text, tmp_path)
    (source,) = corpus.training
    documents = read_documents(source)
    sentences = [sentence for document in documents for sentence in document.sentences]
    assert len(sentences) == source.counts["sentences"]
    ids = np.bincount(np.concatenate(sentences), minlength=len(corpus.unigrams("train")))
    assert np.array_equal(ids, corpus.unigrams("train"))


def make_documents(count: int, sentences: int) -> list[Document]:
    """Documents whose tokens say where they stand: 1,000 × document + 10 × sentence + token."""
    return [
        Document(
            d, [np.arange(1000 * d + 10 * s, 1000 * d + 10 * s + 3 + s % 5, dtype=np.int32) for s in range(sentences)]
        )
        for d in range(count)
    ]


def test_pairs() -> None:
    documents = make_documents(40, 30)
    pairs = list(draw_pairs(documents, random.Random(0), 32, 0.1))
    assert max(map(len, pairs)) == 32 and min(map(len, pairs)) > 4
    labels = [pair.label for pair in pairs]
    assert 0.4 < sum(label == RANDOM for label in labels) / len(labels) < 0.7
    follow = 0
    for pair in pairs:
        assert len(set(pair.first // 1000)) == len(set(pair.second // 1000)) == 1, "a segment is of one document"
        assert (pair.first[0] // 1000 == pair.second[0] // 1000) == (pair.label == NEXT)
        if pair.label == NEXT:
            assert pair.first[-1] < pair.second[0]
            follow += pair.second[0] // 10 - pair.first[-1] // 10 == 1
    assert follow > 0.9 * labels.count(NEXT), "but where a sentence was cut away whole"
    used = {sentence for pair in pairs for sentence in (pair.first // 10).tolist() + (pair.second // 10).tolist()}
    assert len(used) > 0.98 * 40 * 30, "nothing is left out, but where a sentence was cut away whole"


def test_rows(text: Path, tmp_path: Path) -> None:
    """A pair is what transformers' tokenizer would have made of it."""
    from transformers import AutoTokenizer

    _, corpus, tokenizer = prepared(text, tmp_path)
    sentences = ["13 men and 14 horses went.", "Horses and men."]
    first, second = (np.array(ids, dtype=np.int32) for ids in tokenizer.encode(sentences).tokens)
    pair = Pair(first, second, RANDOM)
    row = PairDataset([pair], tokenizer)[0]
    theirs = AutoTokenizer.from_pretrained(corpus.fetch_tokenizer())
    expected = theirs(*sentences, return_special_tokens_mask=True, return_token_type_ids=True)
    assert len(pair) == len(row["input_ids"])
    assert row == {key: expected[key] for key in row if key != "next_sentence_label"} | {
        "next_sentence_label": pair.label
    }


def test_curves_are_read_between_evaluations() -> None:
    curve = [{"minutes": 1.0, "mlm_loss": 6.0}, {"minutes": 3.0, "mlm_loss": 5.0}, {"minutes": 4.0, "mlm_loss": 5.5}]
    assert loss_at(curve, 2.5) == pytest.approx(5.25)
    assert loss_at(curve, 0.5) is None and loss_at(curve, 4.5) is None
    assert reached(curve, 5.2) == curve[1] and reached(curve, 4.0) is None


@pytest.mark.skipif(find_spec("accelerate") is None, reason="Trainer needs accelerate, which is not installed")
def test_a_small_comparison(text: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "compare.py"), "configs/bert/demo.yaml", *overrides(text, tmp_path / "no")]
    command += ["--out", str(tmp_path / "out"), "--threads", "1", "--order", "trainer-first", "--evaluations", "3"]
    command += ["--our-steps", "12", "--their-steps", "9", "--sweep-steps", "4", "--sweep", "1e-6", "5e-2"]
    done = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith((tmp_path / "out" / "result.md").read_text(encoding="utf-8"))
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in result["pretrain"]["curve"]] == [4, 8, 12]
    assert [point["step"] for point in result["Trainer"]["curve"]] == [3, 6, 9]
    sweep = {point["learning_rate"]: point["mlm_loss"] for point in result["Trainer"]["sweep"]}
    assert sorted(sweep) == [1e-6, 5e-2] and result["Trainer"]["learning_rate"] == min(sweep, key=lambda r: sweep[r])
    for side in ("pretrain", "Trainer"):
        curve = result[side]["curve"]
        for key in ("minutes", "tokens"):
            values = [0, *(point[key] for point in curve)]
            assert values == sorted(set(values)), "both only rise"
        assert result[side]["tokens"] == curve[-1]["tokens"]
        assert curve[-1]["mlm_loss"] < np.log(result["config"]["tokenizer"]["vocabulary_size"]) + 0.5
        assert {"nsp_loss", "nsp_accuracy", "nsp_majority", "mlm_accuracy"} <= curve[-1].keys()
    ours, theirs = (result[side]["tokens"] / result[side]["steps"] for side in ("pretrain", "Trainer"))
    assert theirs == pytest.approx(ours, rel=0.15), "a step holds about as many tokens"
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5000
    assert not (tmp_path / "no").exists()
