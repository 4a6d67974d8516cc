from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from instahide_fl.attacks.mixup_recovery.attack import MixupRecovery
from instahide_fl.attacks.mixup_recovery.independent_components import (
    span,
    sparse_mixing,
)
from instahide_fl.config import Config, EncoderConfig
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.metrics.matching import match_one_to_one
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import PrivateSplit

INSIDE = EncoderConfig(method="mixup", scope="inside", num_mixed=3)
CROSS = EncoderConfig(method="mixup", scope="cross", num_mixed=4)


def smooth_split(rng, count):
    noise = rng.standard_normal((count, 3, 12, 12))
    noise = gaussian_filter(noise + 2 * noise[:, :1], (0, 0, 1, 1))
    noise /= 4 * noise.std((1, 2, 3), keepdims=True)
    images = ((noise + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    return PrivateSplit(torch.from_numpy(images), torch.arange(count) % 5, 5)


def view(rng, split, times, config, pool=None):
    encoder = build_encoder(config, pool)
    batches = [
        encoder.encode(torch.arange(len(split)), split, rng)[0] for _ in range(times)
    ]
    return AdversaryView(
        threat_model("encodings-holder"),
        Config(instahide=config),
        split.statistics,
        tuple(split.images.shape[1:]),
        split.num_classes,
        tuple(
            Observation(
                number + 1,
                "0",
                0,
                1.0,
                "gradient",
                encodings=batch.images,
                soft_targets=batch.soft_targets,
            )
            for number, batch in enumerate(batches)
        ),
        (),
        pool,
    )


def attack(seen, rng, **settings):
    found = MixupRecovery(**settings).reconstruct(seen, rng, lambda *_: None)
    return found.recovered[0]


def errors(images, split):
    """Root mean square of each image, matched one to one; an unknown image has 1."""
    original = split.statistics.normalise(split.images)
    distance = (images[:, None] - original).square().mean((2, 3, 4)).sqrt()
    rows, columns = match_one_to_one(-distance)
    return distance[rows, columns]


def test_mixtures_alone_give_every_image_away_exactly(rng):
    split = smooth_split(rng, 30)
    found = attack(view(rng, split, 12, INSIDE), rng)
    assert found.rows is None
    assert len(found.images) == 30
    assert float(errors(found.images, split).max()) < 1e-2
    assert found.diagnostics["images_mixed"] == pytest.approx(3, abs=0.1)


def test_coefficients_are_found_whatever_the_images_are(rng):
    mixing = np.zeros((300, 20))
    for row in mixing:
        row[rng.permutation(20)[:3]] = rng.dirichlet(np.ones(3))
    images = rng.standard_normal((20, 64)).astype(np.float32)
    basis = span((mixing @ images).astype(np.float32))
    found = sparse_mixing(basis, 3, True, 0)
    distance = np.abs(found.T[:, None] - mixing.T).max(2)
    assert distance.min(0).max() < 1e-2


def test_public_images_do_not_hide_the_links(rng):
    split = smooth_split(rng, 20)
    pool = MixingPool.from_images(smooth_split(rng, 1500).images)
    found = attack(view(rng, split, 25, CROSS, pool), rng)
    error = errors(found.images, split)
    assert float(error.median()) < 0.3
    assert len(error) == 20


def test_signs_defeat_it(rng):
    config = EncoderConfig(scope="inside", num_mixed=3)
    split = smooth_split(rng, 30)
    found = attack(view(rng, split, 12, config), rng)
    best = torch.minimum(errors(found.images, split), errors(-found.images, split))
    assert float(best.mean()) > 0.5


def test_too_few_encodings_are_named_as_the_reason(rng):
    split = smooth_split(rng, 30)
    with pytest.raises(AttackError, match="not enough information"):
        attack(view(rng, split, 1, INSIDE), rng)
    with pytest.raises(AttackError, match="no encodings to attack"):
        attack(view(rng, split, 0, INSIDE), rng)
