"""What the vectors of a model know: probes of frozen vectors, minimal pairs, geometry."""
