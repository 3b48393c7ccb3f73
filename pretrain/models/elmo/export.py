"""Model folders as published for ELMo: `…options.json`, `…weights.hdf5`, a vocabulary, and a file for the softmax.

Names and shapes of datasets are those of Peters et al.'s release. The published files of every size can be read, and
their readers can read ours; those ignore the one key that we add, `tokenizer`. A folder may also hold the token layer
of its vocabulary (`…token_embeddings.hdf5`), and the state that texts start from (`start_state.safetensors`).
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import nn

from pretrain.config.models import ElmoConfig, WordsConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.errors import ExportError
from pretrain.models.elmo import tokens
from pretrain.models.elmo.hdf5 import holds, open_file
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.token_embeddings import check_token_embeddings
from pretrain.models.elmo.tokens import NUM_CHARACTERS, SPECIAL_WORDS, VOCABULARY_FILE, WordTokenizer, read_vocabulary
from pretrain.models.elmo.weights import (
    check_datasets,
    encoder_slices,
    read_datasets,
    softmax_slices,
    vocabulary_size_of,
    write_datasets,
)
from pretrain.models.family import ModelFolder, differing_options
from pretrain.models.published_files import find_tensorflow_checkpoint, identify, read_json
from pretrain.models.start_state import START_STATE_FILE, read_start_state, write_start_state

_MOST_CHARACTERS = 4096
"""Most characters of a word that a file may ask for: weights do not depend on it, but the memory of every word does."""
_KEYS = {
    "char_cnn.embedding.dim": "character_embedding_size",
    "char_cnn.filters": "filters",
    "char_cnn.activation": "activation",
    "char_cnn.max_characters_per_token": "max_characters",
    "lstm.n_layers": "num_layers",
    "lstm.dim": "cell_size",
    "lstm.projection_dim": "projection_size",
}
_OPTIONAL_KEYS = {  # the original's trainer reads their absence as none of it
    "char_cnn.n_highway": "num_highways",
    "lstm.cell_clip": "cell_clip",
    "lstm.proj_clip": "projection_clip",
    "lstm.use_skip_connections": "skip_connections",
}


def recognises(folder: Path) -> bool:
    """Whether a folder holds an `…options.json`."""
    return any(folder.glob("*options.json"))


def read(folder: Path) -> ModelFolder:
    """Reads a model folder; the model is in evaluation mode, and without a softmax where the folder has none.

    Raises ExportError naming the file, and what is missing, ambiguous or of another shape; DataError for a vocabulary.
    """
    options_path = _one(folder, "*options.json", "options")
    config, language = _config(options_path), _language(options_path)
    weights_path = _weights_file(folder)
    softmax_path = _softmax_file(folder, weights_path)
    tokenizer = read_tokenizer(folder)
    vocabulary_size = None if softmax_path is None else vocabulary_size_of(softmax_path, config.projection_size)
    words = None if _at_most_one(folder, "vocab*.txt") is None else tokenizer.vocabulary_size
    if vocabulary_size is not None and words is not None and vocabulary_size != words:
        raise ExportError(f"{softmax_path} predicts {vocabulary_size} words, the vocabulary beside it has {words}")
    embeddings_path = _at_most_one(folder, "*token_embeddings.hdf5")
    if embeddings_path is not None:
        check_token_embeddings(embeddings_path, words, config.projection_size)
    check_datasets(encoder_slices(config), weights_path)  # before so much is allocated, or so many layers are built
    if softmax_path is not None and vocabulary_size is not None:
        check_datasets(softmax_slices(config, vocabulary_size), softmax_path)
    with torch.device("meta"):  # every parameter is read below: draw none
        model = ElmoModel(config, vocabulary_size)
    model.to_empty(device="cpu")
    read_datasets(model, encoder_slices(config), weights_path)
    if softmax_path is not None and vocabulary_size is not None:
        read_datasets(model, softmax_slices(config, vocabulary_size), softmax_path)
    start_path = folder / START_STATE_FILE
    start_state = read_start_state(start_path, model.encoder) if start_path.exists() else None
    return ModelFolder(model.eval(), tokenizer, config, ElmoObjectiveConfig(softmax="full"), language, start_state)


def write(folder: Path, model_folder: ModelFolder) -> None:
    """Writes `options.json`, `weights.hdf5` and `vocabulary.txt`.

    And where there is a softmax, `softmax_weights.hdf5`; where there is a start state, `start_state.safetensors`.
    """
    model, tokenizer = cast(ElmoModel, model_folder.model), cast(WordTokenizer, model_folder.tokenizer)
    config: ElmoConfig = model_folder.config
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_options(config, tokenizer, model_folder.language), indent=2)
    (folder / "options.json").write_text(text + "\n", encoding="utf-8")
    tokenizer.save_vocabulary(folder / VOCABULARY_FILE)
    parameters = dict(model.named_parameters())
    write_datasets(folder / "weights.hdf5", encoder_slices(config), parameters)
    if model.softmax is not None:
        slices = softmax_slices(config, model.softmax.vocabulary_size)
        write_datasets(folder / "softmax_weights.hdf5", slices, parameters)
    if model_folder.start_state is not None:
        write_start_state(folder / START_STATE_FILE, model_folder.start_state, model.encoder)


def read_architecture(folder: Path) -> ElmoConfig:
    """The model config of a published folder."""
    return _config(_one(folder, "*options.json", "options"))


def differences(theirs: ElmoConfig, ours: ElmoConfig) -> list[str]:
    """What keeps a model of `ours` from starting with weights of `theirs`, a line for each option."""
    return differing_options(theirs, ours, (*_KEYS.values(), *_OPTIONAL_KEYS.values()))


@torch.no_grad()
def initialize(model: nn.Module, folder: Path, tokenizer: WordTokenizer) -> list[str]:
    """Copies a model folder's encoder into `model`, and its softmax for the words that `tokenizer`, the model's, holds.

    Returns what keeps its values. Raises ExportError where the folder's encoder has other options.
    """
    model, source = cast(ElmoModel, model), read(folder)
    held = cast(ElmoModel, source.model)
    if problems := differences(source.config, model.encoder.config):
        raise ExportError("\n".join(f"{folder}: {line}" for line in problems))
    model.encoder.load_state_dict(held.encoder.state_dict())
    return _initialize_softmax(held, cast(WordTokenizer, source.tokenizer), model, tokenizer)


def _initialize_softmax(
    source: ElmoModel, source_tokenizer: WordTokenizer, model: ElmoModel, tokenizer: WordTokenizer
) -> list[str]:
    """Copies the rows and biases of the words that both predict; returns what keeps its values."""
    assert model.softmax is not None
    if source.softmax is None:
        return ["the softmax, since the folder holds none"]
    if source.softmax.vocabulary_size != source_tokenizer.vocabulary_size:
        return ["the softmax, since the folder holds no vocab*.txt that names the words of its own"]
    row_of = {word: row for row, word in enumerate(source_tokenizer.vocabulary)}
    pairs = [(row, row_of[word]) for row, word in enumerate(tokenizer.vocabulary) if word in row_of]
    ours, theirs = torch.tensor(pairs).T
    model.softmax.weight[ours] = source.softmax.weight[theirs]
    model.softmax.bias[ours] = source.softmax.bias[theirs]
    size = tokenizer.vocabulary_size
    fresh = size - len(pairs)
    return [f"the softmax of {fresh:,} of {size:,} words, which the folder's vocabulary lacks"] if fresh else []


def read_tokenizer(folder: Path) -> WordTokenizer:
    """The tokenizer of a model folder; one that knows no word, but cuts text, where the folder has no vocabulary.

    A folder without our key `tokenizer` is a published one: its text was tokenised before, so words end at white space.
    """
    options_path = _one(folder, "*options.json", "options")
    written = read_json(options_path).get("tokenizer", {"word_split": "whitespace"})
    if isinstance(written, dict) and "words" in written:  # as folders have always named the option `word_split`
        written = {"word_split": written["words"]} | {key: written[key] for key in written if key != "words"}
    try:
        rule = WordsConfig.model_validate(written)
    except ValidationError as error:
        raise ExportError(f"{options_path}: tokenizer.{_first(error)}") from error
    path = _at_most_one(folder, "vocab*.txt")
    if path is not None and (what := identify(path)) is not None:
        raise ExportError(f"{path} is {what}")
    vocabulary = SPECIAL_WORDS if path is None else read_vocabulary(path)
    return WordTokenizer(vocabulary, words=rule.word_split, lowercase=rule.lowercase)


def _at_most_one(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise ExportError(f"{folder} holds {' and '.join(path.name for path in found)}: leave one {pattern}")
    return found[0] if found else None


def _one(folder: Path, pattern: str, what: str) -> Path:
    path = _at_most_one(folder, pattern)
    if path is None:
        raise ExportError(f"{folder} holds no {what} ({pattern})")
    return path


def _weights_file(folder: Path) -> Path:
    found = sorted(p for p in folder.glob("*weights.hdf5") if not p.name.endswith("softmax_weights.hdf5"))
    if len(found) != 1:
        if not found and (line := find_tensorflow_checkpoint(folder)) is not None:
            raise ExportError(f"{line}, to a *weights.hdf5 (bilm-tf's `dump_weights` does)")
        names = " and ".join(path.name for path in found) or "no weights"
        raise ExportError(f"{folder} holds {names}: there must be one *weights.hdf5 (beside *softmax_weights.hdf5)")
    return found[0]


def _softmax_file(folder: Path, weights_path: Path) -> Path | None:
    """Where the softmax is: in its own file, or with the weights, where the original's writer was made to keep it."""
    path = _at_most_one(folder, "*softmax_weights.hdf5")
    if path is not None:
        return path
    with open_file(weights_path) as file:
        return weights_path if holds(file, "softmax/W") else None


