"""A user's mistake is one line that names it, exit code 2, and nothing overwritten; a bug keeps its traceback."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pretrain.cli import main
from pretrain.config.load import load_config
from pretrain.data.prepare import find_prepared, prepared_url
from pretrain.errors import PretrainError
from pretrain.export import export
from pretrain.train import train
from tests.conftest import write_corpus
from tests.tiny import REPOSITORY, clean_environment, run_cli, tiny_config, tiny_overrides

CONFIG = str(REPOSITORY / "configs" / "bert" / "demo.yaml")
ONE = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=2", "checkpoint.every_steps=1"]


def call(*arguments: str | Path) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def problems(result: Result) -> list[str]:
    """The lines of a user's mistake."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines, result.stderr
    assert len(lines) == len(set(lines))
    return [line.removeprefix("error: ") for line in lines]


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Everything in a folder, with its time of writing."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of two steps with two checkpoints, and its overrides."""
    root = tmp_path_factory.mktemp("trained")
    overrides = tiny_overrides("bert", corpus, root, *ONE, "name=run")
    return train(tiny_config("bert", corpus, root, *ONE, "name=run")).folder, overrides


@pytest.fixture
def run(trained: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(trained[0], tmp_path / "run", symlinks=True))


CONFIG_MISTAKES: list[tuple[list[str], list[str]]] = [
    (["batch.global_sise=16"], ["batch.global_sise"]),
    (["batch.global_size=many"], ["batch.global_size", "many"]),
    (["batch.global_size=12"], ["batch.global_size (12)", "data.lanes (8)"]),
    (["sharding.ranks=3"], ["data.lanes (8)", "ranks (3)"]),
    (["model.num_heads=5"], ["hidden_size (32)", "num_heads (5)"]),
    (["tokenizer.kind=words"], ["tokenizer.kind is words", "model.kind bert"]),
    (["nonsense"], ["nonsense", "section.option=value"]),
]


@pytest.mark.parametrize(("wrong", "named"), CONFIG_MISTAKES, ids=lambda value: value[0])
def test_a_wrong_config(wrong: list[str], named: list[str], corpus: Path, tmp_path: Path) -> None:
    found = problems(call("train", CONFIG, *tiny_overrides("bert", corpus, tmp_path / "runs", *wrong)))
    assert all(any(name in line for line in found) for name in named), found
    assert not (tmp_path / "runs").exists(), "nothing was made"


def test_every_problem_at_once(corpus: Path, tmp_path: Path) -> None:
    wrong = ["batch.micro_sise=1", "optimizer.beta1=2", "schedule.total_steps=0"]
    found = problems(call("train", CONFIG, *tiny_overrides("bert", corpus, tmp_path, *wrong)))
    for key in ("batch.micro_sise", "optimizer.beta1", "schedule.total_steps"):
        assert sum(key in line for line in found) == 1


@pytest.mark.parametrize("verb", ["train", "prepare", "config"])
def test_no_such_config(verb: str) -> None:
    (line,) = problems(call(verb, "nowhere.yaml"))
    assert line.startswith(
        f"nowhere.yaml: no such config file in {Path.cwd()}, nor among the shipped ones; shipped are "
    )


