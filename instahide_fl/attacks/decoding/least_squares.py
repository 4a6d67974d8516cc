"""Linear and folded least squares, and the alternation that all sign decoders share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from instahide_fl.attacks.base import ProgressCallback, ignore_progress
from instahide_fl.attacks.decoding.mixtures import Mixtures, gram, sparse_rows

ITERATIONS = 40
SMOOTH_SHARE = 0.7  # of the iterations; the rest polish without smoothing


class LeastSquares:
    """min_x sum_e (y_e - (A x)_e)^2 / noise_e + |x|^2, for all pixels with one matrix.

    An encoding counts the less, the more of it is public and unknown. The penalty is
    that of pixels of variance 1, which normalised pixels have.
    """

    def __init__(self, mixtures: Mixtures) -> None:
        """Factorise the normal equations, once for all right-hand sides."""
        weighted = mixtures.weights / mixtures.noise_variance[:, None]
        columns, count = mixtures.components, mixtures.count
        self._weighted = sparse_rows(columns, weighted, count).t().coalesce()
        normal = gram(columns, mixtures.weights, weighted, count)
        normal.diagonal().add_(1)
        self._factor = torch.linalg.cholesky(normal)

    def solve(self, values: Tensor) -> Tensor:
        """Return x.

        Args:
            values: f32[E,D], y.

        Returns:
            f32[n,D].
        """
        return torch.cholesky_solve(self._weighted @ values, self._factor)


def ridge(mixtures: Mixtures) -> Tensor:
    """Decode mixtures whose signs were left alone (Mixup).

    Args:
        mixtures: the encodings.

    Returns:
        f32[n,C,H,W], normalised, not clipped.
    """
    values = mixtures.encodings
    if mixtures.public is not None:
        values = values - mixtures.public
    return LeastSquares(mixtures).solve(values.flatten(1)).view(mixtures.images_shape)


def folded_least_squares(
    mixtures: Mixtures,
    largest: Tensor | None = None,
    iterations: int = ITERATIONS,
    progress: ProgressCallback = ignore_progress,
) -> Tensor:
    """Decode encodings with random signs, from few of them for each image.

    With an unknown public part all signs start negative, and the result resembles -|x|:
    shapes are recognisable, bright and dark are confused. With a known one signs start
    as that part's, trusted little at first, and the result is close to exact.

    Args:
        mixtures: the encodings.
        largest: magnitude of a pixel, f32[C]; None for no limit.
        iterations: of the alternation.
        progress: told how far it is.

    Returns:
        f32[n,C,H,W], normalised. Unless the public part is known, each pixel has a sign
        of its own, the same for all n images.
    """
    if mixtures.public is not None:
        nothing = mixtures.encodings.new_zeros(mixtures.images_shape)
        return alternating_minimisation(
            mixtures, nothing, largest, iterations, doubt=1, progress=progress
        )
    start = LeastSquares(mixtures).solve(-mixtures.encodings.flatten(1).abs())
    return alternating_minimisation(
        mixtures,
        start.view(mixtures.images_shape),
        largest,
        iterations,
        progress=progress,
    )


def alternating_minimisation(
    mixtures: Mixtures,
    images: Tensor,
    largest: Tensor | None = None,
    iterations: int = ITERATIONS,
    smoothing: float = 0.0,
    doubt: float = 0.0,
    progress: ProgressCallback = ignore_progress,
) -> Tensor:
    """Improve images: signs from the images, images from the signs, and again.

    The expected sign under Gaussian noise stands for the sign: it is near 0 where the
    images do not tell. This is expectation maximisation for the folded normal law.
    Which optimum it finds depends on the start; from random images it finds none.

    Args:
        mixtures: the encodings.
        images: f32[n,C,H,W], to start from.
        largest: magnitude of a pixel, f32[C]; None for no limit.
        iterations: how often.
        smoothing: signs are taken from images smoothed by this much, 0..1, less and
            less. Neighbours then correct each other's errors; use it only where the
            signs of neighbouring pixels agree (`coherent_signs`).
        doubt: variance of the errors of the images at the start, by which signs are
            trusted less, in units of a pixel's own variance, 0..1; it shrinks to 0.
        progress: told how far it is.

    Returns:
        f32[n,C,H,W], normalised.
    """
    folded = mixtures.encodings.flatten(1).abs()
    known = None if mixtures.public is None else mixtures.public.flatten(1)
    equations = LeastSquares(mixtures)
    bound = None if largest is None else largest.view(-1, 1, 1).to(folded)
    private = mixtures.weights.square().sum(1)
    for step in range(iterations):
        left = max(0.0, 1 - step / (SMOOTH_SHARE * iterations))
        amount = smoothing * left
        certainty = 1 / (mixtures.noise_variance + doubt * left**2 * private)
        source = smoothed(images, amount) if amount > 0 else images
        predicted = mixtures.mixing @ source.flatten(1)
        if known is not None:
            predicted += known
        values = predicted.mul_(folded).mul_(certainty[:, None]).tanh_().mul_(folded)
        if known is not None:
            values -= known
        images = equations.solve(values).view(mixtures.images_shape)
        if bound is not None:
            images = images.clamp(-bound, bound)
        progress(step + 1, iterations)
    return images


def smoothed(images: Tensor, amount: float) -> Tensor:
    """Return a mean of each pixel with its eight neighbours.

    Args:
        images: f32[n,C,H,W].
        amount: share of the neighbours along each axis, 0..1.
    """
    line = images.new_tensor([amount / 2, 1 - amount, amount / 2])
    kernel = (line[:, None] * line).expand(images.shape[1], 1, 3, 3)
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, kernel, groups=images.shape[1])
