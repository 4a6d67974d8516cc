"""Images to draw: originals, their encodings and what an attack made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
        client: The client's key.
        originals: f32[n,C,H,W] in [0, 1], private images.
        encodings: f32[n,C,H,W], in units of [0, 1], not clipped: the encoding that was
            recovered, or the one in which the original weighs most.
        reconstructions: f32[n,C,H,W], not clipped, in the sign that resembles its
            target more.
        ssim: f64[n], SSIM with the original, in the better sign.
        sources: f32[n,C,H,W] in [0, 1], the image that was encoded, whichever of those
            mixed into it the reconstruction resembles. It is the same in all runs with
            the same seed, whatever the method.
    """

    client: str
    originals: Tensor
    encodings: Tensor
    reconstructions: Tensor
    ssim: Tensor
    sources: Tensor

    @classmethod
    def concatenate(
        cls, client: str, parts: Sequence[ShownImages], limit: int
    ) -> ShownImages:
        """Put images below each other, and take the first few.

        Args:
            client: The key of the client, or of all clients together.
            parts: The images, at least one part.
            limit: The number of images to take, at most.
        """
        return cls(
            client=client,
            originals=torch.cat([part.originals for part in parts])[:limit],
            encodings=torch.cat([part.encodings for part in parts])[:limit],
            reconstructions=torch.cat([part.reconstructions for part in parts])[:limit],
            ssim=torch.cat([part.ssim for part in parts])[:limit],
            sources=torch.cat([part.sources for part in parts])[:limit],
        )


def align_shown(
    client: str, images: Tensor, pairing: Pairing, statistics: ChannelStatistics
) -> ShownImages:
    """Take a client's first victims, in the order of the truth.

    Args:
        client: The client's key.
        images: f32[M,C,H,W], recovered, in units of [0, 1], not clipped.
        pairing: What the images were held against.
        statistics: Constants that images are normalised with.
    """
    first = pairing.order.argsort(stable=True)[:SHOWN]
    judged = pairing.encoding or pairing.private
    plain = images[pairing.index[first]]
    flipped = judged.flipped[first][:, None, None, None]  # [n] -> [n,1,1,1]
    return ShownImages(
        client=client,
        originals=pairing.originals[first],
        encodings=pairing.encodings[first],
        reconstructions=torch.where(flipped, negative(plain, statistics), plain),
        ssim=pairing.private.sign_ssim[first],
        sources=pairing.candidates[first, 0],
    )


def first_of_each_client(victims: Iterable[ShownImages]) -> tuple[ShownImages, ...]:
    """Join the victims of each client's rounds, and keep the first few."""
    by_client: dict[str, list[ShownImages]] = {}
    for images in victims:
        by_client.setdefault(images.client, []).append(images)
    return tuple(
        ShownImages.concatenate(client, rounds, SHOWN)
        for client, rounds in by_client.items()
    )
