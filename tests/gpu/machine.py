"""The machine and the versions, as JSON."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tests.gpu import DRY

PACKAGES = [
    "torch", "triton", "lightning", "deepspeed", "pydantic", "click", "datasets", "pyarrow", "sentencex", "tokenizers",
    "safetensors", "h5py", "filelock", "matplotlib", "numpy", "transformers", "pytest", "pytest-timeout",
]  # fmt: skip


def machine() -> dict[str, Any]:
    """Device, libraries below torch, and versions; None for a package that is missing."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            print(f"missing: {package}")
    found: dict[str, Any] = {"python": sys.version, "platform": platform.platform(), "versions": versions}
    found |= {"gpus": torch.cuda.device_count(), "cpus": torch.get_num_threads(), "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory": properties.total_memory, "nccl": torch.cuda.nccl.version()}
    return found


def main() -> None:
    """Writes the file named first; fails where there is no GPU and none is not meant."""
    found = machine()
    text = json.dumps(found, indent=1)
    print(text)
    Path(sys.argv[1]).write_text(text, encoding="utf-8")
    sys.exit(0 if found["gpus"] or DRY else 1)


if __name__ == "__main__":
    main()
