"""Where metrics go: what W&B is told, and what is said where it cannot be reached."""

import socket
from pathlib import Path

import pytest

from pretrain.config.load import load_config
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.runs import metrics
from pretrain.runs.metrics import check_wandb, wandb_mode


def config(mode: str) -> RunConfig:
    return load_config("configs/bert/demo.yaml", [f"logging.wandb={mode}"])


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without keys and settings."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(metrics, "SERVER_SECONDS", 0.5)


@pytest.mark.parametrize(
    ("asked", "said", "expected"),
    [
        ("online", None, "online"),
        ("online", "online", "online"),
        ("online", "offline", "offline"),
        ("online", "disabled", "off"),
        ("offline", "online", "offline"),  # nothing leaves the machine by a variable alone
        ("offline", "disabled", "off"),
        ("off", "online", "off"),
    ],
)
def test_the_environment_may_keep_more_at_home(
    asked: str, said: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is not None:
        monkeypatch.setenv("WANDB_MODE", said)
    assert wandb_mode(config(asked)) == expected


def test_a_run_that_is_not_watched_online_needs_nothing() -> None:
    check_wandb(config("offline"))
    check_wandb(config("off"))


def test_online_without_a_key_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"^logging.wandb is online, and there is no key for http://127.0.0.1:9: run `wandb login`"
    ):
        check_wandb(config("online"))


@pytest.mark.parametrize("stored", ["variable", "netrc"])
def test_a_server_that_does_not_answer_is_one_line(
    stored: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether nobody listens there, or somebody who never answers."""
    if stored == "variable":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    else:
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login user password {'0' * 40}\n")
        (tmp_path / ".netrc").chmod(0o600)
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9 does not answer \(.*refused.*\): try later, or keep"):
        check_wandb(config("online"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ConfigError, match=r"does not answer \(.*timed out\)") as error:
            check_wandb(config("online"))
    assert "\n" not in str(error.value)


def test_a_mode_that_wandb_does_not_know_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "junk")
    with pytest.raises(ConfigError, match=r"^WANDB_MODE is 'junk': give online, offline or disabled, or unset it$"):
        check_wandb(config("offline"))
    check_wandb(config("off"))
