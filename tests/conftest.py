"""What every test shares: an offline environment, a small corpus, and real corpora and fixtures where they are."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; threads that wait for each other make a busy machine crawl

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in its background jobs, and so would ours

REPOSITORY = Path(__file__).parents[1]
SHARED = Path(os.environ.get("PRETRAIN_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Path of a file or folder of the shared corpora; skips, saying why, where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} of the shared data (set PRETRAIN_SHARED_DATA); not found in {SHARED}")
        return path

    return find


def write_corpus(path: Path, documents: int, seed: int = 7) -> Path:
    """Documents of made-up words, separated by blank lines; the next word depends on the last, so models can learn."""
    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(200)]
    texts = []
    for _ in range(documents):
        sentences = []
        for _ in range(int(rng.integers(4, 16))):
            word = int(rng.zipf(1.5)) % len(words)
            chosen = []
            for _ in range(int(rng.integers(3, 18))):
                chosen.append(words[word])
                word = (word * 3 + int(rng.integers(0, 4))) % len(words)
            sentences.append(" ".join(chosen).capitalize() + ".")
        texts.append(" ".join(sentences))
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 300 short documents."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.txt", 300)
