"""`pretrain prepare`: learns the vocabulary and writes the corpus as shards."""

from pretrain.config.run import RunConfig
from pretrain.data.prepare import check_inputs, ensure_prepared


def prepare(config: RunConfig) -> tuple[str, list[str]]:
    """Where the prepared corpus of `config` is, made now where it has not been, and its report.

    What is likely to be a mistake is logged as warnings. Raises DataError for text that is missing, empty or
    undecodable, ConfigError for a model to start from that is none.
    """
    check_inputs(config)
    from pretrain.data.tokenizer import settle_tokenizer
    from pretrain.models import get_family  # torch takes seconds to import: what is missing is said before
    from pretrain.runs.trained import check_start_sizes

    check_start_sizes(config)
    family = get_family(config.model.kind)
    corpus = ensure_prepared(settle_tokenizer(config, family), family, log_report=False)
    return corpus.url, corpus.report()