def spoilt(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, ["source.txt"]), (b"", ["source.txt"]), (b" \n\n", ["source.txt"]), (b"Good.\n\n\xff\xfe\n", ["line 3"])],
    ids=["missing", "empty", "blank", "undecodable"],
)
def test_text_that_cannot_be_read(content: bytes | None, named: list[str], tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    if content is not None:
        spoilt(source, content)
    (found,) = problems(call("train", CONFIG, *tiny_overrides("bert", source, tmp_path / "runs", *ONE)))
    assert str(source) in found and all(name in found for name in named), found
    assert not (tmp_path / "runs" / "bert-demo" / "config.yaml").exists()


def test_a_folder_of_another_run(trained: tuple[Path, list[str]]) -> None:
    folder, overrides = trained
    before = files(folder)
    found = problems(call("train", CONFIG, *overrides, "seed=9", "model.num_heads=4"))
    assert f"{folder}: seed was 1 when this run began, now it is 9" in found
    assert f"{folder}: model.num_heads was 2 when this run began, now it is 4" in found
    assert files(folder) == before


def test_a_folder_that_is_no_run(corpus: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "bert-demo" / "thesis.tex"
    stranger.parent.mkdir()
    stranger.write_text("dear", encoding="utf-8")
    (found,) = problems(call("train", CONFIG, *tiny_overrides("bert", corpus, tmp_path, *ONE)))
    assert str(stranger.parent) in found and "thesis.tex" in found
    assert list(stranger.parent.iterdir()) == [stranger]
    for verb in ("evaluate", "export"):
        (found,) = problems(call(verb, stranger.parent))
        assert str(stranger.parent) in found


def test_a_place_that_cannot_be_written(corpus: Path, tmp_path: Path) -> None:
    blocked = spoilt(tmp_path / "file", b"")
    (found,) = problems(call("train", CONFIG, *tiny_overrides("bert", corpus, blocked / "runs", *ONE)))
    assert str(blocked) in found and "Not a directory" in found


def test_all_checkpoints_cut_short(run: Path) -> None:
    tensors = sorted(run.glob("checkpoints/step-*/tensors-0-of-1.safetensors"))
    assert len(tensors) == 2
    for path in tensors:
        path.write_bytes(path.read_bytes()[:100])
    before = files(run)
    for command in (["evaluate", run, "--checkpoint", "newest"], ["export", run, "--checkpoint", "newest"]):
        found = problems(call(*command))
        assert [line.split(": ")[0] for line in found] == [*map(str, reversed(tensors)), str(run / "checkpoints")]
        assert all("damaged" in line for line in found[:2])
    assert any(str(tensors[0]) in line for line in problems(call("export", run, "--checkpoint", "1")))
    assert files(run) == before


def test_training_on_from_checkpoints_cut_short(run: Path, corpus: Path) -> None:
    for marker in run.glob("checkpoints/step-*/complete.json"):
        marker.unlink()
    before = files(run)
    found = problems(call("train", CONFIG, *tiny_overrides("bert", corpus, run.parent, *ONE, "name=run")))
    assert sum("cut short: no complete.json" in line for line in found) == 2
    assert "no complete checkpoint is left" in found[-1]
    assert files(run) == before


@pytest.mark.parametrize("verb", ["evaluate", "export"])
@pytest.mark.parametrize(("which", "says"), [("7", "there are 1, 2"), ("last", "expected best, newest or the number")])
def test_no_such_checkpoint(verb: str, which: str, says: str, run: Path) -> None:
    (found,) = problems(call(verb, run, "--checkpoint", which))
    assert which in found and says in found


def test_an_export_overwrites_nothing(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (found,) = problems(call("export", run, "--out", out))
    assert str(out) in found and "nothing is overwritten" in found
    assert not list(out.iterdir())
    (found,) = problems(call("export", run, "--to", "bilm"))
    assert "--to bilm" in found and "exported as transformers" in found
    assert not (run / "export").exists()


def test_models_that_are_none(run: Path, tmp_path: Path) -> None:
    sentences = spoilt(tmp_path / "sentences.txt", b"One.\n")
    (tmp_path / "empty").mkdir()
    (found,) = problems(call("embed", tmp_path / "empty", sentences, "--out", tmp_path / "x.hdf5"))
    assert str(tmp_path / "empty") in found
    assert not (tmp_path / "x.hdf5").exists()
    (found,) = problems(call("evaluate", tmp_path / "empty"))
    assert "is not a model folder" in found and "nor is it a run folder" in found
    (found,) = problems(call("evaluate", tmp_path / "nowhere"))
    assert f"{tmp_path / 'nowhere'}: no such folder" in found
    model = export(run, tmp_path / "model")
    (found,) = problems(call("evaluate", model))
    assert str(model) in found and "give --data" in found


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("x.txt", None, "x.txt"), ("x.docx", b"a", "unknown kind of file"), ("x.txt", b"\xff\n", "x.txt")],
    ids=["missing", "kind", "undecodable"],
)
def test_evaluating_files_that_cannot_be_read(
    name: str, content: bytes | None, says: str, run: Path, tmp_path: Path
) -> None:
    if content is not None:
        spoilt(tmp_path / name, content)
    (found,) = problems(call("evaluate", run, "--data", tmp_path / name))
    assert says in found and str(tmp_path / name) in found


def raising(error: Exception) -> Callable[..., None]:
    def verb(*_: object, **__: object) -> None:
        raise error

    return verb


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyError("bug"), FileNotFoundError(2, "No such file", "ours"), ModuleNotFoundError(name="torch")):
        monkeypatch.setattr("pretrain.evaluate.evaluate", raising(error))
        result = call("evaluate", REPOSITORY)
        assert result.exception is error, "click's runner catches what python would show with its traceback"
        assert result.exit_code == 1


