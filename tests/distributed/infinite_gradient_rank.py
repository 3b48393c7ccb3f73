"""One rank that trains each config with an infinite gradient of rank 1 in the third step, and says how it ended."""

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.config.load import load_config
from pretrain.data.prepare import find_prepared
from pretrain.errors import TrainingError
from pretrain.runtime.launcher import end_rank, end_with_launcher
from pretrain.runtime.world import world
from pretrain.training.module import Pretraining
from pretrain.training.start import agree_on_start
from pretrain.training.trainer import run_rank


def main() -> None:
    """Trains the configs named after the folder to write to; of each, the error that ended it, or None."""
    end_with_launcher()
    this = world()
    assert this is not None
    step = Pretraining.training_step

    def infinite(module: Pretraining, *batch: Any) -> Tensor:
        loss = step(module, *batch)  # what is logged is noted by now
        return loss * float("inf") if module.step == 2 and this.rank == 1 else loss

    Pretraining.training_step = infinite  # type: ignore[method-assign,assignment]
    ended: dict[str, str | None] = {}
    for path in sys.argv[2:]:
        config = load_config(path)
        corpus = find_prepared(config)
        assert corpus is not None
        agree_on_start(config, this, lambda corpus=corpus: corpus)
        ended[config.name] = None
        try:
            run_rank(config, corpus, None, this, 5)
        except TrainingError as error:
            ended[config.name] = str(error)
    (Path(sys.argv[1]) / f"rank-{this.rank}.json").write_text(json.dumps(ended), encoding="utf-8")
    end_rank()


main()
