"""ELMo: a character CNN, and LSTM language models that read forward and backward (Peters et al. 2018)."""

from pretrain.models.elmo.baselines import build_baselines, build_parts
from pretrain.models.elmo.examples import build_examples, build_sentences
from pretrain.models.elmo.export import (
    differences,
    initialize,
    load_tokenizer,
    read,
    read_architecture,
    recognises,
    write,
)
from pretrain.models.elmo.model import build_model, encode, hidden_matrices
from pretrain.models.elmo.objective import ElmoObjective, gradient_scale
from pretrain.models.elmo.scoring import SCORING
from pretrain.models.elmo.start_state import make_start_state
from pretrain.models.elmo.token_embeddings import write_token_embeddings
from pretrain.models.elmo.tokens import learn, vocabulary_problem
from pretrain.models.family import Family, FamilyBaselines, FamilyFormat, FamilyTokenizer, FamilyTraining

FAMILY = Family(
    kind="elmo",
    encode=encode,
    tokenizer=FamilyTokenizer(learn=learn, load=load_tokenizer, problem=vocabulary_problem),
    training=FamilyTraining(
        ordered=True,
        build_examples=build_examples,
        build_sentences=build_sentences,
        build_model=build_model,
        build_objective=ElmoObjective,
        gradient_scale=gradient_scale,
        no_decay=lambda name: True,  # the original decays nothing
        hidden_matrices=hidden_matrices,
    ),
    format=FamilyFormat(
        name="bilm",
        recognises=recognises,
        read=read,
        write=write,
        read_architecture=read_architecture,
        differences=differences,
        initialize=initialize,
        write_token_embeddings=write_token_embeddings,
    ),
    scoring=SCORING,
    baselines=FamilyBaselines(build=build_baselines, parts=build_parts),
    make_start_state=make_start_state,
)
"""ELMo's record."""
