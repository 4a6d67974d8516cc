"""Exposures: each distinct encoding counts once for every private image in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide_fl.config import EncoderConfig
from instahide_fl.encoding.encoder import FixedEncodings, build_encoder
from instahide_fl.encoding.exposures import CountingEncoder, Exposures
from instahide_fl.errors import ConfigError


def counted(config, split, pool=None, passes=1, rows=None):
    """Encode all open images some times, and return the counters and the keys."""
    exposures = Exposures.zeros(len(split), config)
    rows = torch.arange(len(split)) if rows is None else rows
    encoder = build_encoder(config, pool)
    if config.refresh != "epoch":
        encoder = FixedEncodings(encoder, config.refresh, np.random.default_rng)
    encoder = CountingEncoder(encoder, exposures, rows)
    rng = np.random.default_rng(0)
    keys = [
        encoder.encode(torch.arange(len(rows)), split.subset(rows), rng)[1]
        for _ in range(passes)
    ]
    return exposures, keys


@pytest.mark.parametrize("method", ["none", "mixup", "instahide"])
def test_own_and_partner_slots_count_alike(method, split):
    config = EncoderConfig(method=method, scope="inside", num_mixed=4)
    exposures, keys = counted(config, split, passes=3)
    slots = torch.cat([key.private_index.flatten() for key in keys])
    assert torch.equal(exposures.counts, torch.bincount(slots, minlength=20))
    assert exposures.summary(0)["exposures_mean"] == (3 if method == "none" else 12)


def test_fixed_encodings_count_once_however_often_they_are_sent(split, pool):
    config = EncoderConfig(num_mixed=4, refresh=2)
    exposures, keys = counted(config, split, pool, passes=30)
    assert {key.repeat for key in keys} == {0, 1}
    # Two encodings of each of the 20 images, with two private images each.
    assert exposures.counts.sum() == 2 * 20 * 2
    distinct = {
        (key.repeat, int(row[0]), *row.tolist())
        for key in keys
        for row in key.private_index
    }
    slots = torch.tensor([row for _, _, *pair in distinct for row in pair])
    assert torch.equal(exposures.counts, torch.bincount(slots, minlength=20))


def test_images_left_out_are_not_encoded_and_rows_stay_those_of_the_client(split, pool):
    rows = torch.tensor([3, 4, 11, 19])
    exposures, keys = counted(EncoderConfig(num_mixed=4), split, pool, 5, rows)
    assert torch.equal(exposures.counts.nonzero()[:, 0], rows)
    assert torch.equal(keys[0].private_index[:, 0], rows)


def test_a_limit_is_held_against_every_image(split):
    exposures = Exposures(torch.tensor([0, 4, 5, 6]), torch.zeros(0, 4))
    assert exposures.below(5).tolist() == [0, 1]
    assert exposures.below(0).tolist() == [0, 1, 2, 3]
    assert exposures.beyond(5) == 1
    assert exposures.beyond(0) == 0


def test_stopping_fixed_encodings_is_refused():
    EncoderConfig(refresh=3, max_exposures=5)
    with pytest.raises(ConfigError, match="exposure-action"):
        EncoderConfig(refresh=3, max_exposures=5, exposure_action="stop")
