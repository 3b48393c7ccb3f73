"""BERT in the published format: a folder that transformers and sentence-transformers open.

config.json  model.safetensors                                       the model (`BertForPreTraining`; see below)
tokenizer.json  vocab.txt  tokenizer_config.json                     the tokenizer (`BertTokenizer`)
modules.json  1_Pooling/  sentence_bert_config.json  config_sentence_transformers.json     mean pooling

A model without next-sentence prediction is a `BertForMaskedLM`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from pretrain.config.models import BertConfig
from pretrain.errors import ExportError
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.published_config import SIZES, PublishedConfig, read_config, write_config
from pretrain.models.bert.published_tokenizer import load_tokenizer
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.bert.weights import DECODER, WORDS, Weights, check_encoder, published_name, read_weights
from pretrain.models.family import ModelFolder, differing_options
from pretrain.models.published_files import read_json
from pretrain.runtime.files import share

BY_WORD = ("encoder.embeddings.words.weight", "masked_words.decoder.bias")
"""Our parameters with a row for every word, and more of them to fill a multiple; published files have none of those."""

POSITIONS = "encoder.embeddings.positions.weight"
SEGMENTS = "encoder.embeddings.segments.weight"

ABSENT = "there is no"
"""How the reason begins why a parameter is not read that the folder does not hold."""

SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "config_sentence_transformers.json": {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}
"""The files of sentence-transformers that are the same for every model."""


def write(folder: Path, model_folder: ModelFolder) -> None:
    """Writes the model and its tokenizer, in float32. Raises ExportError where there is no tokenizer, or no head.

    The output matrix, which is the word embeddings', is written once: readers tie it again.
    """
    model, tokenizer = model_folder.model, model_folder.tokenizer
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise ExportError(f"{folder} cannot be written: the model has no WordPiece tokenizer")
    assert isinstance(model, BertModel)
    if model.problem is not None:
        raise ExportError(f"{folder} cannot be written: {model.problem}")
    config: BertConfig = model_folder.config
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    tensors = {
        published_name(name): (p[: model.vocabulary_size] if name in BY_WORD else p).detach().float().cpu().contiguous()
        for name, p in model.named_parameters()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    share(folder / "model.safetensors")
    tokenizer.save(folder, max_positions=config.max_positions)
    files = {
        **SENTENCE_TRANSFORMERS,
        "config.json": write_config(model_folder, model.vocabulary_size, tokenizer.padding_id),
        "sentence_bert_config.json": {"max_seq_length": config.max_positions, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def recognises(folder: Path) -> bool:
    """Whether `config.json` is one of transformers: it says its `model_type`, or it is an early BERT's, with sizes."""
    try:
        config = read_json(folder / "config.json")
    except ExportError:
        return False
    return "model_type" in config or all(key in config for key in ["vocab_size", *SIZES.values()])


def read(folder: Path) -> ModelFolder:
    """A published model, in `eval` mode.

    The encoder is all that vectors need: of heads that the folder does not hold, or holds in another shape, the model's
    `problem` says so, which its losses raise. The published format does not say how long the training sequences were:
    where we did not write it, our defaults are taken. Raises ExportError naming the file and what is wrong with it.
    """
    published = read_config(folder / "config.json")
    weights = read_weights(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None and tokenizer.vocabulary_size > published.vocabulary_size:
        raise ExportError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary_size} pieces, "
            f"vocab_size in config.json is {published.vocabulary_size}"
        )
    check_encoder(weights, published.config, published.vocabulary_size, published.segments)
    objective = published.objective
    said = "next_sentence" in objective.model_fields_set
    if not said and published_name("next_sentence.weight") not in weights.tensors:  # BertForMaskedLM
        objective = objective.model_copy(update={"next_sentence": False})
    model = BertModel(published.config, objective, published.vocabulary_size)
    fresh = _fill(model, weights, published)
    reasons = [reason for name, reason in fresh.items() if not name.startswith("encoder.")]
    if reasons:
        model.problem = f"{weights.path} gives vectors, but no losses: {reasons[0]}"
    return ModelFolder(model.eval(), tokenizer, published.config, objective, published.language)