def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ModuleNotFoundError("No module named 'lightning.pytorch'", name="lightning.pytorch")
    monkeypatch.setattr("pretrain.evaluate.evaluate", raising(missing))
    assert problems(call("evaluate", REPOSITORY)) == ["this needs lightning.pytorch: pip install 'pretrain[train]'"]


def test_one_line_per_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.evaluate.evaluate", raising(PretrainError("one\ntwo")))
    assert problems(call("evaluate", REPOSITORY)) == ["one", "two"]


def test_rank_0_speaks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank leaves it to rank 0 to name what all ranks met, and speaks where it is left alive."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("pretrain.evaluate.evaluate", raising(PretrainError("only here")))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert problems(call("evaluate", REPOSITORY)) == ["only here"]
    assert len(slept) == 1 and slept[0] >= 5


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = run_cli("export", str(tmp_path), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}: not a run folder: no config.yaml\n"


def test_every_command_has_help() -> None:
    assert isinstance(main, click.Group) and main.commands
    for name in main.commands:
        result = call(name, "--help")
        assert result.exit_code == 0 and "Usage:" in result.stdout


BEFORE_TORCH = """
import sys
from pretrain.cli import main
from pretrain.config.load import load_config
from pretrain.data.prepare import find_prepared, prepared_url
try:
    main(sys.argv[1:])
finally:
    print([package for package in ("torch", "lightning", "datasets") if package in sys.modules])
"""


def problems_before_torch(*arguments: str | Path) -> list[str]:
    """The lines of a mistake, in a process of its own that imported nothing heavy before it said them."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_TORCH, *map(str, arguments)],
        cwd=REPOSITORY,
        env=clean_environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == "[]\n", done.stderr
    return [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_a_mistake_is_told_before_anything_heavy_is_imported(
    trained: tuple[Path, list[str]], corpus: Path, tmp_path: Path
) -> None:
    """Importing takes seconds, of Lightning many; what is wrong with a config or a path needs none of it."""
    run, overrides = trained
    found = problems_before_torch("train", CONFIG, *overrides, "seed=9")
    assert found[0] == f"{run}: seed was 1 when this run began, now it is 9"
    missing = tiny_overrides("bert", tmp_path / "no.txt", tmp_path, *ONE)
    for verb in ("train", "prepare"):
        assert problems_before_torch(verb, CONFIG, *missing) == [f"{tmp_path / 'no.txt'}: no such file"]
        no_start = [*tiny_overrides("bert", corpus, tmp_path), "model.initialize_from=nowhere"]
        (line,) = problems_before_torch(verb, CONFIG, *no_start)
        assert line == f"model.initialize_from: nowhere: no such folder in {REPOSITORY}"
    for verb in ("evaluate", "export"):
        assert problems_before_torch(verb, "nowhere") == [f"nowhere: no such folder in {REPOSITORY}"]
    assert problems_before_torch("evaluate", run, "--data", tmp_path / "no.txt") == [
        f"{tmp_path / 'no.txt'}: no such file"
    ]


def test_a_second_start_is_refused_at_once(corpus: Path, tmp_path: Path) -> None:
    """While another process holds the run folder's lock, here a real one."""
    overrides = tiny_overrides("bert", corpus, tmp_path, *ONE, "name=run")
    hold = "import sys; from pathlib import Path; from pretrain.runs.folder import RunFolder\n"
    hold += "with RunFolder(Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        found = problems_before_torch("train", CONFIG, *overrides)
        holder.communicate()
    assert found == [f"{tmp_path / 'run'}: another process is training in this folder"]
    assert holder.returncode == 0


def comments(*arguments: str | Path) -> dict[str, str]:
    """What `pretrain config` says below the config, by what each line is about."""
    result = call("config", *arguments)
    assert result.exit_code == 0, result.output
    lines = [line.removeprefix("# ") for line in result.stdout.splitlines() if line.startswith("# ")]
    return dict(line.split(": ", 1) for line in lines)


