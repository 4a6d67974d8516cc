from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide_fl.config import EncoderConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import FixedEncodings, build_encoder
from instahide_fl.errors import ConfigError, PoolError
from instahide_fl.rng import stream
from instahide_fl.types import PrivateSplit


def reference(key, split, pool, encoder):
    """The definition, one image at a time."""
    augmentation = encoder.augmentation
    private = key.private_index.shape[1]
    images, targets = [], []
    for b in range(len(key)):
        mixed = torch.zeros(split.images.shape[1:])
        target = torch.zeros(split.num_classes)
        for j, row in enumerate(key.private_index[b].tolist()):
            image = split.images[row]
            if augmentation is not None:
                top, left = key.augmentation.offset[b * private + j].tolist()
                pad = augmentation.padding
                height, width = image.shape[1:]
                padded = torch.zeros(len(image), height + 2 * pad, width + 2 * pad)
                padded[:, pad : pad + height, pad : pad + width] = image
                image = padded[:, top : top + height, left : left + width]
                if key.augmentation.flip[b * private + j]:
                    image = image.flip(2)
            mean = torch.tensor(split.statistics.mean).view(-1, 1, 1)
            std = torch.tensor(split.statistics.std).view(-1, 1, 1)
            mixed += key.coefficients[b, j] * ((image / 255 - mean) / std)
            target[split.targets[row]] += key.coefficients[b, j]
        for j, row in enumerate(key.public_index[b].tolist()):
            mean = torch.tensor(pool.statistics.mean).view(-1, 1, 1)
            std = torch.tensor(pool.statistics.std).view(-1, 1, 1)
            public = (pool.images[row] / 255 - mean) / std
            mixed += key.coefficients[b, private + j] * public
        images.append(key.signs[b] * mixed)
        targets.append(target)
    return torch.stack(images), torch.stack(targets)


@pytest.mark.parametrize("augmentation", [None, Augmentation(2, flip=True)])
@pytest.mark.parametrize("method", ["none", "mixup", "instahide"])
@pytest.mark.parametrize("scope", ["inside", "cross"])
def test_an_encoding_is_what_its_key_says(
    method, scope, augmentation, split, pool, rng
):
    config = EncoderConfig(method=method, scope=scope, num_mixed=5)
    encoder = build_encoder(config, pool, augmentation)
    batch, key = encoder.encode(torch.tensor([3, 0, 19, 3]), split, rng)
    images, targets = reference(key, split, pool, encoder)
    torch.testing.assert_close(batch.images, images)
    torch.testing.assert_close(batch.soft_targets, targets)
    assert key.private_index[:, 0].tolist() == [3, 0, 19, 3]
    assert (key.signs == 1).all() == (method != "instahide")
    weight = key.coefficients[:, : key.private_index.shape[1]].sum(dim=1)
    torch.testing.assert_close(batch.soft_targets.sum(dim=1), weight)


@given(
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(3, 9), st.integers(3, 9)),
    mixed=st.integers(2, 6),
    scope=st.sampled_from(["inside", "cross"]),
    padding=st.sampled_from([None, 0, 1, 2]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_the_compiled_loop_and_tensor_operations_agree(
    shape, mixed, scope, padding, seed
):
    rng = np.random.default_rng(seed)
    draw = lambda *size: torch.from_numpy(rng.integers(0, 256, size, dtype=np.uint8))  # noqa: E731
    everyone = PrivateSplit(draw(30, *shape), torch.arange(30) % 4, 4)
    split = everyone.subset(torch.from_numpy(rng.permutation(30)[:9]))
    pool = MixingPool.from_images(draw(11, *shape))
    augmentation = None if padding is None else Augmentation(padding, flip=True)
    config = EncoderConfig(num_mixed=mixed, scope=scope)
    encoder = build_encoder(config, pool, augmentation)
    batch, key = encoder.encode(torch.tensor([8, 0, 0, 5]), split, rng)
    torch.testing.assert_close(batch.images, encoder._mix(key, split))
    own = PrivateSplit(everyone.images[split.rows], everyone.targets[split.rows], 4)
    alone = encoder.apply_key(key, own.normalised_with(split.statistics))
    assert torch.equal(alone.images, batch.images)
    assert torch.equal(alone.soft_targets, batch.soft_targets)


def test_threads_do_not_change_a_bit(split, pool, rng):
    encoder = build_encoder(EncoderConfig(), pool)
    key = encoder.draw_key(torch.arange(20).repeat(40), split, rng)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(encoder.apply_key(key, split).images)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_encodes_as_the_cpu_does(split, pool, rng):
    encoder = build_encoder(EncoderConfig(), pool, Augmentation(1, flip=True))
    key = encoder.draw_key(torch.arange(20), split, rng)
    there = encoder.apply_key(key, split.to("cuda"))
    here = encoder.apply_key(key, split)
    torch.testing.assert_close(there.images.cpu(), here.images)
    torch.testing.assert_close(there.soft_targets.cpu(), here.soft_targets)


def test_images_of_an_encoding_are_distinct_and_the_whole_pool_is_used(
    split, pool, rng
):
    encoder = build_encoder(EncoderConfig(num_mixed=6), pool)
    _, key = encoder.encode(torch.arange(20).repeat(50), split, rng)
    for private, public in zip(key.private_index, key.public_index, strict=True):
        assert len(private.unique()) == 2
        assert len(public.unique()) == 4
    assert len(key.public_index.unique()) == len(pool)
    assert len(key.private_index[:, 1].unique()) == len(split)


def test_keys_are_fresh_at_every_use(split, pool, rng):
    encoder = build_encoder(EncoderConfig(), pool)
    index = torch.zeros(2, dtype=torch.int64)
    first, _ = encoder.encode(index, split, rng)
    second, _ = encoder.encode(index, split, rng)
    assert not torch.equal(first.images[0], first.images[1])
    assert not torch.equal(first.images, second.images)


def test_fixed_encodings_are_t_and_no_more(split, pool, rng):
    encoder = build_encoder(EncoderConfig(), pool, Augmentation(1, flip=True))
    fixed = FixedEncodings(encoder, 3, lambda which: stream(0, "fixed", which))
    seen = {
        fixed.encode(torch.tensor([7, 2]), split, rng)[0].images[0].numpy().tobytes()
        for _ in range(60)
    }
    assert len(seen) == 3


def test_encoders_refuse_what_cannot_be_mixed(split, pool, rng):
    with pytest.raises(ConfigError, match="a pool is needed"):
        build_encoder(EncoderConfig())
    inside = build_encoder(EncoderConfig(scope="inside", num_mixed=21))
    with pytest.raises(ConfigError, match="has only 20"):
        inside.encode(torch.tensor([0]), split, rng)
    config = EncoderConfig(num_mixed=33, min_private_weight=0)
    cross = build_encoder(config, pool)
    with pytest.raises(PoolError, match="31 distinct public images"):
        cross.encode(torch.tensor([0]), split, rng)
