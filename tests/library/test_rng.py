from __future__ import annotations

import numpy as np

from instahide_fl.rng import (
    is_cryptographic,
    keyed_stream,
    new_secret,
    operating_system_stream,
    stream,
)


def test_streams_repeat_by_name_and_differ_between_names():
    draws = {
        name: stream(*name).bytes(16)
        for name in [(0, "a", 1), (1, "a", 1), (0, "a1"), (0, "a", "1"), (0, "b", 1)]
    }
    assert len(set(draws.values())) == len(draws)
    assert stream(0, "a", 1).bytes(16) == draws[(0, "a", 1)]


def test_seeds_beyond_32_bits_count():
    assert stream(5, "x").bytes(8) != stream(5 + 2**32, "x").bytes(8)


def test_real_clients_draw_from_a_cipher_that_only_the_secret_repeats():
    secret = new_secret()
    first = keyed_stream(secret, "t", 3)
    assert is_cryptographic(first)
    assert first.bytes(16) == keyed_stream(secret, "t", 3).bytes(16)
    assert keyed_stream(secret, "t", 4).bytes(16) != keyed_stream(secret, 3).bytes(16)
    assert operating_system_stream().bytes(16) != operating_system_stream().bytes(16)
    assert is_cryptographic(operating_system_stream())
    assert not is_cryptographic(stream(0, "x"))


def test_global_seeds_do_not_reach_key_streams():
    np.random.seed(0)  # noqa: NPY002
    one = operating_system_stream().bytes(16)
    np.random.seed(0)  # noqa: NPY002
    assert operating_system_stream().bytes(16) != one
