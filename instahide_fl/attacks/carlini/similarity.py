"""Vectors of encodings whose products tell which share a private image.

Source: our own, in the place of the similarity network of Carlini et al. The square of
a mixture is the sum of the squares of its images, weighted, and of products of either
sign; so squares of two encodings that share an image correlate, once whitening has
taken out what the squares of all natural images have in common. Where public images are
known, they are taken out first, and what remains of the pixels is compared too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instahide_fl.attacks.carlini.matching_pursuit import (
    PublicMatchingPursuit,
    PublicPart,
)
from instahide_fl.attacks.whitening import Whitening, features_of


def similarity_vectors(
    encodings: Tensor,
    private_coefficients: Tensor,
    public: PublicPart,
    pursuit: PublicMatchingPursuit | None,
) -> Tensor:
    """Return vectors f32[E,d]; the larger a product, the likelier a shared image.

    Args:
        encodings: f32[E,C,H,W], normalised.
        private_coefficients: f32[E,p], the coefficients of private images.
        public: What is known of the public part.
        pursuit: The search that found it; None if the pool was not searched. Encodings
            are then whitened with their own covariance.
    """
    shape = encodings.shape
    squares = encodings.square() - public.total.view(shape).square()
    # These are squares already: `features_of` must not square them again.
    squared = features_of(squares, False)
    squared = squared - squared.mean(0)
    if pursuit is None:
        whitening = Whitening.of_encodings(encodings, ignore_signs=True)
        return F.normalize(whitening.whitened(squared))
    remainder = residual(encodings, private_coefficients, public)
    parts = (
        pursuit.squares.whitening.whitened(squared),
        pursuit.pixels.whitening.whitened(features_of(remainder, False)),
    )
    # [E,d/2] twice -> [E,d]: either part counts as much.
    return torch.cat([F.normalize(part) for part in parts], 1)


def residual(
    encodings: Tensor, private_coefficients: Tensor, public: PublicPart
) -> Tensor:
    """Return what each encoding is expected to hold beside its known public images.

    Args:
        encodings: f32[E,C,H,W], normalised.
        private_coefficients: f32[E,p], the coefficients of private images, of which
            nothing else is known.
        public: What is known of the public part.

    Returns:
        f32[E,C,H,W].
    """
    known_part = public.total.view(encodings.shape)  # [E,D] -> [E,C,H,W]
    variance = private_coefficients.square().sum(1) + public.variance
    variance = variance.view(-1, 1, 1, 1)  # [E] -> [E,1,1,1]
    magnitudes = encodings.abs()
    # The expected sign of a pixel, -1..1, in place of the sign that was masked.
    return torch.tanh(magnitudes * known_part / variance) * magnitudes - known_part
