"""ELMo: a character CNN, and LSTM language models that read forward and backward (Peters et al. 2018)."""

from pretrain.models.elmo.examples import build_examples, build_sentences
from pretrain.models.elmo.export import initialize, load_tokenizer, read, recognises, write
from pretrain.models.elmo.model import build_model, encode
from pretrain.models.elmo.objective import ElmoObjective, gradient_scale
from pretrain.models.elmo.token_embeddings import write_token_embeddings
from pretrain.models.elmo.tokens import learn, vocabulary_problem
from pretrain.models.family import Family

FAMILY = Family(
    kind="elmo",
    ordered=True,
    learn_tokenizer=learn,
    load_tokenizer=load_tokenizer,
    build_examples=build_examples,
    build_sentences=build_sentences,
    build_model=build_model,
    build_objective=ElmoObjective,
    gradient_scale=gradient_scale,
    no_decay=lambda name: True,  # the original decays nothing
    encode=encode,
    recognises=recognises,
    read=read,
    write=write,
    initialize=initialize,
    export_format="bilm",
    write_token_embeddings=write_token_embeddings,
    vocabulary_problem=vocabulary_problem,
)
