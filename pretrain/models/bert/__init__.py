"""BERT (Devlin et al. 2018): WordPiece, Transformer encoder, masked-word and next-sentence losses."""

from pretrain.models.bert.backends import select_backends
from pretrain.models.bert.baselines import build_baselines, build_parts
from pretrain.models.bert.examples import build_examples
from pretrain.models.bert.export import differences, initialize, read, read_architecture, recognises, write
from pretrain.models.bert.model import build_model, encode, hidden_matrices, no_decay
from pretrain.models.bert.objective import build_objective
from pretrain.models.bert.published_tokenizer import load_tokenizer
from pretrain.models.bert.scoring import SCORING
from pretrain.models.bert.tokens import learn_tokenizer
from pretrain.models.family import Family, FamilyBaselines, FamilyFormat, FamilyTokenizer, FamilyTraining

FAMILY = Family(
    kind="bert",
    encode=encode,
    tokenizer=FamilyTokenizer(learn=learn_tokenizer, load=load_tokenizer),
    training=FamilyTraining(
        ordered=False,
        build_examples=build_examples,
        build_model=build_model,
        build_objective=build_objective,
        gradient_scale=lambda objective: 1.0,
        no_decay=no_decay,
        hidden_matrices=hidden_matrices,
        select_backends=select_backends,
    ),
    format=FamilyFormat(
        name="transformers",
        recognises=recognises,
        read=read,
        write=write,
        read_architecture=read_architecture,
        differences=differences,
        initialize=initialize,
        sentence_pooling="mean",
    ),
    scoring=SCORING,
    baselines=FamilyBaselines(build=build_baselines, parts=build_parts),
)
"""BERT's record."""
