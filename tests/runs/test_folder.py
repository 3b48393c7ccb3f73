"""The run folder: who may train in it, and what it remembers."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config.load import load_config
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.runs.checkpoints import checkpoint_name
from pretrain.runs.folder import RunFolder
from pretrain.runs.metrics import MetricsFile
from tests.tiny import REPOSITORY, clean_environment

Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """A function of overrides to a run below `tmp_path`."""
    return lambda *overrides: load_config("configs/bert/demo.yaml", [f"run_root={tmp_path}", *overrides])


def begun(config: RunConfig, step: int = 0, prepared: str = "s3://somewhere/prepared") -> RunFolder:
    """A run folder in which a start at `step` was made."""
    folder = RunFolder(config.folder)
    tokenizer = config.run_root / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "vocab.txt").write_text("[UNK]\n")
    folder.path.mkdir(exist_ok=True)
    folder.begin(config, step, fresh=step == 0, ranks=2, threads=1, prepared=prepared, tokenizer=tokenizer)
    return folder


def saved(folder: RunFolder, step: int) -> None:
    """As if a checkpoint were there."""
    (folder.checkpoints / checkpoint_name(step)).mkdir(parents=True)


def log(folder: RunFolder, **line: float) -> None:
    MetricsFile(folder.metrics_file).log(line)


def test_a_start_is_recorded(configure: Configure) -> None:
    config = configure("batch.micro_size=8")
    folder = begun(config)
    assert folder.read_config() == config
    assert folder.prepared() == "s3://somewhere/prepared"
    assert (folder.tokenizer / "vocab.txt").read_text() == "[UNK]\n"
    begun(configure("batch.micro_size=4"), step=3)
    first, second = map(json.loads, folder.starts_file.read_text().splitlines())
    assert (first["step"], first["ranks"], first["how"]["micro_size"]) == (0, 2, 8)
    assert (second["step"], second["how"]["micro_size"]) == (3, 4)
    assert {"python", "torch", "numpy"} <= first["versions"].keys()
    assert folder.read_config() == config  # a resumed run keeps the config that it began with


def test_metrics_of_steps_to_be_trained_again_are_dropped(configure: Configure) -> None:
    config = configure()
    folder = begun(config)
    for step in range(1, 8):
        log(folder, step=step, loss=1 / step)
    begun(config, step=4)
    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3, 4]
    log(folder, step=5, loss=float("nan"))
    assert folder.read_metrics()[-1]["loss"] != folder.read_metrics()[-1]["loss"]


def test_a_last_line_cut_by_a_kill_is_left_out(configure: Configure) -> None:
    config = configure()
    folder = begun(config)
    log(folder, step=1, loss=2.0)
    with folder.metrics_file.open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert folder.read_metrics() == [{"step": 1, "loss": 2.0}]
    begun(config, step=1)
    log(folder, step=2, loss=1.5)
    assert folder.read_metrics() == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]


def test_a_run_goes_on_only_with_the_options_it_began_with(configure: Configure) -> None:
    began = ("seed=1", "optimizer.peak_learning_rate=0.001")
    folder = begun(configure(*began))
    log(folder, step=1)
    folder.check(configure("seed=7"))  # nothing has been saved yet: it would start over
    saved(folder, 2)
    how = ("data.workers=2", "sharding.zero_stage=0", "batch.micro_size=4", "logging.wandb=off")
    folder.check(configure(*began, *how))
    with pytest.raises(ConfigError) as caught:
        folder.check(configure("seed=7", "optimizer.peak_learning_rate=0.1", "data.sources=[{kind: text, files: a}]"))
    lines = [line.removeprefix(f"{folder.path}: ") for line in str(caught.value).splitlines()]
    assert lines == [
        "source python_docs-0 was there when this run began, now it is not",
        "source text-0 was not there when this run began, now it is",
        "optimizer.peak_learning_rate was 0.001 when this run began, now it is 0.1",
        "seed was 1 when this run began, now it is 7",
        "give the run another name, or the options it began with",
    ]


def test_a_run_that_began_before_an_option_existed(tmp_path: Path) -> None:
    """It goes on as it began, and not with the default of new runs."""
    config = load_config("configs/elmo/demo.yaml", [f"run_root={tmp_path}", "objective.reset_probability=0"])
    folder = begun(config)
    saved(folder, 3)
    text = folder.config_file.read_text(encoding="utf-8")
    assert "  reset_probability: 0.0\n" in text
    folder.config_file.write_text(text.replace("  reset_probability: 0.0\n", ""), encoding="utf-8")
    assert folder.read_config() == load_config(folder.path) == config
    folder.check(config)
    default = load_config("configs/elmo/demo.yaml", [f"run_root={tmp_path}"])
    with pytest.raises(ConfigError, match=r"objective.reset_probability was 0.0 when this run began, now it is 0.3"):
        folder.check(default)


def test_a_longer_schedule_has_to_be_asked_for(configure: Configure) -> None:
    began = configure("schedule={total_steps: 100, warmup_steps: 10, decay: linear}")
    folder = begun(began)
    saved(folder, 100)
    longer = configure("schedule={total_steps: 300, warmup_steps: 10, decay: cosine}")
    with pytest.raises(ConfigError, match=r"schedule\.total_steps was 100 .* 300\n.*to train longer, add --extend"):
        folder.check(longer)
    folder.check(longer, extend=True)
    with pytest.raises(ConfigError, match=r"schedule.warmup_steps was 10 when this run began, now it is 20"):
        folder.check(configure("schedule={total_steps: 300, warmup_steps: 20, decay: linear}"), extend=True)
    with pytest.raises(ConfigError, match=r"schedule.total_steps was 100 when this run began, now it is 50"):
        folder.check(configure("schedule={total_steps: 50, warmup_steps: 10, decay: linear}"), extend=True)
    begun(longer, step=100)
    assert folder.read_config().schedule == longer.schedule
    start = folder.last_start()
    assert start is not None and start["schedule"]["was"]["total_steps"] == 100
    assert start["schedule"]["is"]["total_steps"] == 300
    folder.check(longer)  # from now on it is the run's own
    with pytest.raises(ConfigError, match="the run was extended to 300 steps, and this command has 100: give the"):
        folder.check(began)


def test_secrets_of_urls_stay_where_they_are(configure: Configure) -> None:
    """In no file of the run; and a new signature of the same file is no other run."""
    source = "data.sources=[{kind: text, files: 'https://me:pass@host/a.txt?Signature=%s&id=3'}]"
    config = configure(source % "abc")
    folder = begun(config)
    saved(folder, 1)
    for file in folder.path.rglob("*"):
        assert not file.is_file() or not {"pass", "abc"} & set(re.split(r"\W+", file.read_text())), file
    assert folder.read_config().data.sources[0].files == "https://host/a.txt?Signature=…&id=…"  # type: ignore[union-attr]
    folder.check(configure(source % "def"))
    with pytest.raises(ConfigError, match=r"b\.txt"):
        folder.check(configure(source.replace("a.txt", "b.txt") % "def"))


def test_a_moved_tree_finds_its_prepared_text(configure: Configure, tmp_path: Path) -> None:
    """Where it is below the run root; elsewhere it is where it was."""
    folder = begun(configure(), prepared=str(tmp_path / "prepared" / "abc"))
    assert folder.prepared() == str(tmp_path / "prepared" / "abc")
    assert not folder.prepared_file.read_text().startswith("/")
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    assert RunFolder(moved / folder.path.name).prepared() == str(moved / "prepared" / "abc")
    moved.rename(tmp_path)
    begun(configure(), prepared="/data/prepared")
    assert folder.prepared() == "/data/prepared"


def test_a_folder_of_something_else_is_refused(configure: Configure) -> None:
    config = configure()
    folder = RunFolder(config.folder)
    folder.check(config)  # not there yet
    folder.path.mkdir()
    (folder.path / ".lock").touch()
    folder.check(config)
    (folder.path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"not a run folder: it holds thesis\.tex and no config\.yaml"):
        folder.check(config)
    with pytest.raises(ConfigError, match=r"not a run folder: no config\.yaml"):
        folder.read_config()
    (folder.path / "thesis.tex").unlink()
    (folder.path / ".lock").unlink()
    folder.path.rmdir()
    folder.path.touch()
    with pytest.raises(ConfigError, match="not a folder"):
        folder.check(config)


def test_a_damaged_config_is_named(configure: Configure) -> None:
    folder = begun(configure())
    folder.config_file.write_text("seed: [")
    with pytest.raises(ConfigError, match=r"config\.yaml: not YAML"):
        folder.read_config()


def test_only_one_process_trains_in_a_folder(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.runs.folder.LOCK_SECONDS", 0.1)
    folder = RunFolder(configure().folder)
    code = (
        "import sys\nfrom pathlib import Path\nfrom pretrain.runs.folder import RunFolder\n"
        f"with RunFolder(Path({str(folder.path)!r})).lock():\n    print('locked', flush=True)\n    sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(CheckpointError, match="another process is training in this folder"), folder.lock():
            pass
        holder.kill()
    with folder.lock():  # a death frees it
        pass
    with pytest.raises(ValueError, match="inside"), folder.lock():
        raise ValueError("inside")
    with folder.lock():
        pass


def test_a_lock_lasts_as_long_as_the_last_process_of_the_run(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks inherit it: a start must not begin while those of a killed launcher still write."""
    monkeypatch.setattr("pretrain.runs.folder.LOCK_SECONDS", 0.1)
    folder = begun(configure())
    with folder.lock() as handle:
        rank = subprocess.Popen(["sleep", "60"], pass_fds=[handle])
    with rank:
        with pytest.raises(CheckpointError, match="another process is training in this folder"), folder.lock():
            pass
        rank.kill()
    with folder.lock():
        pass


def test_a_start_that_fails_early_leaves_nothing(configure: Configure) -> None:
    folder = RunFolder(configure().folder)
    with pytest.raises(ValueError, match="inside"), folder.lock():
        raise ValueError("inside")
    assert not folder.path.exists()
    begun(configure())
    with folder.lock():
        pass
    assert (folder.path / ".lock").exists(), "a run that has begun keeps its lock file"
