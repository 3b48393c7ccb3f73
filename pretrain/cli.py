"""The command line: thin commands over the verbs. Nothing heavy is imported before a command runs."""

import errno
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import click

from pretrain.errors import ConfigError, PretrainError
from pretrain.runtime.collectives import leave_ranks
from pretrain.runtime.launcher import end_rank
from pretrain.runtime.logging import set_up_logging
from pretrain.runtime.world import world

LINES = ["paragraph", "sentence", "wrapped"]
DATA = "Text to evaluate on, instead of the run's held-out text."
STATES = "An LSTM's states: carried from sentence to sentence (the default), or reset before each."
START = (
    "What an LSTM starts texts from: what the model folder or run says (auto, the default; zero where it says "
    "nothing), zero, or the state after the most frequent words (primed)."
)
PER_SENTENCE = "Write each word's log-probability to FILE, a sentence a line, in JSON."
SPEED = "Of all ranks together, for the time; by default what the run itself has measured, if it has begun."
LONG = (
    "A text longer than the model reads: stop (the default), read it in windows, cut it short (its last words get no "
    "vector), or skip it (0 words). How many there were is said at the end."
)
TASKS = [
    "pos", "dependencies", "entities", "senses", "wic", "minimal-pairs", "similarity", "classification", "geometry",
]  # fmt: skip
TEST = "What to test on; by default a fifth of --data, which is left out of what is learned from."
STATIC = "Word vectors as text (word2vec, GloVe, fastText), to stand beside; by default the model's own, averaged."
SCORES = "Minimal pairs: write both scores of each pair to FILE, a JSON line a pair."
PAIRS = "Minimal pairs: draw N of each paradigm, by default all."
DEMO_TAKES = (
    "Trains an ELMo and a BERT on Python's documentation, two processes each, in a few minutes on a laptop:\n"
    "measured were 203 s on two idle cores, and 307 s with one of them busy."
)
CONFIG = click.argument("config", type=str)
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[section.option=value …]")
NEEDS_TRAIN = {
    "datasets", "deepspeed", "filelock", "fsspec", "lightning", "matplotlib", "pyarrow", "sentencex", "wandb",
}  # fmt: skip
THE_MACHINES = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC, errno.EDQUOT,
    errno.ENAMETOOLONG, errno.EEXIST, errno.ELOOP,
}  # fmt: skip
"""Errors of the file system that are no bug of ours."""
FULL = {errno.ENOSPC, errno.EDQUOT}
INTERRUPTED = 130
"""The shell's exit code for Ctrl-C."""
RANK_0_SECONDS = 10
"""How long other ranks wait for rank 0 to report a mistake that all of them have met, and to end them."""


