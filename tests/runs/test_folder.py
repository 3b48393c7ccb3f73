"""The run folder: who may train in it, and what it remembers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config.load import load_config
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.runtime.run_folder import RunFolder
from tests.runs import REPOSITORY, clean_environment

Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """A function of overrides to a run below `tmp_path`."""
    return lambda *overrides: load_config("configs/bert/demo.yaml", [f"run_root={tmp_path}", *overrides])


def begun(config: RunConfig, step: int = 0) -> RunFolder:
    folder = RunFolder(config.folder)
    folder.begin(config, step=step, ranks=2, prepared="somewhere/prepared")
    return folder


def test_a_start_is_recorded(configure: Configure) -> None:
    config = configure("batch.micro_size=8")
    folder = begun(config)
    assert folder.read_config() == config
    assert folder.prepared() == "somewhere/prepared"
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
        folder.log({"step": step, "loss": 1 / step})
    begun(config, step=4)
    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3, 4]
    folder.log({"step": 5, "loss": float("nan")})
    assert folder.read_metrics()[-1]["loss"] != folder.read_metrics()[-1]["loss"]


def test_a_last_line_cut_by_a_kill_is_left_out(configure: Configure) -> None:
    config = configure()
    folder = begun(config)
    folder.log({"step": 1, "loss": 2.0})
    with folder.metrics_file.open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert folder.read_metrics() == [{"step": 1, "loss": 2.0}]
    begun(config, step=1)
    folder.log({"step": 2, "loss": 1.5})
    assert folder.read_metrics() == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]


def test_a_run_goes_on_only_with_the_options_it_began_with(configure: Configure) -> None:
    began = ("seed=1", "optimizer.peak_learning_rate=0.001")
    folder = begun(configure(*began))
    folder.check(configure("seed=7"))  # nothing has been trained yet
    folder.log({"step": 1})
    how = ("data.workers=2", "sharding.zero_stage=0", "batch.micro_size=4", "logging.wandb=off")
    folder.check(configure(*began, *how))
    with pytest.raises(ConfigError) as caught:
        folder.check(configure("seed=7", "optimizer.peak_learning_rate=0.1", "data.sources=[{kind: text, files: a}]"))
    lines = [line.removeprefix(f"{folder.path}: ") for line in str(caught.value).splitlines()]
    assert lines[1:] == [
        "optimizer.peak_learning_rate was 0.001 when this run began, now it is 0.1",
        "seed was 1 when this run began, now it is 7",
        "give the run another name, or the options it began with",
    ]
    assert lines[0].startswith("data.sources was [{")
    assert "'python_docs'" in lines[0]
    assert "'text'" in lines[0]


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
    monkeypatch.setattr("pretrain.runtime.run_folder.LOCK_SECONDS", 0.1)
    folder = RunFolder(configure().folder)
    code = (
        "import sys\nfrom pathlib import Path\nfrom pretrain.runtime.run_folder import RunFolder\n"
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
