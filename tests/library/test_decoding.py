from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from instahide_fl.attacks.base import Recovered
from instahide_fl.attacks.decode_encodings import DecodeEncodings, decode_recovered
from instahide_fl.attacks.decoding.choice import choose_decoder
from instahide_fl.attacks.decoding.least_squares import folded_least_squares, ridge
from instahide_fl.attacks.decoding.mixtures import Mixtures, public_part
from instahide_fl.attacks.decoding.second_moments import second_moments
from instahide_fl.attacks.decoding.sign_coherence import coherent_signs
from instahide_fl.config import Config, EncoderConfig
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.view import AdversaryView, KnownMapping, Observation
from instahide_fl.types import EncodingKey, PrivateSplit


def smooth_split(rng, count, channels=3):
    """Blurred noise: as in natural images, neighbours and channels correlate."""
    noise = rng.standard_normal((count, channels, 12, 12))
    noise = gaussian_filter(noise + 2 * noise[:, :1], (0, 0, 2, 2))
    noise /= 4 * noise.std((1, 2, 3), keepdims=True)
    images = ((noise + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    targets = torch.arange(count) % 5
    return PrivateSplit(torch.from_numpy(images), targets, 5)


def encoded(split, rng, times, config, pool=None):
    encoder = build_encoder(config, pool)
    rounds = [
        encoder.encode(torch.arange(len(split)), split, rng) for _ in range(times)
    ]
    return [(batch.images, key) for batch, key in rounds]


def mixtures(split, rounds, **more):
    key = EncodingKey.concatenate([key for _, key in rounds])
    images = torch.cat([images for images, _ in rounds])
    return Mixtures(images, key.private_index, key.coefficients, len(split), **more)


def truth(split):
    return split.statistics.normalise(split.images)


def error(images, split):
    """Root mean square, for the better of x and -x; an unknown image has 1."""
    return min(
        float((sign * images - truth(split)).square().mean().sqrt()) for sign in (1, -1)
    )


def view(split, config, observations, pool=None):
    return AdversaryView(
        threat_model("auditor-of-encodings"),
        Config(instahide=config),
        split.statistics,
        tuple(split.images.shape[1:]),
        split.num_classes,
        tuple(observations),
        (),
        pool,
    )


def observe(rounds):
    return [
        Observation(
            number + 1,
            "0",
            0,
            1.0,
            "gradient",
            encodings=images,
            mapping=KnownMapping(key.private_index, key.coefficients, key.public_index),
        )
        for number, (images, key) in enumerate(rounds)
    ]


def attack(seen, rng, **settings):
    return DecodeEncodings(**settings).reconstruct(seen, rng, lambda *_: None)


INSIDE = EncoderConfig(scope="inside")
MIXUP = EncoderConfig(method="mixup", scope="inside")
CROSS = EncoderConfig(scope="cross", num_mixed=4)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixtures_without_signs_are_solved_exactly(rng, channels):
    split = smooth_split(rng, 10, channels)
    assert error(ridge(mixtures(split, encoded(split, rng, 4, MIXUP))), split) < 1e-2


def test_three_encodings_of_each_image_are_enough_inside(rng):
    split = smooth_split(rng, 30)
    given = mixtures(split, encoded(split, rng, 3, INSIDE))
    assert error(second_moments(given, rng), split) < 0.1


@pytest.mark.parametrize("channels", [1, 3])
def test_signs_hide_nothing_but_one_global_sign(rng, channels):
    split = smooth_split(rng, 20, channels)
    given = mixtures(split, encoded(split, rng, 12, INSIDE))
    assert error(second_moments(given, rng), split) < 1e-2


def test_public_images_hide_little_and_known_ones_less(rng):
    split = smooth_split(rng, 20)
    public = smooth_split(rng, 200).images
    pool = MixingPool.from_images(public)
    rounds = encoded(split, rng, 25, CROSS, pool)

    assert error(second_moments(mixtures(split, rounds), rng), split) < 0.3

    key = EncodingKey.concatenate([key for _, key in rounds])
    images = pool.statistics.normalise(pool.images)
    part = public_part(images, key.public_index, key.coefficients)
    given = mixtures(split, rounds, public=part)
    images = folded_least_squares(given)
    assert float((images - truth(split)).square().mean().sqrt()) < 0.05


def test_public_images_told_to_the_auditor_are_taken_off(rng):
    split = smooth_split(rng, 20)
    pool = MixingPool.from_images(smooth_split(rng, 200).images)
    seen = view(split, CROSS, observe(encoded(split, rng, 10, CROSS, pool)), pool)
    (recovered,) = attack(seen, rng, public_part="known").recovered
    assert recovered.diagnostics["public_part_known"] == 1
    # The known part fixes the sign as well: no better of two here.
    difference = recovered.images - truth(split)[recovered.rows]
    assert float(difference.square().mean().sqrt()) < 0.12

    with pytest.raises(AttackError, match="which the threat model"):
        attack(replace(seen, pool=None), rng, public_part="known")


def test_neighbours_tell_the_signs_of_pixels(rng):
    images = truth(smooth_split(rng, 30))
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], images.shape[1:])).float()
    found = coherent_signs(images * signs) * signs
    assert abs(float(found.mean())) == 1


