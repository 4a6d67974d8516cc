"""Read single images from a layer whose units sort them into bins.

The gradient rows of two neighbouring units of one direction differ by the contribution
of the images between the units' thresholds: a bin. A bin that holds a single image
gives it as a ratio of gradients, but one bin alone does not show whether this is an
image or a mixture of two. Several directions do: an image that is alone in bins of two
directions comes out twice. Two images that share a bin in two directions give their
mixture twice, but that lies in the span of the images that come out otherwise. Each
recovered image is subtracted from all bins that it is in, which leaves other images
alone there, until no more come out: the bins are an invertible Bloom lookup table
(Goodrich and Mitzenmacher, Allerton 2011) that clients fill.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instahide_fl.attacks.layers.linear_layers import LayerTensors

SAME = 1e-3  # relative distance below which two bins hold the same image
EMPTY = 1e-4  # share of the largest bin below which a bin holds rounding errors
IN_SPAN = 1e-2  # relative distance to the images' span below which it is a mixture


def empty_bins(gradient: LayerTensors, parameters: LayerTensors) -> tuple[Tensor, int]:
    """Take image after image out of the bins.

    Args:
        gradient: The gradient of the sorting layer.
        parameters: The parameters of the sorting layer, with the units of one direction
            in the order of their thresholds.

    Returns:
        The images, f64[M,D], and the number of passes over the bins.
    """
    last = _last_of_direction(parameters.weight)
    bins = LayerTensors(
        _between(gradient.weight, last), _between(gradient.bias[:, None], last)[:, 0]
    )
    threshold = EMPTY * bins.bias.abs().max()
    images = gradient.weight[:0]
    passes = 0
    while True:
        passes += 1
        is_occupied = bins.bias.abs() > threshold
        if not is_occupied.any():
            return images, passes
        occupied = LayerTensors(bins.weight[is_occupied], bins.bias[is_occupied])
        new, sizes = _repeated_images(occupied, images)
        if not len(new):
            return images, passes
        images = torch.cat([images, new])
        active = (new @ parameters.weight.T + parameters.bias > 0).double()
        shares = sizes[:, None] * _between(active.T, last).T  # [m,1] * [m,J]
        bins = LayerTensors(bins.weight - shares.T @ new, bins.bias - shares.sum(0))


def _last_of_direction(weight: Tensor) -> Tensor:
    """Tell which units are the last of their direction, bool[J]."""
    last = torch.ones(len(weight), dtype=torch.bool)
    last[:-1] = (weight[1:] != weight[:-1]).any(dim=1)
    return last


def _between(rows: Tensor, last: Tensor) -> Tensor:
    """Subtract from each row of [J,D] the next row of the same direction."""
    following = torch.cat([rows[1:], torch.zeros_like(rows[:1])])
    return rows - following.masked_fill(last[:, None], 0)


def _repeated_images(bins: LayerTensors, recovered: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images that several bins agree on and that are no mixtures.

    Args:
        bins: The contents of N bins.
        recovered: The images that were recovered before, f64[M,D].

    Returns:
        New images, f64[m,D], and the gradient of the bias that each of them adds to its
        bins, f64[m].
    """
    # The bin with the largest gradient is the most exact.
    order = bins.bias.abs().argsort(descending=True)
    sizes = bins.bias[order]
    images = bins.weight[order] / sizes[:, None]
    same = torch.cdist(images, images) < SAME * images.norm(dim=1)
    basis = torch.linalg.qr(recovered.T)[0]  # [D,M]
    rest = images - images @ basis @ basis.T
    repeats = same.sum(dim=1) * (rest.norm(dim=1) > IN_SPAN * images.norm(dim=1))
    # An image is alone in more bins than a mixture is. Those that come out most often
    # are taken first; without them, mixtures that contain them come apart.
    candidates = repeats == repeats.max().clamp_min(2)
    first = same.double().argmax(dim=1) == torch.arange(len(images))
    chosen = candidates & first
    return images[chosen], sizes[chosen]
