"""`pretrain evaluate` of a random biLM with a softmax file, against numpy; its log-probabilities word by word."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pretrain.cli import main
from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.evaluate import evaluate
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.start_state import make_start_state
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer
from pretrain.models.family import ModelFolder
from pretrain.models.start_state import START_STATE_FILE, Start, StartState, write_start_state
from pretrain.runs.evaluation import States
from pretrain.runs.held_out import HELD_OUT_ROWS
from tests.models.elmo.reference import BACKWARD, FORWARD, ReferenceBilm, State

WORDS = ["a", "bc", "naïve", "d", "cat", "longer-than-others", "unseen", "unheard"]
KNOWN = WORDS[:-2]


@pytest.fixture
def model(config: ElmoConfig, tmp_path: Path) -> Path:
    """A model folder whose clips are at work."""
    torch.manual_seed(0)
    config = config.model_copy(update={"cell_clip": 0.5, "projection_clip": 0.3})
    tokenizer = WordTokenizer((*SPECIAL_WORDS, *KNOWN))
    module = FAMILY.training.build_model(config, ElmoObjectiveConfig(softmax="full"), tokenizer.vocabulary_size)
    assert isinstance(module, ElmoModel) and module.softmax is not None
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(module.softmax.weight, std=3)
    FAMILY.format.write(tmp_path / "model", ModelFolder(module, tokenizer, config, ElmoObjectiveConfig(softmax="full")))
    return tmp_path / "model"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Documents of 1 to 4 lines, each a sentence of 1 to 30 words; windows are 4 words long."""
    rng = np.random.default_rng(0)
    documents = [
        "\n".join(" ".join(rng.choice(WORDS, rng.integers(1, 31))) for _ in range(rng.integers(1, 5))) for _ in range(9)
    ]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