def read_architecture(folder: Path) -> BertConfig:
    """The model config of a published folder."""
    return read_config(folder / "config.json").config


def differences(theirs: BertConfig, ours: BertConfig) -> list[str]:
    """What keeps a model of `ours` from starting with weights of `theirs`, a line for each option."""
    lines = differing_options(theirs, ours, DECISIVE)
    if theirs.max_positions > ours.max_positions:
        lines.append(
            f"model.max_positions is {theirs.max_positions} there and {ours.max_positions} in this run, which can only "
            "have more"
        )
    return lines


DECISIVE = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "activation", "layer_norm_epsilon")
"""The options of which another value gives the same weights another shape or meaning."""


def initialize(model: nn.Module, folder: Path, tokenizer: WordPieceTokenizer | None = None) -> list[str]:
    """Copies the weights of `folder` into `model`; returns what keeps its fresh values, for the log.

    That is parameters of heads that the folder does not hold, or holds in another shape, and the positions and segments
    after its last ones. Rows of its word matrix after the last word of its own vocabulary are left out. Raises
    ExportError where the folder's encoder is not the model's: another shape, or settings or a vocabulary that give the
    same weights another meaning.
    """
    assert isinstance(model, BertModel)
    path = folder / "config.json"
    published = read_config(path)
    theirs = load_tokenizer(folder)
    if tokenizer is not None and theirs is not None and theirs.vocabulary != tokenizer.vocabulary:
        raise ExportError(f"{folder}: its vocabulary is not the one this run's corpus was prepared with")
    size, config = published.vocabulary_size, published.config
    if size < model.vocabulary_size or (theirs is None and size != model.vocabulary_size):
        raise ExportError(f"{path}: vocab_size is {size} there and {model.vocabulary_size} in this run")
    if problems := differences(config, model.config):
        raise ExportError("\n".join(f"{path}: {line}" for line in problems))
    weights = read_weights(folder)
    check_encoder(weights, config, size, published.segments)
    fresh = _fill(model, weights, published)
    return [name if reason.startswith(ABSENT) else f"{name} ({reason})" for name, reason in fresh.items()]


def _fill(model: BertModel, weights: Weights, published: PublishedConfig) -> dict[str, str]:
    """Copies every tensor that the model has a place for; returns what of it stays fresh, and why."""
    tensors = weights.tensors
    untied = _untied(weights, published)
    fresh: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        theirs = published_name(name)
        tensor = tensors.get(theirs)
        expected = list(parameter.shape)
        if name in BY_WORD:
            expected[0] = published.vocabulary_size
        if tensor is None:
            fresh[name] = f"{ABSENT} {theirs}"
        elif name.startswith("masked_words.") and untied is not None:
            fresh[name] = untied
        elif not name.startswith("encoder.") and list(tensor.shape) != expected:
            fresh[name] = f"{theirs} is {list(tensor.shape)}, the model's is {expected}"
        else:
            rows = min(len(tensor), model.vocabulary_size if name in BY_WORD else len(parameter))
            with torch.no_grad():
                parameter[:rows] = tensor[:rows]
            if name in (POSITIONS, SEGMENTS) and rows < len(parameter):
                fresh[f"{name.split('.')[2]} {rows} to {len(parameter) - 1}"] = ABSENT
    return fresh


def _untied(weights: Weights, published: PublishedConfig) -> str | None:
    """Why the masked-word head predicts by other embeddings than the encoder's; None where it does not."""
    decoder, words = weights.tensors.get(DECODER), weights.tensors[WORDS]
    if decoder is None:
        return None if published.tied else f"tie_word_embeddings is false, and there is no {DECODER}"
    if decoder.shape != words.shape:
        return f"{DECODER} is {list(decoder.shape)}, the word embeddings are {list(words.shape)}"
    same = torch.equal(decoder.float(), words.float())
    return None if same else f"{DECODER} differs from the word embeddings, and only a tied one can be read"
