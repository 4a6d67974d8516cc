"""Test whether a key fits an observation: coefficients the label, mask the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

LABEL_ERROR = 1e-5  # error of an entry of a soft label that was recovered or rounded
MASK_DEVIATIONS = 8.0  # standard deviations that no wrong mask reaches


def coefficients_fit(coefficients: Tensor, entries: Tensor) -> Tensor:
    """Tell which coefficients can have made a soft label.

    The entry of a class is the sum of the coefficients of its images, so some division
    of the images among the classes has to give the label.

    Args:
        coefficients: The coefficients of the private images, of each of S candidates,
            f32[S,p].
        entries: The label's entries that are not 0, f32[m] or f32[S,m].

    Returns:
        Whether each candidate fits, bool[S].
    """
    count, classes = coefficients.shape[1], entries.shape[-1]
    if not 0 < classes <= count:
        return torch.zeros(len(coefficients), dtype=torch.bool)
    label = entries.double().sort(dim=-1).values.expand(len(coefficients), classes)
    fits = torch.zeros(len(coefficients), dtype=torch.bool)
    for division in divisions(count, classes):
        sums = torch.zeros(len(coefficients), classes, dtype=torch.float64)
        sums.index_add_(1, torch.tensor(division), coefficients.double())
        error = (sums.sort(dim=1).values - label).abs().amax(dim=1)
        fits |= error <= LABEL_ERROR
    return fits


def divisions(count: int, classes: int) -> list[tuple[int, ...]]:
    """Return all ways to divide `count` images among classes, none of them empty.

    Classes are numbered in the order in which they appear, so that no division comes
    twice under other numbers.

    Returns:
        Tuples with the class of each image.
    """
    partial: list[tuple[int, ...]] = [(0,)]
    for _ in range(count - 1):
        partial = [
            (*division, number)
            for division in partial
            for number in range(min(max(division) + 2, classes))
        ]
    return [division for division in partial if max(division) == classes - 1]


def nonzero_entries(soft_target: Tensor) -> Tensor:
    """Return a soft label's entries that are not 0, f32[m]."""
    return soft_target[soft_target > LABEL_ERROR]


def mask_deviations(encodings: Tensor, signs: Tensor) -> float:
    """Measure how much smoother a mask makes encodings than a wrong one can.

    The right mask turns an encoding back into a mixture of images, in which neighbours
    have the same sign more often than not. Here the products of neighbours are added
    up. Under a wrong mask each product has a random sign, which gives the standard
    deviation of the sum.

    Args:
        encodings: The encodings, f32[E,C,H,W].
        signs: The candidate masks, i8[E,C,H,W].

    Returns:
        The sum, in standard deviations under a wrong mask: around 0 for a wrong mask,
        tens for the right one.
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
