"""Private images from encodings whose whole keys are known: a linear system."""

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

ITERATIONS = 2000  # of LSMR, at most; hundreds are usual
TOLERANCE = 1e-9


@dataclass(frozen=True)
class OpenedImages:
    """What the keys of a client's encodings give.

    Attributes:
        images: f32[n,C,H,W], normalised.
        rows: i64[n], which images of the client they are.
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

    Exact where there are as many independent encodings as images in them. What they
    leave open comes out close to the mean colour.

    Args:
        encodings: f32[E,C,H,W], normalised, of one client.
        key: of the E encodings.
        statistics: constants that private images are normalised with.
        pool: public images, if the encodings use them.
        augmentation: the one that the key's crops and flips are of.
    """
    # Imported here: only this function needs it, and it takes a while.
    from scipy.sparse.linalg import lsmr

    mixed = encodings * key.signs
    if pool is not None and key.public_index.shape[1]:
        used, place = torch.unique(key.public_index, return_inverse=True)
        public = pool.statistics.normalise(pool.images[used])
        mixed = mixed - public_part(public, place, key.coefficients)
    rows, components = torch.unique(key.private_index, return_inverse=True)
    weights = key.coefficients[:, : components.shape[1]]
    system = _system(components, weights, len(rows), key, augmentation)
    mean, std = (np.asarray(one) for one in (statistics.mean, statistics.std))
    # In units of [0, 1], where black padding is 0 and adds nothing.
    total = weights.sum(1).double().numpy()[:, None]
    channels, height, width = encodings.shape[1:]
    found = np.empty((len(rows), channels, height, width))
    for channel in range(channels):
        seen = mixed[:, channel].flatten(1).double().numpy()
        seen = seen * std[channel] + mean[channel] * total
        # From the mean colour, so that what stays open stays there.
        start = np.full(system.shape[1], mean[channel])
        missing = seen.ravel() - system @ start
        moved = lsmr(
            system, missing, atol=TOLERANCE, btol=TOLERANCE, maxiter=ITERATIONS
        )[0]
        pixels = (start + moved).clip(0, 1).reshape(-1, height, width)
        found[:, channel] = (pixels - mean[channel]) / std[channel]
    return OpenedImages(torch.from_numpy(found).float(), rows)


def _system(
    components: Tensor,
    weights: Tensor,
    count: int,
    key: EncodingKey,
    augmentation: Augmentation | None,
) -> Any:
    """Return the matrix from private pixels to those of encodings, for any channel.

    Args:
        components: i64[E,p], private images by number.
        weights: f32[E,p], their coefficients.
        count: n, of private images.
        key: with the crops and flips.
        augmentation: the one that drew them.

    Returns:
        Sparse f64[E*H*W,n*H*W], of scipy.
    """
    from scipy.sparse import csr_array

    total, private = components.shape
    _, height, width = key.image_shape
    size = height * width
    # Pixels are numbered from 1, so that padding, which is 0, can be told apart.
    numbers = torch.arange(1, size + 1).view(1, 1, height, width)
    source = numbers.expand(total * private, 1, height, width)
    if augmentation is not None and key.augmentation is not None:
        source = augmentation.apply(source, key.augmentation)
    source = source.reshape(total, private, size)
    inside = source > 0
    column = components[:, :, None] * size + source - 1
    row = (torch.arange(total)[:, None] * size + torch.arange(size))[:, None]
    values = weights[:, :, None].expand_as(source)[inside].double()
    place = (row.expand_as(source)[inside].numpy(), column[inside].numpy())
    return csr_array((values.numpy(), place), shape=(total * size, count * size))
