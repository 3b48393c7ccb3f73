"""The machine and the moment: ranks, files, signals, threads, logging, seeds, timing; knows no run."""
