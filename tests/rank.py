"""One rank of several starts, one after another (see `tests.tiny.run_on_ranks`)."""

import contextlib
import json
import sys

from pretrain.config.load import load_config
from pretrain.data.prepare import find_prepared
from pretrain.runtime.launcher import end_rank, end_with_launcher
from pretrain.runtime.logging import set_up_logging
from pretrain.runtime.world import world
from pretrain.train import open_probes
from pretrain.training.start import agree_on_start
from pretrain.training.trainer import run_rank


def main() -> None:
    """Carries out the starts named in the first argument: [config file, stop_after] each."""
    end_with_launcher()
    set_up_logging()
    this = world()
    assert this is not None
    for path, stop_after in json.loads(sys.argv[1]):
        config = load_config(path)
        corpus = find_prepared(config)
        assert corpus is not None
        with contextlib.ExitStack() as held:
            probes = open_probes(config, held)
            if probes is not None and this.rank == 0:
                probes.rehearse(corpus.fetch_tokenizer())
            _, resume = agree_on_start(config, this, lambda corpus=corpus: corpus)
            run_rank(config, corpus, resume, this, stop_after, probe=probes)
    end_rank()


main()
