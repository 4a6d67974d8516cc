"""Solve for private images, where the complete keys of encodings are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.decoding.mixtures import public_part
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.pool import MixingPool
from instahide_fl.types import ChannelStatistics, EncodingKey

MAX_ITERATIONS = 2000  # of LSMR; hundreds are usual
TOLERANCE = 1e-9


@dataclass(frozen=True)
class OpenedImages:
    """Private images of a client, solved from its encodings.

    Attributes:
        images: The images, normalised, f32[n,C,H,W].
        rows: Their numbers among the client's images, i64[n].
    """

    images: Tensor
    rows: Tensor


def open_encodings(
    encodings: Tensor,
    key: EncodingKey,
    statistics: ChannelStatistics,
    pool: MixingPool | None = None,
    augmentation: Augmentation | None = None,
) -> OpenedImages:
    """Solve for the private images; signs, crops and public images are in the key.

    The result is exact where there are as many independent encodings as images in them.
    What they leave open comes out close to the mean colour.

    Args:
        encodings: The encodings of one client, normalised, f32[E,C,H,W].
        key: The keys of the E encodings.
        statistics: The constants that private images are normalised with.
        pool: The public images, if the encodings mix any.
        augmentation: The augmentation that drew the key's crops and flips.
    """
    # Imported here: only this function needs it, and it takes a while.
    from scipy.sparse.linalg import lsmr

    mixed = encodings * key.signs
    if pool is not None and key.public_index.shape[1]:
        used, components = torch.unique(key.public_index, return_inverse=True)
        public = pool.statistics.normalise(pool.images[used])
        mixed = mixed - public_part(public, components, key.coefficients)
    rows, components = torch.unique(key.private_index, return_inverse=True)
    weights = key.coefficients[:, : components.shape[1]]
    system = _system(components, weights, len(rows), key, augmentation)
    mean, std = np.asarray(statistics.mean), np.asarray(statistics.std)
    total = weights.sum(1).double().numpy()[:, None]  # [E,1]
    channels, height, width = encodings.shape[1:]
    images = np.empty((len(rows), channels, height, width))
    for channel in range(channels):
        observed = mixed[:, channel].flatten(1).double().numpy()  # [E,H,W] -> [E,H*W]
        # In units of [0, 1], where black padding is 0 and adds nothing.
        observed = observed * std[channel] + mean[channel] * total
        # Start from the mean colour: pixels that no equation determines stay there.
        start = np.full(system.shape[1], mean[channel])
        residual = observed.ravel() - system @ start
        step = lsmr(
            system, residual, atol=TOLERANCE, btol=TOLERANCE, maxiter=MAX_ITERATIONS
        )[0]
        pixels = (start + step).clip(0, 1).reshape(-1, height, width)  # [n,H,W]
        images[:, channel] = (pixels - mean[channel]) / std[channel]
    return OpenedImages(torch.from_numpy(images).float(), rows)


def _system(
    components: Tensor,
    weights: Tensor,
    count: int,
    key: EncodingKey,
    augmentation: Augmentation | None,
) -> Any:
    """Return the matrix that maps private pixels to encoded ones, for any channel.

    Args:
        components: The numbers of the private images in each encoding, i64[E,p].
        weights: Their coefficients, f32[E,p].
        count: n, the number of private images.
        key: The keys, with crops and flips.
        augmentation: The augmentation that drew them.

    Returns:
        A sparse array of scipy, f64[E*H*W,n*H*W].
    """
    from scipy.sparse import csr_array

    total, private = components.shape
    _, height, width = key.image_shape
    size = height * width
    # Pixels are numbered from 1, so that padding, which is 0, can be told apart.
    numbers = torch.arange(1, size + 1).view(1, 1, height, width)
    source = numbers.expand(total * private, 1, height, width)  # a copy per image
    if augmentation is not None and key.augmentation is not None:
        source = augmentation.apply(source, key.augmentation)
    source = source.reshape(total, private, size)  # [E*p,1,H,W] -> [E,p,H*W]
    inside = source > 0
    column = components[:, :, None] * size + source - 1  # [E,p,H*W]
    row = (torch.arange(total)[:, None] * size + torch.arange(size))[:, None]
    values = (
        weights[:, :, None].expand_as(source)[inside].double()
    )  # [E,p,1] -> [E,p,H*W]
    positions = (row.expand_as(source)[inside].numpy(), column[inside].numpy())
    return csr_array((values.numpy(), positions), shape=(total * size, count * size))
