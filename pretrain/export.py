"""`pretrain export`: a run's checkpoint as a model folder that the field reads."""

import os
import shutil
from pathlib import Path

from pretrain.config.load import dump_config
from pretrain.data.documents import describe
from pretrain.errors import ConfigError, ExportError
from pretrain.models import FAMILIES, get_family
from pretrain.probing.evidence import card_section, read_evidence
from pretrain.runs.folder import RunFolder
from pretrain.runs.trained import Trained, is_run, read_trained


def export(
    run: Path,
    out: Path | None = None,
    to: str | None = None,
    checkpoint: str = "best",
    license: str = "unknown",
    *,
    token_embeddings: bool = False,
) -> Path:
    """Writes a checkpoint (`best`, `newest` or a step) of `run` to `out` (by default the run's `export`), with a card.

    With `token_embeddings`, also the token layer of every word of the vocabulary. Raises ExportError where `out`
    exists: nothing is overwritten; ConfigError where `run` is no run folder, or where `to` is not the family's format,
    or has no place for those.
    """
    _check_run(run)
    trained = read_trained(run, checkpoint)
    family = get_family(trained.config.model.kind)
    if to is not None and to != family.format.name:
        raise ConfigError(f"--to {to}: a run of model.kind {family.kind} is exported as {family.format.name}")
    if token_embeddings and family.format.write_token_embeddings is None:
        raise ConfigError(f"--token-embeddings: {family.format.name} has no file for them (model.kind {family.kind})")
    out = out or RunFolder(run).export
    if out.exists():
        raise ExportError(f"{out}: exists already; nothing is overwritten: give another --out, or remove it")
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        family.format.write(temporary, trained.folder)
        if token_embeddings and family.format.write_token_embeddings is not None:
            family.format.write_token_embeddings(temporary, trained.folder)
        (temporary / "README.md").write_text(card(trained, out.name, RunFolder(run), license), encoding="utf-8")
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _check_run(run: Path) -> None:
    """Raises ConfigError where a path does not exist, or is a model folder already."""
    if not run.exists():
        raise ConfigError(f"{run}: no such folder")
    if not is_run(run) and any(get_family(kind).format.recognises(run) for kind in FAMILIES):
        raise ConfigError(f"{run}: RUN must be a run folder: this is a model folder already")


def card(trained: Trained, name: str, run: RunFolder, license: str) -> str:
    """The model card: what was trained on what, for how long, how well it does, how to load it."""
    config = trained.config
    family = get_family(config.model.kind)
    sources = "\n".join(f"* {describe(source)} (weight {source.weight:g})" for source in config.public().data.sources)
    figures = [line for line in run.read_metrics() if line["step"] == trained.step and "held_out_loss" in line]
    held_out = "\n".join(
        f"* {key.removeprefix('held_out_').replace('_', ' ')}: {value:.4f}"
        for key, value in (figures[-1].items() if figures else ())
        if key.startswith("held_out")
    )
    return f"""---
license: {license}
library_name: {family.format.name}
tags: [{family.kind}, pretrain]
---
# {config.name}

{family.kind} pretrained by the run `{config.name}`, {trained.step:,} of {config.schedule.total_steps:,} steps of
{config.batch.global_size:,} examples; {config.parameters(_vocabulary(trained)):,} parameters.

## Data

{sources}

## Held-out text

{held_out or "* nothing was held out"}

## Probes

{card_section(read_evidence(run, trained.path))}

## Use

```python
from pretrain import Embedder

vectors = Embedder.load("{name}").encode(["One text.", "Another."])
```

## Config

```yaml
{dump_config(config.public())}```
"""


def _vocabulary(trained: Trained) -> int:
    assert trained.folder.tokenizer is not None
    return trained.folder.tokenizer.vocabulary_size
