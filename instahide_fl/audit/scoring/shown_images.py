"""Images to draw: originals, their encodings and what an attack made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from instahide_fl.audit.scoring.pairing import Pairing
from instahide_fl.metrics.correction import negative
from instahide_fl.types import ChannelStatistics

SHOWN = 8  # victims of a client


@dataclass(frozen=True)
class ShownImages:
    """Images of one client to draw in aligned rows: the first few, not the best.

    Attributes:
        client: its key.
        originals: f32[n,C,H,W] in [0, 1].
        encodings: f32[n,C,H,W], in units of [0, 1], not clipped: the one that was
            recovered, or the one in which the original weighs most.
        reconstructions: f32[n,C,H,W], not clipped, in the sign that resembles its
            target more.
        ssim: f64[n], with the original, in the better sign.
        sources: f32[n,C,H,W] in [0, 1], the image that was encoded, whichever of those
            mixed into it the reconstruction resembles. Of runs with the same seed it
            is the same, whatever the method.
    """

    client: str
    originals: Tensor
    encodings: Tensor
    reconstructions: Tensor
    ssim: Tensor
    sources: Tensor


def align_shown(
    client: str, images: Tensor, paired: Pairing, statistics: ChannelStatistics
) -> ShownImages:
    """Take a client's first victims, in the order of the truth.

    Args:
        client: its key.
        images: f32[M,C,H,W], recovered, in units of [0, 1], not clipped.
        paired: with what they were held against.
        statistics: constants that images are normalised with.
    """
    first = paired.order.argsort(stable=True)[:SHOWN]
    judged = paired.encoding or paired.private
    plain = images[paired.index[first]]
    flipped = judged.flipped[first][:, None, None, None]
    return ShownImages(
        client,
        paired.originals[first],
        paired.encodings[first],
        torch.where(flipped, negative(plain, statistics), plain),
        paired.private.sign_ssim[first],
        paired.candidates[first, 0],
    )


def first_of_each_client(victims: Iterable[ShownImages]) -> tuple[ShownImages, ...]:
    """Join the victims of a client's rounds, and keep the first few."""
    by_client: dict[str, list[ShownImages]] = {}
    for some in victims:
        by_client.setdefault(some.client, []).append(some)
    return tuple(
        ShownImages(
            client,
            *(
                torch.cat([getattr(some, column.name) for some in parts])[:SHOWN]
                for column in fields(ShownImages)[1:]
            ),
        )
        for client, parts in by_client.items()
    )
