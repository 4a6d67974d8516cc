from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from instahide_fl.attacks.decode_encodings import DecodeEncodings
from instahide_fl.attacks.decoding.mixtures import Mixtures
from instahide_fl.attacks.decoding.registration import positions, registered_decode
from instahide_fl.attacks.registered_decoding import RegisteredDecoding
from instahide_fl.config import Config, EncoderConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.metrics.registration import registered_ssim
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.view import AdversaryView, KnownMapping, Observation
from instahide_fl.types import AppliedAugmentation, EncodingKey, PrivateSplit

SMALL = Augmentation(padding=2, flip=True)
MIXUP = EncoderConfig(method="mixup", scope="inside", num_mixed=2)


def smooth_split(rng, count, side=16):
    noise = rng.standard_normal((count, 3, side, side))
    noise = gaussian_filter(noise + 2 * noise[:, :1], (0, 0, 1, 1))
    noise /= 4 * noise.std((1, 2, 3), keepdims=True)
    images = ((noise + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    return PrivateSplit(torch.from_numpy(images), torch.arange(count) % 5, 5)


def encoded(rng, split, times, config, augmentation):
    encoder = build_encoder(config, None, augmentation)
    every = torch.arange(len(split))
    rounds = [encoder.encode(every, split, rng) for _ in range(times)]
    key = EncodingKey.concatenate([key for _, key in rounds])
    return torch.cat([batch.images for batch, _ in rounds]), key


def similarity(images, split, rows=slice(None)):
    shown = split.statistics.restore(images).clamp(0, 1)
    originals = split.images[rows].float() / 255
    return float(registered_ssim(shown, originals, max_shift=0).mean())


def test_positions_are_what_augmentation_does(rng):
    images = torch.from_numpy(rng.integers(0, 256, (1, 3, 16, 16), np.uint8))
    pixels = torch.cat([images.flatten(2), torch.zeros(1, 3, 1, dtype=torch.uint8)], 2)
    found = {
        tuple(pixels[0, :, torch.from_numpy(one)].flatten().tolist())
        for one in positions(SMALL, 16, 16)
    }
    drawn = [
        AppliedAugmentation(torch.tensor([[down, right]]), torch.tensor([flip]))
        for down in range(5)
        for right in range(5)
        for flip in (False, True)
    ]
    done = {tuple(SMALL.apply(images, one).flatten().tolist()) for one in drawn}
    assert found == done


def test_crops_and_mirroring_do_not_protect_mixtures(rng):
    split = smooth_split(rng, 8)
    images, key = encoded(rng, split, 20, MIXUP, SMALL)
    given = Mixtures(images, key.private_index, key.coefficients, len(split))
    found = registered_decode(given, split.statistics, SMALL, False, rng, 12)
    decoded = found.images
    assert similarity(decoded, split) > 0.8


def test_without_augmentation_it_decodes_like_any_decoder(rng):
    split = smooth_split(rng, 8)
    still = Augmentation()
    config = EncoderConfig(method="mixup", scope="inside", num_mixed=2)
    images, key = encoded(rng, split, 10, config, None)
    given = Mixtures(images, key.private_index, key.coefficients, len(split))
    found = registered_decode(given, split.statistics, still, False, rng, 12)
    decoded, best = found.images, found.positions
    assert similarity(decoded, split) > 0.95
    assert best.unique().tolist() == [0]


def test_the_attack_undoes_what_the_plain_decoder_cannot(rng):
    split = smooth_split(rng, 8)
    config = Config(instahide=MIXUP)
    augmentation = Augmentation(padding=2, flip=True)  # an eighth of 16 pixels
    images, key = encoded(rng, split, 15, MIXUP, augmentation)
    mapping = KnownMapping(key.private_index, key.coefficients)
    seen = Observation(1, "0", 0, 1.0, "gradient", encodings=images, mapping=mapping)
    view = AdversaryView(
        threat_model("auditor-of-encodings"),
        config,
        split.statistics,
        (3, 16, 16),
        5,
        (seen,),
        (),
        None,
    )
    reached = []
    for attack in (DecodeEncodings(), RegisteredDecoding(sweeps=12)):
        (found,) = attack.reconstruct(view, rng, lambda *_: None).recovered
        reached.append(similarity(found.images, split, found.rows))
    plain, registered = reached
    assert registered > plain + 0.2


def test_the_search_of_the_pool_undoes_augmentation_under_signs(rng):
    photographs = MixingPool.photos(16, 3).sample(1500)
    pool = MixingPool.from_images(photographs[:1490])
    split = PrivateSplit(photographs[1490:], torch.arange(10) % 5, 5)
    config = Config(instahide=EncoderConfig(scope="cross", num_mixed=4))
    encoder = build_encoder(config.instahide, pool, SMALL)
    every = torch.arange(len(split))
    rounds = [encoder.encode(every, split, rng) for _ in range(30)]
    key = EncodingKey.concatenate([key for _, key in rounds])
    images = torch.cat([batch.images for batch, _ in rounds])
    mapping = KnownMapping(key.private_index, key.coefficients)
    seen = Observation(1, "0", 0, 1.0, "gradient", encodings=images, mapping=mapping)
    view = AdversaryView(
        *(threat_model("auditor-of-encodings"), config, split.statistics),
        *((3, 16, 16), 5, (seen,), (), pool),
    )
    reached = {}
    for way in ("unknown", "searched"):
        attack = RegisteredDecoding(public_part=way, sweeps=12)
        (found,) = attack.reconstruct(view, rng, lambda *_: None).recovered
        reached[way] = similarity(found.images, split, found.rows)
    assert reached["searched"] > reached["unknown"] + 0.2


def test_nothing_to_decode_is_refused(rng):
    split = smooth_split(rng, 8)
    view = AdversaryView(
        threat_model("auditor-of-encodings"),
        Config(instahide=MIXUP),
        split.statistics,
        (3, 16, 16),
        5,
        (),
        (),
        None,
    )
    with pytest.raises(AttackError, match="no encodings to decode"):
        RegisteredDecoding().reconstruct(view, rng, lambda *_: None)


def test_a_mirrored_and_shifted_copy_is_recognised(rng):
    split = smooth_split(rng, 4)
    originals = split.images.float() / 255
    moved = torch.roll(originals.flip(3), (2, 1), (2, 3))
    assert float(registered_ssim(moved, originals, 4).min()) > 0.6
    assert float(registered_ssim(moved, originals, 0).max()) < 0.6
