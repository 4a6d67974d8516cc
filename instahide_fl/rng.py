"""Randomness: named seeded streams for simulation, the operating system otherwise.

Every function that needs randomness takes a `numpy.random.Generator`. Where it comes
from decides what it may protect:

- `stream(seed, ...)` repeats a simulation bit for bit. Whoever knows the seed knows
  every key drawn from it, so it protects nothing.
- `operating_system_stream()` and `keyed_stream(secret, ...)` are ChaCha20 streams under
  a 256-bit key from the operating system: what a real client draws its keys from.

A torch generator is never used for keys: on CPU it takes only 32 bits of seed.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TypeAlias

import numpy as np

StreamName: TypeAlias = str | int


def _digest(*parts: StreamName) -> bytes:
    # repr keeps ("ab", "c") apart from ("a", "bc"), and 1 apart from "1".
    return hashlib.sha256(repr(parts).encode()).digest()


def stream(seed: int, *names: StreamName) -> np.random.Generator:
    """Return the seeded stream of this name, for simulation only.

    Streams of different names are independent, and a stream does not depend on which
    others were opened before it: results do not change with the order of work.

    Args:
        seed: The experiment's seed.
        names: The name of the stream, for instance `("client", "3", 17)`.
    """
    entropy = np.frombuffer(_digest(seed, *names), np.uint32)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def client_stream(seed: int, client: str, round_number: int) -> np.random.Generator:
    """Return the stream of a simulated client's batches and keys in a round."""
    return stream(seed, "client", client, round_number)


def fixed_stream(seed: int, client: str, number: int) -> np.random.Generator:
    """Return the stream of a simulated client's keys in one set of fixed encodings."""
    return stream(seed, "fixed-encodings", client, number)


def torch_seed(seed: int, *names: StreamName) -> int:
    """Return a seed in 0..2**63-1 for a torch generator (model initialisation)."""
    return int.from_bytes(_digest(seed, "torch", *names)[:8], "little") >> 1


def new_secret() -> bytes:
    """Return 32 bytes from the operating system's generator."""
    return secrets.token_bytes(32)


def keyed_stream(secret: bytes, *names: StreamName) -> np.random.Generator:
    """Return a ChaCha20 stream that only the holder of `secret` can repeat.

    Args:
        secret: The 32 bytes from `new_secret`.
        names: The name of the stream.

    Raises:
        ValueError: the secret is not 32 bytes long.
    """
    if len(secret) != 32:
        raise ValueError(f"a stream's secret has 32 bytes, got {len(secret)}")
    # Imported here: simulations and the pure mathematics do not need it.
    from randomgen import ChaCha

    key = int.from_bytes(hashlib.sha256(secret + _digest(*names)).digest(), "little")
    return np.random.Generator(ChaCha(key=key, rounds=20))


def operating_system_stream() -> np.random.Generator:
    """Return a ChaCha20 stream under a fresh 256-bit key that is stored nowhere."""
    return keyed_stream(new_secret())


def is_cryptographic(rng: np.random.Generator) -> bool:
    """Tell whether keys drawn from `rng` cannot be found by searching seeds."""
    return type(rng.bit_generator).__name__ == "ChaCha"
