"""The machine and the moment: ranks, logging, seeds, the run folder, throughput."""