class Commands(click.Group):
    """Turns a user's mistake into one line and exit code 2; a bug keeps its traceback and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except PretrainError as error:
            leave(str(error))
        except KeyboardInterrupt:
            click.echo("interrupted: what was not finished is made anew by the same command", err=True)
            raise SystemExit(INTERRUPTED) from None
        except OSError as error:
            if error.errno in FULL and error.filename is None:  # a write does not say to which file
                leave(f"{error.strerror}: free some space; the same command goes on from what was complete")
            if error.errno not in THE_MACHINES or error.filename is None:
                raise
            leave(f"{error.filename}: {error.strerror}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in NEEDS_TRAIN:
                raise
            leave(f"this needs {error.name}: pip install 'pretrain[train]'")


def leave(problems: str) -> NoReturn:
    """Says each problem in a line, and exits with 2."""
    this = world()
    if this is not None and this.rank > 0:
        time.sleep(RANK_0_SECONDS)
    click.echo("\n".join(f"error: {line}" for line in problems.splitlines()), err=True)
    sys.stderr.flush()
    raise SystemExit(PretrainError.exit_code) from None


def check_paths(folders: Sequence[Path], files: Sequence[str] = ()) -> None:
    """Raises ConfigError or DataError for what is not there, before a verb is imported, which takes seconds."""
    from pretrain.data.files import list_files

    for path in folders:
        if not path.exists():
            where = "" if path.is_absolute() else f" in {Path.cwd()}"
            raise ConfigError(f"{path}: no such folder{where}")
    for name in files:
        if "://" not in name:
            list_files(name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pretrain")
def main() -> None:
    """From raw text to contextual word vectors: ELMo and BERT, on one laptop or many GPUs."""
    set_up_logging()


@main.command()
@CONFIG
@OVERRIDES
def prepare(config: str, overrides: tuple[str, ...]) -> None:
    """Learn the vocabulary and tokenise the sources of CONFIG into shards."""
    from pretrain.config.load import load_config
    from pretrain.prepare import prepare

    where, report = prepare(load_config(config, overrides))
    for line in report:
        click.echo(line)
    click.echo(f"prepared in {where}")


@main.command()
@CONFIG
@OVERRIDES
@click.option(
    "--stop-after", type=click.IntRange(min=0), metavar="STEPS", help="Train STEPS more steps, save and stop."
)
@click.option("--extend", is_flag=True, help="Resume a run with a longer schedule than it began with.")
def train(config: str, overrides: tuple[str, ...], stop_after: int | None, extend: bool) -> None:
    """Pretrain CONFIG, or resume it where its run folder holds a checkpoint.

    Ctrl-C and SIGTERM save after the current step, and end with exit code 75: the same command goes on.
    """
    from pretrain.config.load import load_config
    from pretrain.train import train

    launched = world() is not None
    ended = train(load_config(config, overrides), stop_after, extend=extend)
    if launched:
        end_rank(ended.code)
    leave_ranks()
    click.echo(f"run folder: {ended.folder}")
    raise SystemExit(ended.code)


@main.command()
@click.argument("targets", metavar="RUN|MODEL…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", multiple=True, metavar="FILE", help=DATA)
@click.option("--checkpoint", default="best", show_default=True, help="Of a run: best, newest, or a step.")
@click.option("--lines", type=click.Choice(LINES), default="paragraph", show_default=True, help="What a line is.")
@click.option("--language", metavar="CODE", help="Of the text of --data, such as is; by default the model's.")
@click.option("--states", type=click.Choice(["carried", "reset"]), help=STATES)
@click.option("--start", type=click.Choice(["auto", "zero", "primed"]), default="auto", help=START)
@click.option("--per-sentence", type=click.Path(path_type=Path), metavar="FILE", help=PER_SENTENCE)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, or a list for several.")
def evaluate(
    targets: tuple[Path, ...],
    data: tuple[str, ...],
    checkpoint: str,
    lines: str,
    language: str | None,
    states: Literal["carried", "reset"] | None,
    start: Literal["auto", "zero", "primed"],
    per_sentence: Path | None,
    as_json: bool,
) -> None:
    """Held-out loss and perplexity of a run, or of a model folder on the text of --data; of several, a table."""
    check_paths(targets, data)
    from pretrain.evaluate import compare, evaluate
    from pretrain.runs.evaluation import Comparison, Evaluation

    result: Evaluation | Comparison
    if len(targets) == 1:
        result = evaluate(
            targets[0],
            data,
            checkpoint,
            lines,
            language=language,
            states=states,
            start=start,
            per_sentence=per_sentence,
        )
    elif per_sentence is not None:
        raise ConfigError(f"--per-sentence {per_sentence}: for one run or model, not for {len(targets)}")
    else:
        result = compare(targets, data, checkpoint, lines, language=language, states=states, start=start)
    click.echo(json.dumps(result.values()) if as_json else "\n".join(result.lines()))


@main.command()
@click.argument("targets", metavar="RUN|MODEL…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--task", type=click.Choice(TASKS), required=True, help="What is probed.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", required=True, help="What to probe with.")
@click.option("--test", type=click.Path(path_type=Path), metavar="FILE", help=TEST)
@click.option("--static", type=click.Path(path_type=Path), metavar="FILE", help=STATIC)
@click.option("--vectors", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep the vectors for next time.")
@click.option("--json", "file", type=click.Path(path_type=Path), metavar="FILE", help="Write all figures to FILE.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with pictures to FILE.")
@click.option("--scores", type=click.Path(path_type=Path), metavar="FILE", help=SCORES)
@click.option("--pairs", type=click.IntRange(min=1), metavar="N", help=PAIRS)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of splits and samples.")
@click.option("--checkpoint", default="best", show_default=True, help="Of a run: best, newest, or a step.")
@click.option("--start", type=click.Choice(["auto", "zero", "primed"]), default="auto", help=START)
def probe(
    targets: tuple[Path, ...],
    task: str,
    data: Path,
    test: Path | None,
    static: Path | None,
    vectors: Path | None,
    file: Path | None,
    html: Path | None,
    scores: Path | None,
    pairs: int | None,
    seed: int,
    checkpoint: str,
    start: Literal["auto", "zero", "primed"],
) -> None:
    """What each layer of a model knows, beside what it must beat."""
    check_paths(targets)
    from pretrain.probe import probe
    from pretrain.probing.tasks import Inputs
    from pretrain.probing.verdict import verdicts

    for written in (file, html):
        if written is not None and written.is_dir():
            raise ConfigError(f"{written}: a folder: name a file to write")
        if written is not None:
            written.parent.mkdir(parents=True, exist_ok=True)  # now, and not after all is computed
    inputs = Inputs(data, test, static=static, scores=scores, pairs=pairs, seed=seed)
    outcome = probe(targets, task, inputs, checkpoint, vectors, start=start)
    click.echo("\n".join([*outcome.lines(), *(f"verdict: {sentence}" for sentence in verdicts(outcome))]))
    if file is not None:
        file.write_text(json.dumps(outcome.values(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if html is not None:
        from pretrain.probing.page import page

        html.write_text(page([outcome]), encoding="utf-8")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; by default RUN/export.")
@click.option("--to", type=click.Choice(["transformers", "bilm"]), help="Format; by default the family's own.")
@click.option("--checkpoint", default="best", show_default=True, help="best, newest, or a step.")
@click.option("--license", default="unknown", show_default=True, help="For the model card.")
@click.option("--token-embeddings", is_flag=True, help="Add the file of each word's token layer (bilm).")
def export(run: Path, out: Path | None, to: str | None, checkpoint: str, license: str, token_embeddings: bool) -> None:
    """Write a checkpoint of RUN as a model folder that the field reads."""
    check_paths([run])
    from pretrain.export import export

    click.echo(f"model folder: {export(run, out, to, checkpoint, license, token_embeddings=token_embeddings)}")


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("pretrain-demo"), show_default=True)
def demo(folder: Path) -> None:
    """Both families on two ranks, from Python's documentation to word vectors, in minutes."""
    click.echo(DEMO_TAKES)
    from pretrain.demo import demo

    demo(folder, click.echo)


