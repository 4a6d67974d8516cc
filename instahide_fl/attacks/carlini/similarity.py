"""Vectors of encodings whose products tell which share a private image.

Source: our own, in the place of the similarity network of Carlini et al. The square of
a mixture is the sum of the squares of its images, weighted, and of products of either
sign; so squares of two encodings that share an image correlate, once whitening has
taken out what the squares of all natural images have in common. Where public images are
known, they are taken out first, and what is left of the pixels is compared too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instahide_fl.attacks.carlini.matching_pursuit import PublicPart, PublicPursuit
from instahide_fl.attacks.whitening import Whitening, features_of


def similarity_vectors(
    encodings: Tensor,
    private: Tensor,
    public: PublicPart,
    pursuit: PublicPursuit | None,
) -> Tensor:
    """Return vectors f32[E,d]; the larger a product, the likelier a shared image.

    Args:
        encodings: f32[E,C,H,W], normalised.
        private: f32[E,p], coefficients of private images.
        public: what is known of the public part.
        pursuit: that found it; None if the pool was not searched. Encodings are
            whitened with their own covariance then.
    """
    shape = encodings.shape
    squares = encodings.square() - public.total.view(shape).square()
    # Signs are ignored already.
    squared = features_of(squares, False)
    squared = squared - squared.mean(0)
    if pursuit is None:
        white = Whitening.of_encodings(encodings, ignore_signs=True)
        return F.normalize(white.whitened(squared))
    left = residual(encodings, private, public)
    parts = (
        pursuit.squares.whitening.whitened(squared),
        pursuit.pixels.whitening.whitened(features_of(left, False)),
    )
    return torch.cat([F.normalize(one) for one in parts], 1)


def residual(encodings: Tensor, private: Tensor, public: PublicPart) -> Tensor:
    """Return the expected rest of each encoding beside known images, f32[E,C,H,W].

    Args:
        encodings: f32[E,C,H,W], normalised.
        private: f32[E,p], coefficients of private images, of which nothing is known.
        public: what is known of the public part.
    """
    known = public.total.view(encodings.shape)
    variance = (private.square().sum(1) + public.variance).view(-1, 1, 1, 1)
    magnitudes = encodings.abs()
    return torch.tanh(magnitudes * known / variance) * magnitudes - known
