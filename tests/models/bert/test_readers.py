"""The published folder among others: what transformers does with ours, and what becomes of one of transformers'."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers.activations import ACT2FN

from pretrain.cli import main
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.data.blocks import Block
from pretrain.models.bert import FAMILY
from pretrain.models.bert.export import BY_WORD
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import SPECIAL, WordPieceTokenizer
from pretrain.models.bert.weights import published_name
from pretrain.models.family import ModelFolder
from tests.models.bert.conftest import TINY, TINY_OBJECTIVE
from tests.tiny import REPOSITORY, final_weights, tiny_config, tiny_overrides

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def model(model: BertModel) -> BertModel:
    """Far enough from its initial values for its answers to differ."""
    for parameter in model.parameters():
        parameter.data.mul_(5)
    return model


@pytest.fixture
def folder(model: BertModel, tokenizer: WordPieceTokenizer, tmp_path: Path) -> Path:
    FAMILY.format.write(tmp_path / "ours", ModelFolder(model, tokenizer, model.config, TINY_OBJECTIVE))
    return tmp_path / "ours"


def load(kind: str, folder: Path, *unused: str) -> Any:
    """A model of a class of transformers, which takes all it needs from the folder, and all but what is `unused`."""
    model, loaded = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    left = loaded.pop("unexpected_keys")
    assert not any(loaded.values()), loaded
    assert all(name.startswith(unused) for name in left) and bool(left) == bool(unused), left
    return model.eval()


def test_encoder_and_masked_words(folder: Path, model: BertModel, tokenizer: WordPieceTokenizer) -> None:
    inputs = transformers.AutoTokenizer.from_pretrained(folder)("ab cd.", "Efg, ab", return_tensors="pt")
    arguments = (inputs["input_ids"], inputs["token_type_ids"], inputs["attention_mask"])
    assert arguments[1].unique().tolist() == [0, 1]
    encoder = load("BertModel", folder, "cls.predictions.", "cls.seq_relationship.")
    head = load("BertForMaskedLM", folder, "cls.seq_relationship.", "bert.pooler.")
    with torch.no_grad():
        ours = model.encoder(*arguments).layers
        theirs = encoder(**inputs, output_hidden_states=True)
        words = model(*arguments, torch.arange(arguments[0].numel())).words[:, : model.vocabulary_size]
        torch.testing.assert_close(head(**inputs).logits[0], words, atol=5e-5, rtol=1e-5)
    for one, other in zip(ours, theirs.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-5)
    assert model.pooler is not None
    torch.testing.assert_close(model.pooler(ours[-1][:, 0]).tanh(), theirs.pooler_output, atol=5e-5, rtol=1e-5)


def test_fill_mask(folder: Path, model: BertModel, tokenizer: WordPieceTokenizer) -> None:
    fill = transformers.pipeline("fill-mask", model=str(folder), top_k=5, device="cpu")
    before, after = tokenizer.encode(["ab cd", "efg, ab."]).tokens
    ids = torch.tensor([[tokenizer.cls_id, *before, tokenizer.mask_id, *after, tokenizer.sep_id]])
    with torch.no_grad():
        logits = model(ids, torch.zeros_like(ids), torch.ones_like(ids), torch.tensor([1 + len(before)])).words
    scores, pieces = logits[0].softmax(0).topk(5)
    found = fill("ab cd [MASK] efg, ab.")
    assert [answer["token"] for answer in found] == pieces.tolist()
    assert [answer["score"] for answer in found] == pytest.approx(scores.tolist(), rel=1e-4)


def test_next_sentences_are_class_0(
    make_block: Callable[[list[int], list[int]], Block], tokenizer: WordPieceTokenizer, tmp_path: Path
) -> None:
    """What our training calls next: transformers says 0 of segments that follow each other in a document."""
    config = TINY.model_copy(update={"max_positions": 256})
    asked = BertObjectiveConfig(max_sequence_length=256, packing=False)
    block = make_block([2] * 12, list(range(12)))
    maker = FAMILY.training.build_examples(config, asked, tokenizer, 1)
    examples = maker.make(block, np.random.default_rng(0))
    batch = maker.collate(examples.take(0, len(examples)))
    torch.manual_seed(0)
    model = BertModel(config, asked, tokenizer.vocabulary_size).eval()
    objective = FAMILY.training.build_objective(asked, tokenizer)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(100):
        terms, _ = objective(model, batch, None, seed=0)
        optimizer.zero_grad()
        terms["nsp"].total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if terms["nsp"].correct == terms["nsp"].count:
            break
    else:
        pytest.fail("the model did not learn its own examples")
    FAMILY.format.write(tmp_path, ModelFolder(model, tokenizer, config, asked))
    theirs = load("BertForNextSentencePrediction", tmp_path, "cls.predictions.")
    inputs = (batch["input_ids"], batch["attention_mask"], batch["segment_ids"])
    with torch.no_grad():
        logits = theirs(*inputs).logits
        said = model(inputs[0], inputs[2], inputs[1], batch["masked_positions"]).next_sentence
    torch.testing.assert_close(logits, said, atol=5e-5, rtol=1e-5)
    bounds = block.sentence_starts[block.document_starts]
    documents = [str(block.tokens[a:b].tolist()) for a, b in pairwise(bounds)]
    follows = []
    ids = inputs[0].flatten().index_copy(0, batch["masked_positions"], batch["masked_labels"]).view_as(inputs[0])
    for row in ids.tolist():
        first = row.index(tokenizer.sep_id)
        pair = row[1:first] + row[first + 1 : row.index(tokenizer.sep_id, first + 1)]
        follows.append(any(str(pair)[1:-1] in document for document in documents))
    assert 3 < sum(follows) < len(follows) - 3
    assert logits.argmax(1).tolist() == [0 if follow else 1 for follow in follows]


def published(folder: Path, lowercase: bool = True, **options: Any) -> Path:
    """A model and a tokenizer as transformers writes them, for text of letters."""
    pieces = [".", ",", "!", "é", "中", "文", *LETTERS, *LETTERS.upper(), *(f"##{letter}" for letter in LETTERS), "##é"]
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL[1:], SPECIAL[0], *pieces])}
    options = {
        "vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 40, "pad_token_id": vocabulary[SPECIAL[0]],
    } | options  # fmt: skip
    torch.manual_seed(5)
    model = transformers.BertForPreTraining(transformers.BertConfig(**options))
    for parameter in model.parameters():
        parameter.data.normal_()
    model.save_pretrained(folder)
    transformers.BertTokenizer(vocab=vocabulary, do_lower_case=lowercase).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_a_folder_of_transformers_is_written_again_as_it_was(activation: str, lowercase: bool, tmp_path: Path) -> None:
    """The vocabulary is padded to a round size; the tanh form of GELU has several names, of which we write one."""
    theirs = published(
        tmp_path / "theirs", lowercase, vocab_size=128, hidden_act=activation, hidden_dropout_prob=0.25,
        attention_probs_dropout_prob=0.125,
        layer_norm_eps=1e-6, initializer_range=0.03,
    )  # fmt: skip
    again = tmp_path / "again"
    FAMILY.format.write(again, FAMILY.format.read(theirs))
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, again))
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)

    was, now = (transformers.AutoConfig.from_pretrained(folder).to_dict() for folder in (theirs, again))
    assert now.pop("pretrain")
    for config in (was, now):
        for key in ("_name_or_path", "transformers_version", "dtype"):
            config.pop(key, None)
    names = [config.pop("hidden_act") for config in (was, now)]
    assert names[0] == names[1] or activation != "gelu"
    x = torch.linspace(-4, 4, 99)
    torch.testing.assert_close(ACT2FN[names[0]](x), ACT2FN[names[1]](x), atol=1e-6, rtol=1e-6)
    assert now == was

    one, other = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (theirs, again))
    assert one.get_vocab() == other.get_vocab() and one.padding_side == other.padding_side
    for text in (["Abc dé, É!"], ["中文 a.", "[MASK] Naïve"], ["unheard\u200b #of", "\tTwo  words\n"]):
        assert one(*text) == other(*text)
    ours = FAMILY.format.read(again).tokenizer
    assert ours is not None and ours.pieces("Abc dé, 中文!").tokens == one("Abc dé, 中文!")["input_ids"]


def test_training_goes_on_from_a_folder_of_transformers(corpus: Path, tmp_path: Path) -> None:
    """After a step that is too small to tell, the weights are still those of the folder."""
    theirs = published(tmp_path / "theirs")
    more = [
        f"model.initialize_from={theirs}",
        "tokenizer.lowercase=true",
        "tokenizer.strip_accents=true",
        "optimizer={kind: adamw, peak_learning_rate: 1e-12}",
        "schedule.total_steps=1",
        "sharding={ranks: 1, zero_stage: 0}",
    ]
    command = ["train", str(REPOSITORY / "configs/bert/demo.yaml"), *tiny_overrides("bert", corpus, tmp_path, *more)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    expected = load_file(theirs / "model.safetensors")
    weights = final_weights(tiny_config("bert", corpus, tmp_path, *more))
    assert {published_name(name) for name in weights} == expected.keys()
    for name, value in weights.items():
        rows = slice(len(expected[published_name(name)]) if name in BY_WORD else None)
        torch.testing.assert_close(value[rows], expected[published_name(name)], atol=1e-9, rtol=1e-7)
