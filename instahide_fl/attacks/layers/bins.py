"""Read single images from a layer whose units sort them into bins.

The rows of neighbouring units of one direction differ by what the images between their
thresholds add: a bin. One that holds a single image gives it as a ratio, but from one
bin alone nobody can tell an image from a mixture of two. Several directions can: an
image that is alone in bins of two directions is seen twice. Two images that share bins
in two directions give their mixture twice, but it lies in the span of the images seen
otherwise. Whatever was found is subtracted from all bins it is in, which leaves others
alone there, until nothing is found any more: the bins are an invertible Bloom lookup
table (Goodrich and Mitzenmacher, Allerton 2011) that clients fill.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instahide_fl.attacks.layers.linear_layers import LayerTensors

SAME = 1e-3  # relative distance below which two bins hold the same image
EMPTY = 1e-4  # share of the largest bin below which one holds rounding errors
IN_SPAN = 1e-2  # relative distance to the span of images below which one is a mixture


def empty_bins(gradient: LayerTensors, parameters: LayerTensors) -> tuple[Tensor, int]:
    """Take image after image out of the bins.

    Args:
        gradient: of the sorting layer.
        parameters: of the sorting layer, units of one direction in the order of their
            thresholds.

    Returns:
        The images, f64[M,D], and the number of passes over the bins.
    """
    last = _last_of_direction(parameters.weight)
    bins = LayerTensors(
        _between(gradient.weight, last), _between(gradient.bias[:, None], last)[:, 0]
    )
    least = EMPTY * bins.bias.abs().max()
    images = gradient.weight[:0]
    passes = 0
    while True:
        passes += 1
        occupied = bins.bias.abs() > least
        if not occupied.any():
            return images, passes
        seen = LayerTensors(bins.weight[occupied], bins.bias[occupied])
        new, sizes = _seen_repeatedly(seen, images)
        if not len(new):
            return images, passes
        images = torch.cat([images, new])
        active = (new @ parameters.weight.T + parameters.bias > 0).double()
        shares = sizes[:, None] * _between(active.T, last).T  # (M, J)
        bins = LayerTensors(bins.weight - shares.T @ new, bins.bias - shares.sum(0))


def _last_of_direction(weight: Tensor) -> Tensor:
    """Tell which units have no neighbour above, bool[J]."""
    last = torch.ones(len(weight), dtype=torch.bool)
    last[:-1] = (weight[1:] != weight[:-1]).any(dim=1)
    return last


def _between(rows: Tensor, last: Tensor) -> Tensor:
    """Subtract from each row [J,D] the next one of its direction."""
    following = torch.cat([rows[1:], torch.zeros_like(rows[:1])])
    return rows - following.masked_fill(last[:, None], 0)


def _seen_repeatedly(bins: LayerTensors, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images that several bins agree on and that are no mixtures.

    Args:
        bins: what each of N bins holds.
        known: f64[M,D], images found before.

    Returns:
        f64[m,D], and the gradient of the bias that each adds to its bins, f64[m].
    """
    # The bin with the largest gradient is the most exact.
    order = bins.bias.abs().argsort(descending=True)
    sizes = bins.bias[order]
    images = bins.weight[order] / sizes[:, None]
    same = torch.cdist(images, images) < SAME * images.norm(dim=1)
    basis = torch.linalg.qr(known.T)[0]  # (D, M)
    rest = images - images @ basis @ basis.T
    repeats = same.sum(dim=1) * (rest.norm(dim=1) > IN_SPAN * images.norm(dim=1))
    # An image is alone in more bins than a mixture is: those seen most often go first,
    # and mixtures with them come apart.
    candidates = repeats == repeats.max().clamp_min(2)
    first = same.double().argmax(dim=1) == torch.arange(len(images))
    chosen = candidates & first
    return images[chosen], sizes[chosen]
