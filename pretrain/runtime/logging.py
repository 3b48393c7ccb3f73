"""Logging, set up by the command line and never on import."""

import logging
import os
import sys
import warnings

NOISY = (
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "DeepSpeed",
    "datasets",
    "fsspec",
    "filelock",
    "torch",
    "wandb",
)


def set_up_logging() -> None:
    """Rank 0 from INFO, the other ranks from WARNING and prefixed with their rank, to stderr."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    prefix = f"[rank {rank}] " if size > 1 and rank > 0 else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    level = logging.INFO
    logging.getLogger("pretrain").setLevel(level if rank == 0 else logging.WARNING)


def quiet_libraries() -> None:
    """Only warnings from the libraries we train with; to be called after they are imported, which sets their levels."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ours are meant to be given to ZeRO; the suite tests them there.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "untested optimizer" not in record.getMessage())


def ignore_known_warnings() -> None:
    """Third parties' warnings that we have read and cannot act on, each with its reason."""
    known = [
        # torch's nested tensors, which packs are read with where `compute.attention` is `nested`, may change.
        (r".*The PyTorch API of nested tensors is in prototype stage.*", r".*"),
        # DeepSpeed calls deprecated collectives of torch.
        (
            r".*(reduce_scatter_tensor|_reduce_scatter_base|all_gather_into_tensor|_all_gather_base).*deprecated.*",
            r".*",
        ),
        # Lightning uses torch's old pytree names.
        (r".*LeafSpec.*is deprecated.*", r".*"),
        # Lightning wants many loader workers; ours is one command-line option and often best at 0.
        (r".*does not have many workers.*", r"lightning.*"),
        # Lightning is told the device by us.
        (r".*(GPU available but not used|TPU|`isinstance\(treespec, LeafSpec\)`).*", r".*"),
        # ZeRO's first backward sets up hooks on leaves.
        (r".*Full backward hook is firing when gradients are computed with respect to module outputs.*", r".*"),
    ]
    for message, module in known:
        warnings.filterwarnings("ignore", message=message, module=module)
