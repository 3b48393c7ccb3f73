"""The two families of models, and how each cuts text into tokens.

Every number a plan needs before torch is imported (parameters, FLOPs) is a method here.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.base import Converted, PathOption, Section
from pretrain.errors import ConfigError

PositiveInt = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Filter = Annotated[tuple[PositiveInt, PositiveInt], Converted]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class WordsConfig(Section):
    """Whole words, for models that read characters; the vocabulary is what the softmax predicts."""

    kind: Literal["words"] = "words"
    vocabulary: PathOption | None = None
    """A file of words, one a line, with `<S>`, `</S>` and `<UNK>`; `null` learns the words from the training text."""
    vocabulary_size: PositiveInt = 50_000
    """Most words to learn, with `<S>`, `</S>` and `<UNK>`."""
    minimum_count: PositiveInt = 1
    """A word seen fewer times than this in the training text is not learned."""
    word_split: Literal["whitespace", "unicode"] = "unicode"
    """How raw text is cut: at white space only, or also between letters and punctuation."""
    lowercase: bool = False
    """Whether words are lower-cased before anything else sees them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = type(self).model_fields
        given = {key: getattr(self, key) for key in ("vocabulary_size", "minimum_count")}
        changed = [f"{key} ({value})" for key, value in given.items() if value != fields[key].default]
        if self.vocabulary is not None and changed:
            defaults = " and ".join(f"{key} {fields[key].default}" for key in given)
            raise ValueError(f"vocabulary names a file, which {' and '.join(changed)} cannot change: leave {defaults}")
        return self

    def vocabulary_bytes(self) -> bytes | None:
        """What the file of words holds, None where words are learned; raises ConfigError where it cannot be read."""
        try:
            return None if self.vocabulary is None else self.vocabulary.read_bytes()
        except OSError as error:
            raise ConfigError(f"tokenizer.vocabulary: {self.vocabulary}: cannot be read: {error.strerror}") from None


class WordPieceConfig(Section):
    """WordPiece, learned with `tokenizers`."""

    kind: Literal["wordpiece"] = "wordpiece"
    vocabulary_size: Annotated[int, Field(gt=100)] = 30_000
    """Most pieces in the vocabulary, special tokens included."""
    minimum_count: PositiveInt = 2
    """A pair of pieces seen fewer times than this is not merged."""
    lowercase: bool = False
    """Whether text is lower-cased first."""
    strip_accents: bool = False
    """Whether accents are removed first."""


class ElmoConfig(Section):
    """ELMo: character CNN, forward and backward LSTM with projections (Peters et al. 2018)."""

    decays_weights: ClassVar[bool] = False
    """The original decays nothing."""
    kind: Literal["elmo"] = "elmo"
    initialize_from: PathOption | None = None
    """A model folder, or a run (its best checkpoint), whose weights this run starts from."""
    dropout: Dropout = 0.1
    """Every dropout of the model: each LSTM layer's input, and the top output."""
    character_embedding_size: PositiveInt = 16
    """Width of a character's embedding."""
    filters: Annotated[tuple[Filter, ...], Field(min_length=1, strict=False)] = (
        (1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024),
    )  # fmt: skip
    """Convolutions over characters: (width in characters, number of filters) each."""
    num_highways: Annotated[int, Field(ge=0)] = 2
    """Highway layers after the convolutions."""
    activation: Literal["relu", "tanh"] = "relu"
    """Activation of the convolutions."""
    max_characters: Annotated[int, Field(ge=4)] = 50
    """Character ids per word, with its begin and end marks."""
    num_layers: PositiveInt = 2
    """LSTM layers per direction."""
    cell_size: PositiveInt = 4096
    """Width of the LSTM's memory."""
    projection_size: PositiveInt = 512
    """Width of the LSTM's output; a layer's vector is twice as wide (forward, backward)."""
    cell_clip: Annotated[float, Field(ge=0)] = 3.0
    """Bound on the memory; 0 means none."""
    projection_clip: Annotated[float, Field(ge=0)] = 3.0
    """Bound on the output; 0 means none."""
    skip_connections: bool = True
    """Whether a layer after the first adds its input to its output."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        widest = max(width for width, _ in self.filters)
        if widest > self.max_characters:
            raise ValueError(f"filters has a width of {widest}, more than max_characters ({self.max_characters})")
        return self

    @property
    def dropouts(self) -> dict[str, float]:
        """Every dropout, by its name in words."""
        return {"dropout": self.dropout}

    @property
    def token_parts(self) -> dict[str, int]:
        """Parameters of the token encoder, by part."""
        width = sum(number for _, number in self.filters)
        return {
            "characters": 261 * self.character_embedding_size,
            "convolutions": sum(w * self.character_embedding_size * n + n for w, n in self.filters),
            "highways": self.num_highways * 2 * (width * width + width),
            "projection": width * self.projection_size + self.projection_size,
        }

    def encoder_parameters(self) -> int:
        """Parameters of the exported biLM, as stored (no padding row)."""
        cell = 2 * self.projection_size * 4 * self.cell_size + 4 * self.cell_size
        cell += self.cell_size * self.projection_size
        return sum(self.token_parts.values()) + 2 * self.num_layers * cell

    @property
    def hidden_matrix_parameters(self) -> int:
        """Of all parameters, those of hidden matrices: highways, projections, and the LSTM's weights."""
        width = sum(number for _, number in self.filters)
        layer = 2 * self.projection_size * 4 * self.cell_size + self.cell_size * self.projection_size
        return 2 * self.num_highways * width**2 + width * self.projection_size + 2 * self.num_layers * layer

    @property
    def flops_by_part(self) -> dict[str, float]:
        """Training FLOPs (forward and backward) per word position, both directions, full convolutions."""
        width = sum(number for _, number in self.filters)
        convolutions = sum(
            2 * w * self.character_embedding_size * n * (self.max_characters - w + 1) for w, n in self.filters
        )
        token = convolutions + self.num_highways * 4 * width * width + 2 * width * self.projection_size
        cell = 2 * 2 * self.projection_size * 4 * self.cell_size + 2 * self.cell_size * self.projection_size
        return {"characters": 6.0 * token, "recurrence": 6.0 * self.num_layers * cell}


