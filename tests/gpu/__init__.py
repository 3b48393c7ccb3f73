"""What only a machine with CUDA can prove: `tests/gpu/run.sh OUT` does it all."""

import os

DRY = os.environ.get("PRETRAIN_GPU_DRY") == "1"
"""Whether to do everything at tiny sizes, on whatever device there is."""
