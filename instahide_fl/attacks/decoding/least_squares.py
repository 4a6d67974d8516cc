"""Linear and folded least squares, and the alternation that all sign decoders share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from instahide_fl.attacks.base import ProgressCallback, ignore_progress
from instahide_fl.attacks.decoding.mixtures import Mixtures, gram, sparse_rows

ITERATIONS = 40
SMOOTHED_SHARE = 0.7  # of the iterations; the others polish without smoothing


class LeastSquares:
    """Penalised least squares for all pixels with one matrix.

    Minimises `sum_e (y_e - (A x)_e)^2 / noise_e + |x|^2` over x. An encoding counts the
    less, the more of it is public and unknown. The penalty assumes pixels of variance
    1, which normalised pixels have.
    """

    def __init__(self, mixtures: Mixtures) -> None:
        """Factorise the normal equations, once for all right-hand sides.

        Args:
            mixtures: The encodings.
        """
        weighted = mixtures.weights / mixtures.noise_variance[:, None]
        columns, count = mixtures.components, mixtures.count
        self._weighted = sparse_rows(columns, weighted, count).t().coalesce()
        normal = gram(columns, mixtures.weights, weighted, count)
        normal.diagonal().add_(1)
        self._factor = torch.linalg.cholesky(normal)

    def solve(self, values: Tensor) -> Tensor:
        """Return the minimiser x.

        Args:
            values: f32[E,D], the right-hand sides y.

        Returns:
            f32[n,D].
        """
        return torch.cholesky_solve(self._weighted @ values, self._factor)


def ridge(mixtures: Mixtures) -> Tensor:
    """Decode mixtures whose signs were left alone (Mixup).

    Args:
        mixtures: The encodings.

    Returns:
        f32[n,C,H,W], normalised, not clipped.
    """
    values = mixtures.encodings
    if mixtures.public is not None:
        values = values - mixtures.public
    # [E,C,H,W] -> [E,D], solved to [n,D] -> [n,C,H,W]
    return LeastSquares(mixtures).solve(values.flatten(1)).view(mixtures.images_shape)


def folded_least_squares(
    mixtures: Mixtures,
    pixel_bound: Tensor | None = None,
    iterations: int = ITERATIONS,
    progress: ProgressCallback = ignore_progress,
) -> Tensor:
    """Decode encodings with random signs, from few of them for each image.

    With an unknown public part all signs start negative, and the result resembles -|x|:
    shapes are recognisable, bright and dark are confused. With a known public part
    signs start as those of that part, trusted little at first, and the result is close
    to exact.

    Args:
        mixtures: The encodings.
        pixel_bound: The largest magnitude of a pixel, f32[C]; None for no limit.
        iterations: The number of iterations of the alternation.
        progress: The callback told how far the decoding is.

    Returns:
        f32[n,C,H,W], normalised. Unless the public part is known, each pixel has a sign
        of its own, the same for all n images.
    """
    if mixtures.public is not None:
        return alternating_minimisation(
            mixtures,
            mixtures.encodings.new_zeros(mixtures.images_shape),
            pixel_bound,
            iterations,
            start_variance=1,
            progress=progress,
        )
    start = LeastSquares(mixtures).solve(-mixtures.encodings.flatten(1).abs())
    return alternating_minimisation(
        mixtures,
        start.view(mixtures.images_shape),  # [n,D] -> [n,C,H,W]
        pixel_bound,
        iterations,
        progress=progress,
    )


def alternating_minimisation(
    mixtures: Mixtures,
    images: Tensor,
    pixel_bound: Tensor | None = None,
    iterations: int = ITERATIONS,
    smoothing: float = 0.0,
    start_variance: float = 0.0,
    progress: ProgressCallback = ignore_progress,
) -> Tensor:
    """Improve images: signs from the images, images from the signs, and again.

    The expected sign under Gaussian noise stands for the sign: it is near 0 where the
    images do not tell. This is expectation maximisation for the folded normal
    distribution. Which optimum it finds depends on the start; from random images it
    finds none.

    Args:
        mixtures: The encodings.
        images: f32[n,C,H,W], the images to start from.
        pixel_bound: The largest magnitude of a pixel, f32[C]; None for no limit.
        iterations: The number of iterations.
        smoothing: How much the images that signs are taken from are smoothed at the
            start, 0..1; it shrinks to 0. Neighbours then correct each other's errors;
            use it only where the signs of neighbouring pixels agree
            (`coherent_signs`).
        start_variance: The variance of the errors of the images at the start, in units
            of a pixel's own variance, 0..1; it shrinks to 0. Signs are trusted the
            less, the larger it is.
        progress: The callback told how far the alternation is.

    Returns:
        f32[n,C,H,W], normalised.
    """
    folded = mixtures.encodings.flatten(1).abs()
    public = None if mixtures.public is None else mixtures.public.flatten(1)
    equations = LeastSquares(mixtures)
    bound = None
    if pixel_bound is not None:
        bound = pixel_bound.view(-1, 1, 1).to(folded)  # [C] -> [C,1,1]
    private = mixtures.weights.square().sum(1)
    for step in range(iterations):
        remaining = max(0.0, 1 - step / (SMOOTHED_SHARE * iterations))
        amount = smoothing * remaining
        variance = start_variance * remaining**2 * private
        certainty = 1 / (mixtures.noise_variance + variance)
        source = smoothed(images, amount) if amount > 0 else images
        predicted = mixtures.mixing @ source.flatten(1)  # [E,n] @ [n,D] -> [E,D]
        if public is not None:
            predicted += public
        # In place, as these are the largest arrays. The posterior mean of a pixel whose
        # magnitude is m: m tanh(m * predicted / variance).
        values = predicted.mul_(folded).mul_(certainty[:, None]).tanh_().mul_(folded)
        if public is not None:
            values -= public
        images = equations.solve(values).view(mixtures.images_shape)
        if bound is not None:
            images = images.clamp(-bound, bound)
        progress(step + 1, iterations)
    return images


def smoothed(images: Tensor, amount: float) -> Tensor:
    """Return the weighted mean of each pixel and its eight neighbours.

    Args:
        images: f32[n,C,H,W].
        amount: The weight of the two neighbours along each axis, 0..1.
    """
    line = images.new_tensor([amount / 2, 1 - amount, amount / 2])
    # [3,1] * [3] -> [3,3] -> [C,1,3,3]: every channel is smoothed alone
    kernel = (line[:, None] * line).expand(images.shape[1], 1, 3, 3)
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, kernel, groups=images.shape[1])