def _lookup(options: dict[str, Any], key: str) -> Any:
    """The value at a dotted path, or None."""
    value: Any = options
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _config(path: Path) -> ElmoConfig:
    """The architecture that an options file describes; what concerns training only is as it is by default."""
    options = read_json(path)
    num_characters = _lookup(options, "char_cnn.n_characters")
    # the original's trainer writes 261; its reader wants 262, with a row for padding that no file holds
    if num_characters not in (None, NUM_CHARACTERS, NUM_CHARACTERS + 1):
        raise ExportError(f"{path}: char_cnn.n_characters is {num_characters}, not {NUM_CHARACTERS} or one more")
    missing = [key for key in _KEYS if _lookup(options, key) is None]
    if missing:
        raise ExportError(f"{path} lacks {', '.join(missing)}: only models that read characters are supported")
    fields = {field: _lookup(options, key) for key, field in _KEYS.items()}
    fields |= {field: _lookup(options, key) or 0 for key, field in _OPTIONAL_KEYS.items()}
    try:
        # full, since nothing is sampled from a finished model, and its vocabulary may be smaller than a sample
        config = ElmoConfig.model_validate(fields, strict=False)
    except ValidationError as error:
        raise ExportError(f"{path}: {_first(error)}") from error
    if config.max_characters > _MOST_CHARACTERS:
        raise ExportError(
            f"{path}: char_cnn.max_characters_per_token is {config.max_characters}, more than {_MOST_CHARACTERS}"
        )
    return config


