"""Decoding of private images that were cropped and mirrored before they were mixed.

Each encoding shows an image in a position of its own: one of a few crops, perhaps
mirrored. Expectation maximisation takes turns between positions and images, image by
image. It starts from grey images: the black borders that a crop brings in tell
positions roughly, and their known colour tells signs.

The idea to register before decoding is that of Luo et al., "Fusion-Denoising Attack on
InstaHide with Data Augmentation" (arXiv:2105.07754), who train networks for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.attacks.base import ProgressCallback, ignore_progress
from instahide_fl.attacks.decoding.mixtures import Mixtures
from instahide_fl.attacks.decoding.registration_kernels import (
    collect,
    compiled,
    misfits,
)
from instahide_fl.data.augment import Augmentation
from instahide_fl.types import ChannelStatistics

SWEEPS = 24
CANDIDATES = 3  # positions of each encoding that are weighed against each other
# At the start and at the end; in between they change by a constant factor.
IMAGE_VARIANCE = (0.8, 0.06)  # of the errors of the images
CORRELATED_PIXELS = (10.0, 5.0)  # that count as one when positions are compared
PIXEL_STRIDE = 3  # every third pixel is compared: neighbours say much the same
ERROR_VARIANCE = 0.005  # of rounding, and of what crops and borders leave

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def positions(augmentation: Augmentation, height: int, width: int) -> Indices:
    """List everything that augmentation can do to an image.

    Args:
        augmentation: The augmentation of the run.
        height: The height H of the images.
        width: The width W of the images.

    Returns:
        i64[Q,H*W]: for each position, which pixel every pixel shows; -1 is the black
        of the padding.
    """
    padding, sources = augmentation.padding, []
    for down in range(-padding, padding + 1):
        for right in range(-padding, padding + 1):
            for mirrored in (False, True) if augmentation.flip else (False,):
                row = np.arange(height)[:, None] + down
                column = np.arange(width)[None]
                column = (width - 1 - column if mirrored else column) + right
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                # [H,1] and [1,W] -> [H,W] -> [H*W]
                sources.append(np.where(inside, row * width + column, -1).ravel())
    return np.stack(sources).astype(np.int64)


@dataclass(frozen=True)
class Registered:
    """Decoded images, and where the encodings show them.

    Attributes:
        images: f32[n,C,H,W], normalised; each may be mirrored as a whole.
        positions: i64[E,p], the likeliest positions, as rows of `positions`.
        private: f32[E,D], the private part of each encoding.
    """

    images: Tensor
    positions: Tensor
    private: Tensor


def registered_decode(
    mixtures: Mixtures,
    statistics: ChannelStatistics,
    augmentation: Augmentation,
    folded: bool,
    rng: np.random.Generator,
    sweeps: int = SWEEPS,
    progress: ProgressCallback = ignore_progress,
) -> Registered:
    """Find positions and images together.

    Args:
        mixtures: The encodings, on the CPU; links and coefficients may come from an
            auditor or from an attack that found them.
        statistics: The constants that images are normalised with; they tell what black
            is.
        augmentation: The augmentation of the run.
        folded: Whether signs were flipped.
        rng: The generator of the order in which images are improved.
        sweeps: The number of sweeps over all images.
        progress: The callback told how far the decoding is.
    """
    state = _State.of(mixtures, statistics, augmentation, folded)
    for sweep in range(sweeps):
        elapsed = sweep / max(1, sweeps - 1)  # 0..1
        state.image_variance = _between(IMAGE_VARIANCE, elapsed)
        state.correlated_pixels = _between(CORRELATED_PIXELS, elapsed)
        for image in rng.permutation(mixtures.count):
            state.improve(int(image))
        progress(sweep + 1, sweeps)
    images = torch.from_numpy(state.images + state.black[:, None])
    private = torch.from_numpy(state.expected)
    if mixtures.public is not None:
        private = private - mixtures.public.flatten(1)
    return Registered(
        images.view(mixtures.images_shape), torch.from_numpy(state.best), private
    )


def _between(ends: tuple[float, float], elapsed: float) -> float:
    """Return the value at a time in 0..1 that changes by a constant factor."""
    start, end = ends
    return start * math.pow(end / start, elapsed)


@dataclass
class _State:
    """Images, and what is expected of each encoding. All arrays are numpy's.

    Attributes:
        values: f32[E,D], encodings, or their magnitudes if signs are unknown.
        weights: f32[E,p], the coefficients of private images.
        noise: f32[E], the variance of the unknown public part.
        members: For each image, i64[2,M]: the encodings that mix it, and as which of
            their components.
        sources: i64[Q,P], see `positions`.
        black: f32[C], the value of the padding after normalisation.
        brightest: f32[C], by how much white exceeds black.
        folded: Whether signs are unknown.
        images: f32[n,C,P], less black.
        rendered: f32[E,p,D], what each component is expected to look like, less black.
        expected: f32[E,D], what the whole encoding is expected to look like.
        best: i64[E,p], the likeliest positions.
        image_variance: The variance of the images' errors.
        correlated_pixels: The number of pixels that count as one.
    """

    values: Floats
    weights: Floats
    noise: Floats
    members: list[Indices]
    sources: Indices
    black: Floats
    brightest: Floats
    folded: bool
    images: Floats
    rendered: Floats
    expected: Floats
    best: Indices
    image_variance: float = IMAGE_VARIANCE[0]
    correlated_pixels: float = CORRELATED_PIXELS[0]

    @classmethod
    def of(
        cls,
        mixtures: Mixtures,
        statistics: ChannelStatistics,
        augmentation: Augmentation,
        folded: bool,
    ) -> _State:
        """Start from grey images in unknown positions."""
        count, _, height, width = mixtures.images_shape
        sources = positions(augmentation, height, width)
        mean = np.array(statistics.mean, np.float32)
        std = np.array(statistics.std, np.float32)
        values = mixtures.encodings.flatten(1).numpy()
        weights = mixtures.weights.numpy()
        components = mixtures.components.numpy()
        grey = np.repeat((mean / std)[:, None], height * width, 1)  # [C] -> [C,P]
        images = np.repeat(grey[None], count, 0)  # [C,P] -> [n,C,P]
        # [D] -> [E,p,D]: grey, darker where borders may be
        typical = _moved(grey, sources).mean(0)
        rendered = np.broadcast_to(typical, (*weights.shape, len(typical))).copy()
        black_pixels = np.repeat(-mean / std, height * width)  # [C] -> [D]
        expected = weights.sum(1)[:, None] * (typical + black_pixels)
        if mixtures.public is not None:
            expected = expected + mixtures.public.flatten(1).numpy()
        return cls(
            values=np.abs(values) if folded else values,
            weights=weights,
            noise=mixtures.public_variance.numpy() + np.float32(ERROR_VARIANCE),
            members=[np.stack(np.nonzero(components == i)) for i in range(count)],
            sources=sources,
            black=-mean / std,
            brightest=(1 / std).astype(np.float32),
            folded=folded,
            images=images,
            rendered=rendered,
            expected=expected.astype(np.float32),
            best=np.zeros(weights.shape, np.int64),
        )

    def improve(self, image: int) -> None:
        """Find where the encodings show an image, then what it looks like."""
        encoding, component = self.members[image]
        if not len(encoding):
            return
        weights = self.weights[encoding, component]
        rendered = self.rendered[encoding, component]
        rest = self.expected[encoding] - weights[:, None] * rendered
        error_variance = np.square(self.weights[encoding]).sum(1)
        error_variance *= np.float32(self.image_variance)
        noise = self.noise[encoding] + error_variance
        moved = _moved(self.images[image], self.sources)
        cost = self._misfits(encoding, rest, weights, noise, moved)
        chosen, posterior = _likeliest(
            cost / (2 * self.correlated_pixels * noise[:, None])
        )
        self.best[encoding, component] = chosen[:, 0]
        total, certainty = compiled(collect)(
            values=self.values[encoding],
            rest=rest,
            weights=weights,
            noise=noise,
            moved=moved,
            sources=self.sources,
            candidates=chosen,
            posterior=posterior,
            folded=self.folded,
        )
        # A pixel that nothing tells of is grey: 0 with variance 1 after normalisation.
        total = total.reshape(self.images[image].shape)  # [D] -> [C,P]
        solved = (total - self.black[:, None]) / (certainty + 1)
        self.images[image] = np.clip(solved, 0, self.brightest[:, None])
        moved = _moved(self.images[image], self.sources)
        # The mean over positions: [M,c] and [M,c,D] -> [M,D]
        rendered = np.einsum("ec,ecd->ed", posterior, moved[chosen])
        self.rendered[encoding, component] = rendered
        self.expected[encoding] = rest + weights[:, None] * rendered

    def _misfits(
        self,
        encoding: Indices,
        rest: Floats,
        weights: Floats,
        noise: Floats,
        moved: Floats,
    ) -> Floats:
        """Return how badly each position fits, by some of the pixels, f32[M,Q]."""
        compared = slice(None, None, PIXEL_STRIDE if moved.shape[1] > 1024 else 1)
        cost: Floats = compiled(misfits)(
            values=np.ascontiguousarray(self.values[encoding, compared]),
            rest=np.ascontiguousarray(rest[:, compared]),
            weights=weights,
            noise=noise,
            moved=np.ascontiguousarray(moved[:, compared]),
            folded=self.folded,
        )
        num_pixels = moved.shape[1]
        return np.asarray(cost * (num_pixels / len(range(num_pixels)[compared])))


def _moved(image: Floats, sources: Indices) -> Floats:
    """Return an image f32[C,P] in every position, f32[Q,C*P]; black is 0."""
    # One more pixel, black, which the index -1 of `positions` points to.
    framed = np.concatenate([image, np.zeros((len(image), 1), np.float32)], 1)
    moved = framed[:, sources].transpose(1, 0, 2)  # [C,Q,P] -> [Q,C,P]
    return np.ascontiguousarray(moved.reshape(len(sources), -1))


def _likeliest(cost: Floats) -> tuple[Indices, Floats]:
    """Return the likeliest positions i64[M,c], best first, and their probabilities."""
    count = min(CANDIDATES, cost.shape[1])
    chosen = np.argsort(cost, 1)[:, :count]
    lowest = np.take_along_axis(cost, chosen, 1)
    posterior = np.exp(lowest[:, :1] - lowest)
    posterior /= posterior.sum(1, keepdims=True)
    return chosen.astype(np.int64), posterior.astype(np.float32)
