"""`pretrain train` beside transformers' `Trainer`: the same BERT, text and machine, for as many minutes.

`python docs/benchmarks/transformers_trainer/compare.py CONFIG [section.option=value …] --minutes 30 --out FOLDER`

Both are trained in processes of their own, one after the other, and evaluated on the same held-out examples. README.md
says what is the same and what is not.
"""

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from report import write_report
from train_with_trainer import WARM_UP_STEPS, Plan, training_arguments, write_plan

from pretrain.config.load import load_config
from pretrain.config.run import RunConfig
from pretrain.config.secrets import without_secrets
from pretrain.data.prepare import find_prepared
from pretrain.errors import ConfigError, PretrainError
from pretrain.evaluate import baseline
from pretrain.prepare import prepare
from pretrain.runs.folder import RunFolder, versions
from pretrain.runs.held_out import held_out_text
from pretrain.runs.metrics import read_metrics

HERE = Path(__file__).parent
OURS, THEIRS = "pretrain", "Trainer"


class Comparison:
    """One comparison: a config, the minutes for each side, and the folder for all that comes of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.out
        self._given = [
            *options.overrides,
            f"run_root={self._folder / 'runs'}",
            "sharding.ranks=1",
            "sharding.zero_stage=0",
            "logging.every_steps=1",
            "logging.wandb=off",
            f"compute.threads={options.threads}",
        ]
        self._config = load_config(options.config, self._given)
        self._arguments = dict(map(_parse_argument, options.argument))
        self._check()

    def _check(self) -> None:
        """Raises ConfigError for what the two sides could not both do, and for results that would be written over."""
        config = self._config
        if config.model.kind != "bert":
            raise ConfigError(f"model.kind is {config.model.kind}: BertForPreTraining is a bert")
        objective: Any = config.objective
        sources = len(config.data.sources)
        problems = [
            problem
            for problem, wrong in {
                "objective.next_sentence is false: BertForPreTraining needs pairs": not objective.next_sentence,
                "objective.whole_word_masking is true: the collator masks pieces": objective.whole_word_masking,
                f"optimizer.kind is {config.optimizer.kind}: give adamw, which both have": config.optimizer.kind
                != "adamw",
                f"data.sources are {sources}, drawn by weight: give one, which may have many files": sources != 1,
                "data.held_out is 0: there is nothing to compare on": not config.data.held_out,
                "model.initialize_from: both sides are to start afresh": config.model.initialize_from is not None,
                f"{self._folder}: not empty: give a new folder": self._folder.exists() and any(self._folder.iterdir()),
            }.items()
            if wrong
        ]
        if config.optimizer.kind == "adamw":
            settled = training_arguments(Plan(1.0, 1, 0), config, 1, self._folder)
            settled |= {"gradient_accumulation_steps": 1}  # the model's loss is a mean that does not know of it
            problems += [f"--argument {name}: it is settled already" for name in self._arguments.keys() & settled]
        for package in ("transformers", "accelerate"):
            if find_spec(package) is None:
                problems.append(f"{package} is not installed, and the Trainer needs it: pip install {package}")
        if problems:
            raise ConfigError("\n".join(problems))

    def run(self) -> dict[str, Any]:
        """Prepares, measures the speeds, trains both, and returns all that is known, which `result.json` holds."""
        say("preparing the text")
        prepare(self._config)
        corpus = find_prepared(self._config)
        assert corpus is not None
        result = self._about()
        result["corpus"] = {
            "identity": corpus.identity,
            "training": dict(corpus.training[0].counts),
            "held_out": held_out_text(corpus, self._config.evaluation.blocks),
            "unigram_loss": baseline(corpus.unigrams("train"), corpus.unigrams("held_out")),
        }
        sides = {OURS: self._ours, THEIRS: self._theirs}
        order = [OURS, THEIRS] if self._options.order == "pretrain-first" else [THEIRS, OURS]
        for name in order:
            result[name] = sides[name]()
        write_report(result, self._folder)
        return result

    def _ours(self) -> dict[str, Any]:
        """`pretrain train` by its command, on a schedule that ends with the minutes."""
        options, schedule = self._options, self._config.schedule
        trial = None
        steps = options.our_steps
        if steps is None:
            say(f"{OURS}: the time of a step")
            self._train_ours("trial", options.trial_steps, options.trial_steps, evaluate_every=options.trial_steps)
            trial = seconds_per_step(self._metrics("trial"))
            shutil.rmtree(self._folder / "runs" / "trial")
            steps = steps_in(options.minutes, trial)
        warmup = round(steps * schedule.warmup_steps / schedule.total_steps)
        say(f"{OURS}: {steps:,} steps")
        began = now()
        others = self._train_ours(OURS, steps, warmup, evaluate_every=max(1, steps // options.evaluations))
        lines = self._metrics(OURS)
        return {
            "began": began,
            "cores_used_by_others": others,
            "learning_rate": self._config.optimizer.peak_learning_rate,
            "steps": steps,
            "warmup_steps": warmup,
            "seconds_per_step_in_the_trial": trial,
            "seconds_per_step": seconds_per_step(lines),
            "tokens": sum(line["tokens"] for line in lines),
            "curve": our_curve(lines),
        }

    def _train_ours(self, name: str, steps: int, warmup: int, *, evaluate_every: int) -> float | None:
        """One run by its command; returns the cores that others used meanwhile."""
        overrides = [
            *self._given,
            f"name={name}",
            f"schedule.total_steps={steps}",
            f"schedule.warmup_steps={warmup}",
            f"evaluation.every_steps={evaluate_every}",
            f"checkpoint.every_steps={steps}",
        ]
        if name == "trial":
            overrides.append("evaluation.blocks=1")
        command = [sys.executable, "-m", "pretrain", "train", self._options.config, *overrides]
        return self._start(command, self._folder / f"{name}.log")

    def _metrics(self, name: str) -> list[dict[str, Any]]:
        return read_metrics(RunFolder(self._folder / "runs" / name).metrics_file)

    def _theirs(self) -> dict[str, Any]:
        """`Trainer`, on a schedule that ends with the minutes, at the rate given or the best of a sweep."""
        options, schedule = self._options, self._config.schedule
        share = schedule.warmup_steps / schedule.total_steps
        plan = Plan(
            learning_rate=options.rate or self._config.optimizer.peak_learning_rate,
            steps=options.trial_steps,
            warmup_steps=options.trial_steps,
            batch=options.batch,
            arguments=self._arguments,
        )
        steps, sweep_steps, trial = options.their_steps, options.sweep_steps, None
        if steps is None or (options.sweep and sweep_steps is None):
            say(f"{THEIRS}: the time of a step")
            trial = self._train_theirs("trial", plan)["seconds_per_step"]
            steps = steps or steps_in(options.minutes, trial)
            sweep_steps = sweep_steps or steps_in(options.sweep_minutes or options.minutes / 5, trial)
        sweep: list[dict[str, Any]] = []
        for rate in options.sweep:
            say(f"{THEIRS}: {sweep_steps:,} steps at {rate:g}")
            warmup = round(share * sweep_steps)
            short = replace(
                plan, learning_rate=rate, steps=sweep_steps, warmup_steps=warmup, evaluate_every=sweep_steps
            )
            (last,) = self._train_theirs(f"rate-{rate:g}", short)["curve"]
            sweep.append({"learning_rate": rate} | last)
        if sweep:
            best = min(sweep, key=lambda point: math.inf if math.isnan(point["mlm_loss"]) else point["mlm_loss"])
            plan = replace(plan, learning_rate=best["learning_rate"])
        every = max(1, steps // options.evaluations)
        say(f"{THEIRS}: {steps:,} steps at {plan.learning_rate:g}")
        began = now()
        plan = replace(plan, steps=steps, warmup_steps=round(share * steps), evaluate_every=every)
        trained = self._train_theirs("whole", plan)
        return {
            "began": began,
            "sweep": sweep,
            "seconds_per_step_in_the_trial": trial,
        } | trained

    def _train_theirs(self, name: str, plan: Plan) -> dict[str, Any]:
        """One training as its plan says: its result, and the cores that others used meanwhile."""
        folder = self._folder / "trainer" / name
        file = write_plan(plan, folder)
        program = str(HERE / "train_with_trainer.py")
        command = [sys.executable, program, str(file), self._options.config, *self._given]
        others = self._start(command, folder / "trainer.log")
        found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return {"cores_used_by_others": others} | found

    def _start(self, command: list[str], log: Path) -> float | None:
        """Runs a program to its end; returns the cores that others used meanwhile, None where that is not known.

        Both sides get the same threads, and the same one GPU where there are several.
        """
        environment = os.environ | {"OMP_NUM_THREADS": str(self._options.threads), "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
        before, began = cpu_seconds(), time.monotonic()
        with log.open("w", encoding="utf-8") as stream:
            done = subprocess.run(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            last = log.read_text(encoding="utf-8").strip().splitlines()[-20:]
            raise SystemExit("\n".join([*last, f"{log}: ended with exit code {done.returncode}"]))
        after, seconds = cpu_seconds(), time.monotonic() - began
        if before is None or after is None:
            return None
        return max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / seconds

    def _about(self) -> dict[str, Any]:
        config: RunConfig = self._config
        more = {name: metadata.version(name) for name in ("transformers", "accelerate")}
        return {
            "command": shlex.join(without_secrets([Path(sys.argv[0]).name, *sys.argv[1:]])),
            "date": now(),
            "machine": machine(),
            "threads": self._options.threads,
            "minutes": self._options.minutes,
            "order": self._options.order,
            "versions": versions() | more,
            "config": config.public().model_dump(mode="json"),
        }


def our_curve(lines: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The held-out losses of a run's metrics, where every step has a line: minutes are those of its steps alone."""
    curve, tokens, seconds = [], 0, 0.0
    for line in lines:
        tokens += line["tokens"]
        seconds += line["tokens"] / line["tokens_per_second"]
        if "held_out_mlm_loss" in line:
            found = {key.removeprefix("held_out_"): value for key, value in line.items() if key.startswith("held_out_")}
            found = {key: value for key, value in found.items() if key.startswith(("mlm_", "nsp_"))}
            curve.append({"step": line["step"], "minutes": seconds / 60, "tokens": tokens} | found)
    return curve


