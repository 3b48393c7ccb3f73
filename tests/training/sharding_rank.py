"""One rank that trains a step of each config, and says how many elements of weights and states it holds."""

import json
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from pretrain.config.load import load_config
from pretrain.data.prepare import find_prepared
from pretrain.runtime.launcher import end_rank, end_with_launcher
from pretrain.runtime.world import world
from pretrain.training import trainer
from pretrain.training.module import Pretraining
from pretrain.training.start import agree_on_start


class Held(Callback):
    """Counts what this rank holds between two steps."""

    def __init__(self, stage: int) -> None:
        self._stage = stage
        self.counted: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Trainer, module: Pretraining, *_: Any, **__: Any) -> None:  # type: ignore[override]
        """After a step."""
        parameters: list[Any] = list(module.model.parameters())
        zero: Any = trainer.optimizers[0]
        states = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        self.counted = {
            "whole": sum(p.ds_numel if self._stage == 3 else p.numel() for p in parameters),
            "held": sum(p.ds_tensor.numel() if self._stage == 3 else p.numel() for p in parameters),
            "whole_now": sum(p.numel() for p in parameters),
            "states": sum(flat.numel() for flat in states),
        }


def main() -> None:
    """Trains the configs named after the folder to write to."""
    end_with_launcher()
    this = world()
    assert this is not None
    build = trainer.build_trainer
    counted = {}
    for path in sys.argv[2:]:
        config = load_config(path)
        held = Held(config.sharding.zero_stage)
        trainer.build_trainer = lambda *a, held=held, **k: build(*a[:3], [held, *a[3]], **k)
        corpus = find_prepared(config)
        assert corpus is not None
        agree_on_start(config, this, lambda corpus=corpus: corpus)
        trainer.run_rank(config, corpus, None, this, 1)
        counted[config.name] = held.counted
    (Path(sys.argv[1]) / f"rank-{this.rank}.json").write_text(json.dumps(counted), encoding="utf-8")
    end_rank()


main()
