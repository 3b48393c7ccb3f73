"""Vectors out of model folders; neither Lightning nor DeepSpeed."""