def _language(path: Path) -> str | None:
    language = read_json(path).get("language")
    if language is not None and not isinstance(language, str):
        raise ExportError(f"{path}: language is {language!r}, not a language's code")
    return language


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    return f"{key}: {problem['msg']}, not {problem['input']!r}"


def _options(config: ElmoConfig, tokenizer: WordTokenizer, language: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "lstm": {
            "use_skip_connections": config.skip_connections,
            "projection_dim": config.projection_size,
            "cell_clip": config.cell_clip,
            "proj_clip": config.projection_clip,
            "dim": config.cell_size,
            "n_layers": config.num_layers,
        },
        "char_cnn": {
            "activation": config.activation,
            "filters": config.filters,
            "n_highway": config.num_highways,
            "embedding": {"dim": config.character_embedding_size},
            "n_characters": NUM_CHARACTERS + 1,
            "max_characters_per_token": config.max_characters,
        },
        "tokenizer": {"words": tokenizer.words, "lowercase": tokenizer.lowercase},
    }
    return options if language is None else options | {"language": language}


def load_tokenizer(folder: Path) -> WordTokenizer | None:
    """The tokenizer saved in `folder`, which may be a model folder with a vocabulary; None where there is none."""
    if recognises(folder) and any(folder.glob("vocab*.txt")):
        return read_tokenizer(folder)
    return tokens.load(folder)
