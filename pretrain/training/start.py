"""What a start goes on from: decided once, by rank 0, and seen alike by every rank."""

import hashlib
import json
import logging
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus, open_corpus, source_weights
from pretrain.errors import CheckpointError, PretrainError
from pretrain.runs.checkpoints import ResumePoint, find_resume_point, sha256
from pretrain.runs.folder import RunFolder
from pretrain.runtime.collectives import from_rank_0, gather_objects, join_ranks
from pretrain.runtime.threads import set_threads
from pretrain.runtime.world import World
from pretrain.training.trainer import rank_device

log = logging.getLogger(__name__)

SHARED_SECONDS = 10.0
"""How long a rank waits for a file that rank 0 wrote: caches of network file systems may be some seconds old."""


@dataclass(frozen=True)
class _Decision:
    """Rank 0's, for all."""

    resume: ResumePoint | None
    corpus_url: str
    corpus_identity: str
    options: str
    """A hash of what decides the result."""
    nonce: str
    threads: int | None
    """Of the run's last start, where it was on as many ranks."""


def agree_on_start(
    config: RunConfig, world: World, ready_corpus: Callable[[], PreparedCorpus]
) -> tuple[PreparedCorpus, ResumePoint | None]:
    """The corpus and the checkpoint that all ranks go on from; all ranks call it together.

    Rank 0 calls `ready_corpus`, finds and verifies the checkpoint, and writes a nonce into the run folder; the others
    check that they see the same. Raises, on all ranks alike, CheckpointError where one does not, or what rank 0 raised.
    """
    device = rank_device(world)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # before anything else touches CUDA
    join_ranks(world.size, device)
    folder = RunFolder(config.folder)
    decision = from_rank_0(lambda: _decide(config, folder, ready_corpus(), world.size))
    if device.type == "cpu":
        before = decision.threads if decision.resume else None
        if (line := set_threads(config.compute.threads, world.local_size, before)) is not None:
            log.info("%s", line)
    corpus, problem = None, None
    try:
        corpus = _see(config, folder, decision)
    except (PretrainError, OSError) as error:
        problem = f"rank {world.rank} on {socket.gethostname()}: {error}"
    problems = [said for said in gather_objects(problem) if said]
    if world.rank == 0:
        _nonce_file(folder, decision.nonce).unlink(missing_ok=True)
    if problems or corpus is None:
        raise CheckpointError("\n".join(problems))
    return corpus, decision.resume


def _decide(config: RunConfig, folder: RunFolder, corpus: PreparedCorpus, ranks: int) -> _Decision:
    resume = find_resume_point(folder.checkpoints)
    if resume is not None and resume.state.corpus != corpus.identity:
        raise CheckpointError(
            f"{resume.checkpoint}: trained on the corpus {resume.state.corpus}; {corpus.url} holds {corpus.identity}: "
            "its text or its vocabulary has changed since: restore it, or give the run another name"
        )
    if resume is None and folder.metrics_file.exists():
        log.info("%s: nothing was saved by an earlier start: starting over", folder.path)
    nonce = secrets.token_hex(8)
    folder.path.mkdir(parents=True, exist_ok=True)
    _nonce_file(folder, nonce).write_text(nonce, encoding="ascii")
    last = folder.last_start()
    return _Decision(
        resume=resume,
        corpus_url=corpus.absolute,
        corpus_identity=corpus.identity,
        options=_hash_options(config),
        nonce=nonce,
        threads=_threads_of(last) if last and last.get("ranks") == ranks else None,
    )


def _threads_of(start: dict[str, Any]) -> int | None:
    """The threads that a start took by itself."""
    return start.get("threads") if start.get("how", {}).get("compute", {}).get("threads") == "auto" else None


def _see(config: RunConfig, folder: RunFolder, decision: _Decision) -> PreparedCorpus:
    """The corpus; raises where this rank does not see what rank 0 does."""
    if _hash_options(config) != decision.options:
        raise CheckpointError(
            "its config differs from rank 0's in what decides the result: start all hosts with the same one"
        )
    nonce = _nonce_file(folder, decision.nonce)
    if not _appears(nonce):
        raise CheckpointError(
            f"{folder.path.absolute()}: not the folder that rank 0 writes to: run_root must be on a file system that "
            "all hosts share"
        )
    if decision.resume is not None:
        marker = decision.resume.checkpoint / "complete.json"
        if not _appears(marker) or sha256(marker) != decision.resume.checksum:
            raise CheckpointError(f"{decision.resume.checkpoint}: not the checkpoint that rank 0 resumes from")
    corpus = open_corpus(decision.corpus_url, source_weights(config.data))
    if corpus.identity != decision.corpus_identity:
        raise CheckpointError(
            f"{corpus.url}: the corpus {corpus.identity}, rank 0 trains on {decision.corpus_identity}: the prepared "
            "text must be on a file system that all hosts share"
        )
    return corpus


def _nonce_file(folder: RunFolder, nonce: str) -> Path:
    return folder.path / f".start-{nonce}"


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + SHARED_SECONDS
    while not path.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _hash_options(config: RunConfig) -> str:
    text = json.dumps(config.result_options(), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
