"""Random numbers as pure functions of a key, so that nothing random has a state to save."""

import hashlib

import numpy as np

Key = int | str


def seed_of(*key: Key) -> int:
    """A 63-bit seed of a key, the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: Key) -> np.random.Generator:
    """A fresh generator of a key; equal keys give equal numbers."""
    return np.random.Generator(np.random.PCG64(seed_of(*key)))
