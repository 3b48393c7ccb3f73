"""Where a run's metrics go: metrics.jsonl, which is the truth about it, the console, and Weights & Biases."""

import contextlib
import json
import logging
import netrc
import os
import secrets
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from tqdm import tqdm

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.runtime.files import write_atomically

log = logging.getLogger(__name__)

SERVER_SECONDS = 5.0
"""How long W&B's server may take to answer before a run begins."""

WandbMode = Literal["offline", "online", "off"]
WANDB_MODES: dict[str, WandbMode] = {"offline": "offline", "dryrun": "offline", "disabled": "off"}
"""What `WANDB_MODE` may ask for that keeps more at home than the config does."""


class Sink(Protocol):
    """A place for lines of metrics."""

    def log(self, line: dict[str, Any]) -> None:
        """Takes a line: `step`, and numbers by name; None where one is not known."""

    def close(self) -> None:
        """Finishes writing."""


def open_sinks(config: RunConfig, folder: Path, start: int, stop: int, *, fresh: bool) -> list[Sink]:
    """Where the metrics of the steps from `start` to `stop` go, on rank 0; a `fresh` run is a new one in W&B, too."""
    sinks: list[Sink] = [MetricsFile(folder / "metrics.jsonl"), Console(config.name, start, stop)]
    mode = wandb_mode(config)
    return sinks if mode == "off" else [*sinks, WandbRun(config, folder, mode, fresh=fresh)]


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; lines that are no JSON, as one that a kill cut short, are left out."""
    if not file.exists():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


class MetricsFile:
    """metrics.jsonl, appended to line by line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line, all at once."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Nothing is left to do."""


class Console:
    """One line per logging interval with fixed columns, or a progress bar on a terminal."""

    def __init__(self, name: str, start: int, stop: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty() or os.environ.get("PRETRAIN_PROGRESS") == "bar":
            self._bar = tqdm(total=stop, initial=start, desc=name, unit="step", dynamic_ncols=True)
        else:
            log.info("%8s %9s %10s %12s %9s", "step", "loss", "lr", "tokens/s", "held-out")

    def log(self, line: dict[str, Any]) -> None:
        """Shows a line."""
        if "loss" not in line:
            self._show_figures(line)
            return
        held_out = f"{line['held_out_loss']:9.4f}" if "held_out_loss" in line else ""
        loss = "" if line["loss"] is None else f"{line['loss']:.4f}"
        if self._bar is not None:
            shown = {"loss": loss, "tokens/s": f"{line['tokens_per_second']:,.0f}"}
            self._bar.set_postfix(shown | ({"held-out": held_out.strip()} if held_out else {}), refresh=False)
            self._bar.update(line["step"] - self._bar.n)
        else:
            rate, lr = line["tokens_per_second"], line["learning_rate"]
            log.info("%8d %9s %10.3e %12s %9s", line["step"], loss, lr, f"{rate:,.0f}", held_out)

    def _show_figures(self, line: dict[str, Any]) -> None:
        """Those of probes, without columns of their own."""
        figures = "  ".join(f"{name} {value:.3f}" for name, value in line.items() if name.startswith("probe_"))
        if self._bar is not None:
            self._bar.write(f"step {line['step']}: {figures}", file=sys.stderr)
        else:
            log.info("%8d %s", line["step"], figures)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def wandb_mode(config: RunConfig) -> WandbMode:
    """Whether the run is watched in W&B, and where: as the config says, or as `WANDB_MODE` where that is stricter."""
    asked, order = config.logging.wandb, ("online", "offline", "off")
    said = WANDB_MODES.get(os.environ.get("WANDB_MODE", ""), asked)
    return max(asked, said, key=order.index)


def check_wandb(config: RunConfig) -> None:
    """Raises ConfigError where a run is to be watched online and cannot be: before anything else is done."""
    said = os.environ.get("WANDB_MODE", "")
    if said and said not in {*WANDB_MODES, "online", "shared"} and config.logging.wandb != "off":
        raise ConfigError(f"WANDB_MODE is {said!r}: give online, offline or disabled, or unset it")
    if wandb_mode(config) != "online":
        return
    import wandb

    advice = "or keep the run here with logging.wandb=offline, and send it later with `wandb sync`"
    settings = wandb.Settings()
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    server = str(settings.base_url).rstrip("/")
    if not (settings.api_key or _stored_key(server)):
        raise ConfigError(f"logging.wandb is online, and there is no key for {server}: run `wandb login`, {advice}")
    try:
        urllib.request.urlopen(server, timeout=SERVER_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(
            f"logging.wandb is online, and {server} does not answer ({reason}): try later, {advice}"
        ) from None


def _stored_key(server: str) -> str | None:
    """The key that `wandb login` stored for a server."""
    for name in filter(None, (os.environ.get("NETRC"), str(Path.home() / ".netrc"), str(Path.home() / "_netrc"))):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if (found := netrc.netrc(name).authenticators(urlsplit(server).hostname or "")) is not None:
                return found[2]
    return None


class WandbRun:
    """The run in Weights & Biases; every start goes on with the same run id."""

    def __init__(self, config: RunConfig, folder: Path, mode: WandbMode, *, fresh: bool) -> None:
        import wandb

        identity = folder / "wandb" / "run_id"
        identity.parent.mkdir(exist_ok=True)
        if fresh or not identity.exists():
            write_atomically(identity, secrets.token_hex(4) + "\n")
        try:
            self._run = wandb.init(
                project=config.logging.wandb_project,
                entity=config.logging.wandb_entity,
                name=config.name,
                id=identity.read_text(encoding="utf-8").strip(),
                resume="allow" if mode == "online" else None,
                mode="online" if mode == "online" else "offline",
                dir=str(folder),
                config=config.public().model_dump(mode="json"),
                # metadata would hold the command line, and with it the secrets of URLs
                settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
            )
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"logging.wandb is {mode}: {line}") from None

    def log(self, line: dict[str, Any]) -> None:
        """Logs a line at its step."""
        self._run.log({key: value for key, value in line.items() if value is not None}, step=line["step"])

    def close(self) -> None:
        """Finishes writing."""
        self._run.finish()
