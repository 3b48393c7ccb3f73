"""`python -m pretrain` is `pretrain`."""

from pretrain.cli import main

main()
