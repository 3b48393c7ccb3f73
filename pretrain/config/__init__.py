"""A run as typed, frozen data; nothing here imports torch."""