@main.command()
@CONFIG
@OVERRIDES
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Timed steps.")
@click.option(
    "--compiled-baselines", is_flag=True, help="Time torch.compile's baselines too; compiling takes a minute or more."
)
@click.option("--json", "file", type=click.Path(path_type=Path), metavar="FILE", help="Write all numbers to FILE.")
def bench(config: str, overrides: tuple[str, ...], steps: int, compiled_baselines: bool, file: Path | None) -> None:
    """Time the training steps of CONFIG in one process, beside those of baselines: tokens/s, FLOP/s, memory."""
    from pretrain.bench import bench
    from pretrain.config.load import load_config

    result = bench(load_config(config, overrides), steps, compiled=compiled_baselines)
    click.echo("\n".join(result.lines()))
    if file is not None:
        file.write_text(json.dumps(result.values(), indent=1) + "\n", encoding="utf-8")


@main.command("config")
@CONFIG
@OVERRIDES
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), metavar="TOKENS_PER_SECOND", help=SPEED)
@click.option("--bench", type=click.Path(path_type=Path), metavar="FILE", help="What `pretrain bench --json` wrote.")
def show_config(config: str, overrides: tuple[str, ...], speed: float | None, bench: Path | None) -> None:
    """Print the resolved run of CONFIG, and what it takes: memory, passes over the corpus, time."""
    from pretrain.config.load import dump_config, load_config
    from pretrain.plan import plan

    run = load_config(config, overrides)
    numbers, known_speed = plan(run, speed, bench)
    click.echo(dump_config(run), nl=False)
    for line in numbers.lines(known_speed):
        click.echo(f"# {line}")


@main.command()
@click.argument("model", metavar="MODEL|RUN", type=click.Path(path_type=Path))
@click.argument("input", type=str)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write (.hdf5).")
@click.option("--layers", default="all", show_default=True, help="`all`, or layers by number, such as -1 or 0,2.")
@click.option("--output", type=click.Choice(["words", "pieces", "sentence"]), default="words", show_default=True)
@click.option("--split", is_flag=True, help="Lines are words separated by white space: take them as they are.")
@click.option("--long", type=click.Choice(["error", "split", "truncate", "skip"]), default="error", help=LONG)
@click.option("--encoding", default="utf-8", show_default=True, help="Of INPUT, such as latin-1.")
@click.option("--checkpoint", default="best", show_default=True, help="Of a run: best, newest, or a step.")
@click.option("--start", type=click.Choice(["auto", "zero", "primed"]), default="auto", help=START)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Texts at a time.")
def embed(
    model: Path,
    input: str,
    out: Path,
    layers: str,
    output: Literal["words", "pieces", "sentence"],
    split: bool,
    long: Literal["error", "split", "truncate", "skip"],
    encoding: str,
    checkpoint: str,
    start: Literal["auto", "zero", "primed"],
    batch_size: int,
) -> None:
    """Turn the lines of INPUT (a file, or - for standard input) into vectors of MODEL, a model folder or a run.

    After an error, Ctrl-C or SIGTERM, the lines done are kept in a file that ends in .partial.
    """
    from pretrain.embed import embed, parse_layers

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    count = embed(
        model,
        input,
        out,
        layers=parse_layers(layers),
        output=output,
        is_split_into_words=split,
        long=long,
        batch_size=batch_size,
        checkpoint=checkpoint,
        encoding=encoding,
        start=start,
    )
    click.echo(f"{count:,} texts in {out}")
