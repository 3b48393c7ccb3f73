"""`pretrain config`: a run's derived numbers, with what is known of its corpus and its speed. Imports no torch."""

import json
import logging
import statistics
from pathlib import Path

from pretrain.config.plan import Plan, Prepared, Speed, plan_run
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError, PretrainError
from pretrain.runs.folder import RunFolder

log = logging.getLogger(__name__)

LINES_OF_SPEED = 20
"""The newest lines of metrics.jsonl whose median is the run's speed."""
LIKE = 2.0
"""A bench of a model whose tokens take so many times the FLOPs, or fewer, tells the speed of another."""


def plan(
    config: RunConfig, tokens_per_second: float | None = None, bench: Path | None = None
) -> tuple[Plan, Speed | None]:
    """The numbers of a run, and its speed: as given, as `pretrain bench --json` measured it, or as the run itself did.

    Raises ConfigError for ranks that the run cannot be spread over, or a file that no bench of such a model wrote.
    """
    ranks = 1 if config.sharding.ranks == "auto" else config.sharding.ranks
    if problems := config.rank_problems(ranks):
        raise ConfigError("\n".join(problems))
    if tokens_per_second is not None and bench is not None:
        raise ConfigError(f"--speed {tokens_per_second:g} and --bench {bench}: give one of them")
    numbers = plan_run(config, ranks, find_corpus(config))
    if tokens_per_second is not None:
        return numbers, Speed(tokens_per_second, "--speed")
    return numbers, read_bench(bench, numbers) if bench else read_own_speed(config)


def find_corpus(config: RunConfig) -> Prepared | None:
    """What is known of the run's corpus where it is prepared; the log says where it cannot be used."""
    from pretrain.data.corpus import open_corpus, source_weights
    from pretrain.data.prepare import find_prepared

    folder = RunFolder(config.folder)
    try:
        if config.model.initialize_from is None:
            corpus = find_prepared(config)
        elif folder.prepared_file.is_file():  # the model's tokenizer decides where the corpus is: the run knows it
            corpus = open_corpus(folder.prepared(), source_weights(config.data))
        else:
            return None
    except PretrainError as error:
        for line in str(error).splitlines():
            log.warning("the prepared corpus cannot be used: %s", line)
        return None
    if corpus is None:
        return None
    vocabulary_size = len(corpus.unigrams("train"))
    return Prepared(vocabulary_size, {source.name: source.counts["tokens"] for source in corpus.training})


def read_own_speed(config: RunConfig) -> Speed | None:
    """The speed that a run has had lately; None where it has not begun."""
    folder = RunFolder(config.folder)
    lines = [line for line in folder.read_metrics() if "tokens_per_second" in line]
    if not lines:
        return None
    speed = statistics.median(line["tokens_per_second"] for line in lines[-LINES_OF_SPEED:])
    return Speed(speed, f"{folder.metrics_file}, all ranks", step=lines[-1]["step"])


def read_bench(file: Path, numbers: Plan) -> Speed:
    """The speed of as many ranks as the plan has, each as fast as the process that was measured."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        one, flops = float(values["step"]["ours"]["tokens_per_second"]), float(values["step"]["flops_per_token"])
    except OSError as error:
        raise ConfigError(f"--bench {file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"--bench {file}: not what pretrain bench --json writes") from None
    if not 1 / LIKE < flops / numbers.flops_per_token < LIKE:
        raise ConfigError(
            f"--bench {file}: measured {values.get('name')}, whose tokens take {flops:.2e} FLOPs; this run's take "
            f"{numbers.flops_per_token:.2e}: measure this config"
        )
    ranks = numbers.ranks
    each = f", {ranks} ranks each as fast as the one measured" if ranks > 1 else ""
    return Speed(one * ranks, f"{file}{each}")
