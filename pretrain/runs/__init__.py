"""What a run leaves on disk, found, verified, read and written; no Lightning, no DeepSpeed."""
