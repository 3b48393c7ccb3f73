"""`pretrain prepare`: learns the vocabulary and writes the corpus as shards."""

from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared, report
from pretrain.models import get_family


def prepare(config: RunConfig) -> tuple[str, list[str]]:
    """Where the prepared corpus of `config` is, made now where it has not been, and its report.

    Raises DataError for text that is missing, empty or undecodable.
    """
    store = ensure_prepared(config, get_family(config.model.kind))
    manifest = store.read_manifest()
    assert manifest is not None
    return store.url, report(manifest)