class BertConfig(Section):
    """BERT: Transformer encoder with masked-LM and next-sentence heads (Devlin et al. 2018)."""

    decays_weights: ClassVar[bool] = True
    """All but biases and LayerNorm."""
    kind: Literal["bert"] = "bert"
    initialize_from: PathOption | None = None
    """A model folder, or a run (its best checkpoint), whose weights and tokenizer this run starts from."""
    dropout: Dropout = 0.1
    """Dropout of hidden states."""
    attention_dropout: Dropout | None = None
    """Dropout of attention probabilities; `null`: as `dropout`, as the original has it. 0 is faster: CUDA's best
    kernels for packs have none."""
    hidden_size: PositiveInt = 768
    """Width of a layer."""
    num_layers: PositiveInt = 12
    """Transformer layers."""
    num_heads: PositiveInt = 12
    """Attention heads; divides hidden_size."""
    intermediate_size: PositiveInt = 3072
    """Width of the feed-forward part."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    """Exact (erf) GELU, or the original's tanh approximation."""
    layer_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-12
    """Added to the variance in every LayerNorm."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the truncated-normal initialisation."""
    max_positions: PositiveInt = 512
    """Learned positions: the longest sequence that the model can ever read, in tokens."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) is not a multiple of num_heads ({self.num_heads})")
        return self

    @property
    def dropout_of_attention(self) -> float:
        """Dropout of attention probabilities, resolved."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @property
    def dropouts(self) -> dict[str, float]:
        """Every dropout, by its name in words."""
        return {"dropout": self.dropout, "attention dropout": self.dropout_of_attention}

    def encoder_parameters(self, vocabulary_size: int) -> int:
        """Parameters of the encoder: embeddings and layers."""
        h, i = self.hidden_size, self.intermediate_size
        embeddings = (vocabulary_size + self.max_positions + 2) * h + 2 * h
        layer = 4 * (h * h + h) + (h * i + i) + (i * h + h) + 4 * h
        return embeddings + self.num_layers * layer

    @property
    def hidden_matrix_parameters(self) -> int:
        """Of all parameters, those of hidden matrices: the layers', and the masked-word head's transform."""
        h, i = self.hidden_size, self.intermediate_size
        return self.num_layers * (4 * h * h + 2 * h * i) + h * h


ModelConfig = Annotated[ElmoConfig | BertConfig, Field(discriminator="kind")]
TokenizerConfig = Annotated[WordsConfig | WordPieceConfig, Field(discriminator="kind")]

TOKENIZER_OF: dict[str, type[WordsConfig] | type[WordPieceConfig]] = {"elmo": WordsConfig, "bert": WordPieceConfig}
"""The tokenizer that each family reads."""
