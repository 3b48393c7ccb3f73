"""BERT (Devlin et al. 2018): WordPiece, Transformer encoder, masked-word and next-sentence losses."""

from pretrain.models.bert.examples import build_examples
from pretrain.models.bert.export import initialize, read, recognises, write
from pretrain.models.bert.model import build_model, encode, no_decay
from pretrain.models.bert.objective import build_objective
from pretrain.models.bert.tokens import learn_tokenizer, load_tokenizer
from pretrain.models.bert.tuning import tune
from pretrain.models.family import Family

FAMILY = Family(
    kind="bert",
    ordered=False,
    learn_tokenizer=learn_tokenizer,
    load_tokenizer=load_tokenizer,
    build_examples=build_examples,
    build_model=build_model,
    build_objective=build_objective,
    gradient_scale=lambda config: 1.0,
    no_decay=no_decay,
    encode=encode,
    recognises=recognises,
    read=read,
    write=write,
    initialize=initialize,
    export_format="transformers",
    tune=tune,
)
"""BERT's record."""