def test_what_a_run_takes(trained: tuple[Path, list[str]], corpus: Path, tmp_path: Path) -> None:
    """Before and after the corpus is prepared and the run has begun; the time with a speed, and without."""
    new = tiny_overrides("bert", corpus, tmp_path, *ONE)
    before = comments(CONFIG, *new)
    assert list(before) == [
        "step", "run", "passes over the corpus", "parameters", "computation", "memory per rank", "time",
    ]  # fmt: skip
    assert before["passes over the corpus"] == "known once it is prepared: pretrain prepare CONFIG"
    assert before["time"].startswith("known once the speed is: ")
    assert "1.0 seconds" not in before["time"]
    assert comments(CONFIG, *new, "--speed", "0.5")["time"] == "about 68 minutes at 0 tokens/s (--speed)"

    run, overrides = trained
    prepared = find_prepared(load_config(CONFIG, overrides))
    assert prepared is not None
    begun = comments(CONFIG, *overrides)
    passes = 2 * 32 * 32 / prepared.training[0].counts["tokens"]
    assert begun["passes over the corpus"] == f"about {passes:.2g}"
    assert begun["parameters"].endswith(", with a vocabulary of 200")
    assert f"({run / 'metrics.jsonl'}, all ranks); 0 seconds of it left after step 2" in begun["time"]


def test_the_time_of_a_run_by_a_bench(corpus: Path, tmp_path: Path) -> None:
    """One process was measured: several ranks are said to be each as fast; another model's speed is refused."""
    overrides = [*tiny_overrides("bert", corpus, tmp_path), "sharding.ranks=2", "schedule.total_steps=100"]
    config = load_config(CONFIG, overrides)
    step = {"flops_per_token": config.flops_per_token(200), "ours": {"tokens_per_second": 256.0}}
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"name": "bert-demo", "step": step}), encoding="utf-8")
    told = comments(CONFIG, *overrides, "--bench", file)["time"]  # 100 steps of 32 × 32 tokens
    assert told == f"about 3 minutes at 512 tokens/s ({file}, 2 ranks each as fast as the one measured)"
    (line,) = problems(call("config", CONFIG, *overrides, "model.hidden_size=256", "--bench", file))
    assert line.startswith(f"--bench {file}: measured bert-demo, whose tokens take ")
    (line,) = problems(call("config", CONFIG, *overrides, "--bench", file, "--speed", "1"))
    assert line == f"--speed 1 and --bench {file}: give one of them"
    file.write_text("{}", encoding="utf-8")
    assert problems(call("config", CONFIG, *overrides, "--bench", file)) == [
        f"--bench {file}: not what pretrain bench --json writes"
    ]
    (line,) = problems(call("config", CONFIG, *overrides, "--bench", tmp_path / "none.json"))
    assert line == f"--bench {tmp_path / 'none.json'}: cannot be read: No such file or directory"


def test_prepared_text_that_changed_is_no_reason_not_to_show_a_config(tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "text.txt", 60)
    overrides = tiny_overrides("bert", text, tmp_path, *ONE, "data.held_out=0")
    assert call("prepare", CONFIG, *overrides).exit_code == 0
    assert comments(CONFIG, *overrides)["passes over the corpus"].startswith("about ")
    text.write_text("Another text. It is short.\n", encoding="utf-8")
    result = call("config", CONFIG, *overrides)
    assert "# passes over the corpus: known once it is prepared" in result.stdout
    assert f"the prepared corpus cannot be used: {text}: changed " in result.stderr


def test_prepare_says_its_figures_once_and_its_warnings(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"This is document {number}." for number in range(200)) + "\n", encoding="utf-8")
    overrides = tiny_overrides("bert", text, tmp_path, "data.held_out=0", "tokenizer.vocabulary_size=101")
    for _ in range(2):  # made, and found
        result = call("prepare", CONFIG, *overrides)
        assert result.exit_code == 0, result.output
        figures, where = result.stdout.splitlines()
        assert figures.startswith("train text-0: 200 documents, ")
        assert where == f"prepared in {prepared_url(load_config(CONFIG, overrides))}"
        assert figures not in result.stderr
        assert "each of its 200 documents is one sentence" in result.stderr


def test_the_demo_says_beforehand_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.demo.demo", raising(PretrainError("not now")))
    result = call("demo")
    assert problems(result) == ["not now"]
    assert "in a few minutes on a laptop" in result.stdout


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted: what was not finished is made anew by the same command\n"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device: free some space; "),
        (OSError(28, "No space left on device", "a/b"), 2, "error: a/b: No space left on device\n"),
    ],
)
def test_what_ends_a_command_from_outside_is_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr("pretrain.config.load.load_config", interrupted)
    done = CliRunner().invoke(main, ["config", "configs/bert/demo.yaml"])
    assert done.exit_code == code
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
