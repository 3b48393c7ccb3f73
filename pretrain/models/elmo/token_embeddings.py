"""The file of token embeddings: layer 0 of every word of a vocabulary, for readers that do not spell words out.

One dataset, `embedding`, float32 [vocabulary, projection_size], in the order of the vocabulary. Those readers put a row
for padding before it.
"""

from pathlib import Path
from typing import cast

import h5py
import numpy as np
import torch

from pretrain.errors import ExportError
from pretrain.models.elmo.hdf5 import find_dataset, open_file
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.tokens import WordTokenizer, character_ids, trim_characters
from pretrain.models.family import ModelFolder

FILE = "token_embeddings.hdf5"
_DATASET = "embedding"
_WORDS_AT_ONCE = 1024


@torch.no_grad()
def write_token_embeddings(folder: Path, model_folder: ModelFolder) -> None:
    """Writes `token_embeddings.hdf5` into `folder`, a batch of words at a time."""
    model, tokenizer = cast(ElmoModel, model_folder.model), cast(WordTokenizer, model_folder.tokenizer)
    config, vocabulary = model.encoder.config, tokenizer.vocabulary
    widest_filter = max(width for width, _ in config.filters)
    device = next(model.parameters()).device
    with h5py.File(folder / FILE, "w") as file:
        rows = file.create_dataset(_DATASET, (len(vocabulary), config.projection_size), np.float32)
        for start in range(0, len(vocabulary), _WORDS_AT_ONCE):
            words = vocabulary[start : start + _WORDS_AT_ONCE]
            characters = trim_characters(character_ids(words, config.max_characters), widest_filter)
            vectors = model.encoder.token_encoder(torch.from_numpy(characters.astype(np.int64)).to(device))
            rows[start : start + len(words)] = vectors.to("cpu", torch.float32).numpy()


def check_token_embeddings(path: Path, vocabulary_size: int | None, projection_size: int) -> None:
    """Raises ExportError where the file does not fit the model beside it; `vocabulary_size` None if that is unknown."""
    with open_file(path) as file:
        rows = find_dataset(file, _DATASET)
        words = rows.shape[0] if vocabulary_size is None and rows.shape else vocabulary_size
        expected = (words, projection_size)
        if rows.shape != expected:
            raise ExportError(f"{path}: {_DATASET} is {rows.shape}, the model beside it asks for {expected}")
