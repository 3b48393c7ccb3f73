"""What every test shares: an offline environment, and real corpora and fixtures where they are present."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

SHARED = Path(os.environ.get("PRETRAIN_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Path of a file or folder of the shared corpora; skips, saying why, where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} of the shared data (set PRETRAIN_SHARED_DATA); not found in {SHARED}")
        return path

    return find