def by_reference(
    bilm: ReferenceBilm, sentences: list[list[str]], states: States, start: tuple[State, State] | None = None
) -> list[tuple[Any, Any]]:
    """Log-probabilities of each sentence, forward and backward, in the order of the text."""
    if states == "reset":
        losses = [bilm.sentence_losses(words, start) for words in sentences]
        return [(-forward, -backward) for forward, backward in losses]
    before = start or (None, None)
    forward_inputs = [word for words in sentences for word in ("<S>", *words)]
    forward_targets = [word for words in sentences for word in (*words, "</S>")]
    backward_inputs, backward_targets = forward_targets, forward_inputs  # in the order of the text
    piece = -(-len(forward_inputs) // HELD_OUT_ROWS)
    forward, backward = [], []
    for start in range(0, len(forward_inputs), piece):
        row = slice(start, start + piece)
        forward.append(bilm.losses(FORWARD, forward_inputs[row], forward_targets[row], before[FORWARD])[0])
        losses, _ = bilm.losses(BACKWARD, backward_inputs[row][::-1], backward_targets[row][::-1], before[BACKWARD])
        backward.append(losses[::-1])
    stops = np.cumsum([len(words) + 1 for words in sentences])[:-1]
    return list(zip(*(np.split(-np.concatenate(d), stops) for d in (forward, backward)), strict=True))


@pytest.mark.parametrize("states", ["carried", "reset"])
@pytest.mark.parametrize("start", ["zero", "primed"])
def test_against_numpy(
    model: Path, text: Path, states: States, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StartState, "check", lambda *_: None)  # no state is better than another for a random model
    file = tmp_path / "new" / "sentences.jsonl"
    found = evaluate(model, [str(text)], lines="sentence", states=states, start=start, per_sentence=file)
    assert [path.name for path in file.parent.iterdir()] == [file.name], "nothing temporary is left"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    sentences = [record["words"] for record in records]
    lines = [line.split() for line in text.read_text(encoding="utf-8").splitlines() if line]
    assert Counter(map(tuple, sentences)) == Counter(map(tuple, lines))

    bilm = ReferenceBilm(model)
    primed = bilm.states_after([(KNOWN * 67)[n : n + 20] for n in range(0, 400, 20)]) if start == "primed" else None
    expected = by_reference(bilm, sentences, states, primed)
    for record, (forward, backward) in zip(records, expected, strict=True):
        np.testing.assert_allclose(record["forward"], forward, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(record["backward"], backward, rtol=1e-5, atol=2e-6)
    forward, backward = (-np.concatenate(direction).mean() for direction in zip(*expected, strict=True))
    values = found.values()
    assert (values["states"], values["start"]) == (states, start)
    assert values["forward_perplexity"] == pytest.approx(np.exp(forward), rel=1e-5)
    assert values["backward_perplexity"] == pytest.approx(np.exp(backward), rel=1e-5)
    assert values["perplexity_arithmetic"] == pytest.approx((np.exp(forward) + np.exp(backward)) / 2, rel=1e-5)
    assert values["perplexity_geometric"] == pytest.approx(np.sqrt(np.exp(forward) * np.exp(backward)), rel=1e-5)
    assert values["loss"] == pytest.approx((forward + backward) / 2, rel=1e-5)
    assert values["perplexity"] == pytest.approx(np.exp(values["loss"]))
    assert abs(np.log(bilm.weights["softmax/W"].shape[0]) - forward) > 0.1, "no model that says nothing"


def test_both_ways_of_reading(model: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without being asked; with `--states` only what is asked."""
    found = evaluate(model, [str(text)], lines="sentence")
    reset = evaluate(model, [str(text)], lines="sentence", states="reset")
    assert reset.by_states is None and "states_reset_loss" not in reset.values()
    values = found.values()
    assert (values["states"], values["start"], values["states_blocks"]) == ("carried", "zero", 1)
    assert values["states_carried_loss"] == values["loss"] and values["states_reset_loss"] == reset.losses.loss
    assert values["states_reset_perplexity"] == pytest.approx(np.exp(reset.losses.loss))
    (line,) = [line for line in found.lines() if line.startswith("states carried | reset")]
    assert f"{np.exp(values['loss']):,.2f} | {np.exp(reset.losses.loss):,.2f} | " in line and "the first block" in line
    state = make_start_state(FAMILY.format.read(model))
    with monkeypatch.context() as patch:
        patch.setattr(StartState, "check", lambda *_: None)
        primed = evaluate(model, [str(text)], lines="sentence", states="reset", start="primed")
    assert values["states_reset_primed_loss"] == primed.losses.loss
    read = FAMILY.format.read(model)
    write_start_state(model / START_STATE_FILE, state, read.model.encoder)  # which says that zero is the default
    assert "states_reset_primed_loss" not in evaluate(model, [str(text)], lines="sentence").values()


def test_a_line_of_each_sentence(model: Path, tmp_path: Path) -> None:
    text, file = tmp_path / "text.txt", tmp_path / "sentences.jsonl"
    text.write_text("a unseen d\ncat\n\nunheard\n", encoding="utf-8")
    arguments = ["evaluate", str(model), "--data", str(text), "--lines", "sentence", "--per-sentence", str(file)]
    printed = CliRunner().invoke(main, arguments)
    assert printed.exit_code == 0 and "unseen" not in printed.output
    assert "states: carried from sentence to sentence" in printed.stdout
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    by_place = {(record["document"], record["sentence"]): record for record in records}
    assert {place: record["words"] for place, record in by_place.items()} == {
        (0, 0): ["a", "unseen", "d"],
        (0, 1): ["cat"],
        (1, 0): ["unheard"],
    }
    assert [by_place[place]["unknown"] for place in sorted(by_place)] == [[1], [], [0]]
    assert {record["source"] for record in records} == {"text-0"}
    assert all(len(r["forward"]) == len(r["backward"]) == len(r["words"]) + 1 for r in records)

    again = CliRunner().invoke(main, arguments)
    assert (again.exit_code, again.stderr) == (
        2,
        f"error: --per-sentence {file}: exists already: remove it, or write to another file\n",
    )


def test_a_file_of_sentences_is_there_whole_or_not_at_all(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr("pretrain.evaluate.unigram_loss", fail)
    monkeypatch.setattr("pretrain.runs.sentences._BlockScores.sentences", fail)
    text = tmp_path / "text.txt"
    text.write_text("a cat\n", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="out of order"):
        evaluate(model, [str(text)], per_sentence=tmp_path / "sentences.jsonl")
    assert sorted(tmp_path.iterdir()) == before


def test_text_without_a_word(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    arguments = ["evaluate", str(model), "--data", str(tmp_path / "empty.txt"), "--language", "en"]
    printed = CliRunner().invoke(main, arguments)
    assert (printed.exit_code, printed.stderr) == (2, f"error: source text-0 ({tmp_path}/empty.txt): no text in it\n")
