"""Does a key fit what was observed? Its coefficients the label, its mask the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

LABEL_ERROR = 1e-5  # of a soft label that was recovered, or rounded
MASK_DEVIATIONS = 8.0  # standard deviations that no wrong mask reaches


def coefficients_fit(coefficients: Tensor, entries: Tensor) -> Tensor:
    """Tell which coefficients can have made a soft label.

    A class holds the sum of the coefficients of its images, so some division of the
    images among the classes has to give the label.

    Args:
        coefficients: f32[S,p], of the private images, for each candidate.
        entries: f32[m] or f32[S,m], the label's entries that are not 0.

    Returns:
        bool[S].
    """
    count, classes = coefficients.shape[1], entries.shape[-1]
    if not 0 < classes <= count:
        return torch.zeros(len(coefficients), dtype=torch.bool)
    wanted = entries.double().sort(dim=-1).values.expand(len(coefficients), classes)
    fits = torch.zeros(len(coefficients), dtype=torch.bool)
    for division in divisions(count, classes):
        sums = torch.zeros(len(coefficients), classes, dtype=torch.float64)
        sums.index_add_(1, torch.tensor(division), coefficients.double())
        error = (sums.sort(dim=1).values - wanted).abs().amax(dim=1)
        fits |= error <= LABEL_ERROR
    return fits


def divisions(count: int, classes: int) -> list[tuple[int, ...]]:
    """Return all ways to divide things among so many classes, none of them empty.

    Classes are numbered as they appear, so no division comes twice.
    """
    found: list[tuple[int, ...]] = [(0,)]
    for _ in range(count - 1):
        found = [
            (*one, added)
            for one in found
            for added in range(min(max(one) + 2, classes))
        ]
    return [one for one in found if max(one) == classes - 1]


def nonzero_entries(soft_target: Tensor) -> Tensor:
    """Return a soft label's entries that are not 0, f32[m]."""
    return soft_target[soft_target > LABEL_ERROR]


def mask_deviations(encodings: Tensor, signs: Tensor) -> float:
    """Tell how much smoother a mask makes encodings than a wrong one can.

    The right mask turns an encoding back into a mixture of images, in which neighbours
    agree: its total variation drops. Here the products of neighbours are added up.
    Under a wrong mask each has a fair sign of its own, which gives the sum's spread.

    Args:
        encodings: f32[E,C,H,W].
        signs: i8[E,C,H,W], the candidate.

    Returns:
        The sum in standard deviations of a wrong mask: around 0 for one, and tens for
        the right one.
    """
    plain = encodings.double() * signs
    total, spread = 0.0, 0.0
    for products in (
        plain[..., 1:] * plain[..., :-1],
        plain[..., 1:, :] * plain[..., :-1, :],
    ):
        total += float(products.sum())
        spread += float(products.square().sum())
    return total / spread**0.5 if spread else 0.0