def test_the_choice_follows_the_signs_and_the_number_of_encodings(rng):
    split = smooth_split(rng, 10)
    many = mixtures(split, encoded(split, rng, 6, INSIDE))
    few = mixtures(split, encoded(split, rng, 1, INSIDE))
    assert choose_decoder(many, flipped=False) == "ridge"
    assert choose_decoder(many, flipped=True) == "second-moments"
    assert choose_decoder(few, flipped=True) == "folded-least-squares"


def test_rounds_are_joined_and_repeated_encodings_count_once(rng):
    split = smooth_split(rng, 20)
    rounds = encoded(split, rng, 12, INSIDE)
    seen = view(split, INSIDE, observe(rounds + rounds[:5]))
    (recovered,) = attack(seen, rng).recovered
    assert recovered.diagnostics["encodings_per_image"] == 12
    assert recovered.rows.tolist() == list(range(20))
    assert error(recovered.images, split) < 1e-2


def test_rows_name_the_images_where_some_were_never_mixed(rng):
    split = smooth_split(rng, 20)
    rounds = [
        build_encoder(MIXUP).encode(torch.tensor([17, 3, 8, 11]), split, rng)
        for _ in range(12)
    ]
    seen = view(split, MIXUP, observe([(b.images, key) for b, key in rounds]))
    (recovered,) = attack(seen, rng).recovered
    difference = recovered.images - truth(split)[recovered.rows]
    assert difference.square().mean().sqrt() < 1e-2


def test_without_hiding_the_encodings_are_the_images(rng):
    split = smooth_split(rng, 6)
    config = EncoderConfig(method="none", scope="inside", num_mixed=1)
    (recovered,) = attack(
        view(split, config, observe(encoded(split, rng, 2, config))), rng
    ).recovered
    torch.testing.assert_close(recovered.images, truth(split)[recovered.rows])


def test_recovered_encodings_are_decoded_like_given_ones(rng):
    split = smooth_split(rng, 20)
    rounds = encoded(split, rng, 12, INSIDE)
    seen = view(split, INSIDE, observe(rounds))
    given = [Recovered("0", i + 1, images) for i, (images, _) in enumerate(rounds)]
    (recovered,) = decode_recovered(
        given, seen, DecodeEncodings(), rng, lambda *_: None
    ).recovered
    assert error(recovered.images, split) < 1e-2


@pytest.mark.parametrize(
    ("lost", "message"), [("mapping", "which private images"), ("image", "in order")]
)
def test_recovered_encodings_without_their_mapping_are_refused(rng, lost, message):
    split = smooth_split(rng, 6)
    rounds = encoded(split, rng, 1, INSIDE)
    seen = view(split, INSIDE, observe(rounds) if lost == "image" else ())
    images = rounds[0][0][: -1 if lost == "image" else None]
    with pytest.raises(AttackError, match=message):
        decode_recovered(
            [Recovered("0", 1, images)], seen, DecodeEncodings(), rng, lambda *_: None
        )


def test_what_does_not_apply_is_refused(rng):
    split = smooth_split(rng, 6)
    seen = view(split, INSIDE, observe(encoded(split, rng, 1, INSIDE)))
    with pytest.raises(AttackError, match="ignores signs"):
        attack(seen, rng, decoder="ridge")
    with pytest.raises(AttackError, match="no encodings to decode"):
        attack(view(split, INSIDE, ()), rng)