def seconds_per_step(lines: Sequence[dict[str, Any]]) -> float:
    """Of a run's metrics, after its first steps, where there are more."""
    seconds: list[float] = [line["tokens"] / line["tokens_per_second"] for line in lines]
    counted = seconds[WARM_UP_STEPS:] or seconds
    return sum(counted) / len(counted)


def steps_in(minutes: float, seconds_per_step: float) -> int:
    """Steps that take so many minutes, one at least."""
    return max(1, int(60 * minutes / seconds_per_step))


def machine() -> str:
    """What computes."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def cpu_seconds() -> tuple[float, float] | None:
    """What the whole machine has computed since it was started, and programs that we started and that have ended.

    None where the system does not tell the former.
    """
    file = Path("/proc/stat")
    if not file.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.read_text().splitlines()[0].split()[1:9])
    ended = os.times()
    all_of_it = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return all_of_it, ended.children_user + ended.children_system


def now() -> str:
    """The time, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def say(what: str) -> None:
    """Tells what is done next."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def _parse_argument(argument: str) -> tuple[str, Any]:
    name, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"--argument {argument}: not of the form name=value")
    return name, yaml.safe_load(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares, and prints the report."""
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("config", help="a config of BERT with pairs, which decides size, text and vocabulary for both")
    add("overrides", nargs="*", metavar="section.option=value")
    add("--minutes", type=float, default=30.0, help="of training for each, evaluations left out")
    add("--out", type=Path, required=True, help="a new folder")
    add("--order", choices=["pretrain-first", "trainer-first"], default="pretrain-first")
    add("--threads", type=int, default=os.cpu_count() or 1, help="of either; by default all cores")
    add("--evaluations", type=int, default=15, help="points of each curve")
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument("--rate", type=float, help="the Trainer's learning rate; by default the config's")
    rates.add_argument(
        "--sweep", type=float, nargs="+", default=(), metavar="RATE", help="try the Trainer with each first"
    )
    add("--sweep-minutes", type=float, help="for each rate; by default a fifth of --minutes")
    add("--batch", type=int, help="pairs of a Trainer's step; by default as many as hold our step's tokens")
    add("--argument", action="append", default=[], metavar="NAME=VALUE", help="one more of TrainingArguments")
    add("--trial-steps", type=int, default=20, help="steps from which the time of a step is measured")
    add("--our-steps", type=int, help="rather than as many as the minutes hold")
    add("--their-steps", type=int, help="rather than as many as the minutes hold")
    add("--sweep-steps", type=int, help="rather than as many as the minutes hold")
    options = parser.parse_intermixed_args(arguments)
    try:
        Comparison(options).run()
    except PretrainError as error:
        parser.exit(2, f"{error}\n")
    print((options.out / "result.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
