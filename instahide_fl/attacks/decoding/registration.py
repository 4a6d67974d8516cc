"""Decoding where private images were cropped and mirrored before they were mixed.

Each encoding shows an image in a position of its own: one of few crops, perhaps
mirrored. Expectation maximisation takes turns between positions and images, image by
image. It starts from grey images: the black borders that a crop brings in tell
positions roughly, and their known colour tells signs.

The idea to register before decoding is that of Luo et al., "Fusion-Denoising Attack on
InstaHide with Data Augmentation" (arXiv:2105.07754), who train networks for it.
"""

from __future__ import annotations

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
DOUBT = (0.8, 0.06)  # variance of the images' errors, at the start and at the end
CORRELATED = (10.0, 5.0)  # pixels that count as one when positions are compared
COMPARED = 3  # every third pixel is compared: neighbours say much the same
ERROR_VARIANCE = 0.005  # of rounding, and of what crops and borders leave

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def positions(augmentation: Augmentation, height: int, width: int) -> Indices:
    """List everything that augmentation can do to an image.

    Args:
        augmentation: of the run.
        height: H.
        width: W.

    Returns:
        i64[Q,H*W]: for each position, which pixel every pixel shows; -1 is the black
        of the padding.
    """
    padding, found = augmentation.padding, []
    for down in range(-padding, padding + 1):
        for right in range(-padding, padding + 1):
            for mirrored in (False, True) if augmentation.flip else (False,):
                row = np.arange(height)[:, None] + down
                column = np.arange(width)[None]
                column = (width - 1 - column if mirrored else column) + right
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                found.append(np.where(inside, row * width + column, -1).ravel())
    return np.stack(found).astype(np.int64)


@dataclass(frozen=True)
class Registered:
    """What was decoded.

    Attributes:
        images: f32[n,C,H,W], normalised, each perhaps mirrored as a whole.
        positions: i64[E,p], the most likely ones, as rows of `positions`.
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
        mixtures: the encodings, on the CPU; links and coefficients may come from an
            auditor or from an attack that found them.
        statistics: constants that images are normalised with; they tell what black is.
        augmentation: of the run.
        folded: whether signs were flipped.
        rng: order in which images are improved.
        sweeps: over all images.
        progress: told how far it is.
    """
    state = _State.of(mixtures, statistics, augmentation, folded)
    for sweep in range(sweeps):
        done = sweep / max(1, sweeps - 1)
        state.doubt = DOUBT[0] * (DOUBT[1] / DOUBT[0]) ** done
        state.correlated = CORRELATED[0] * (CORRELATED[1] / CORRELATED[0]) ** done
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


@dataclass
class _State:
    """Images, and what is expected of each encoding. All tensors are numpy's.

    Attributes:
        values: f32[E,D], encodings or magnitudes.
        weights: f32[E,p], coefficients.
        noise: f32[E], variance of the unknown public part.
        members: of each image, encodings and places in them, i64[2,M].
        sources: i64[Q,P], see `positions`.
        black: f32[C], what the padding is after normalisation.
        brightest: f32[C], white over black.
        folded: whether signs are unknown.
        images: f32[n,C,P], over black.
        shown: f32[E,p,D], what each component is expected to look like.
        expected: f32[E,D], of the whole encoding.
        best: i64[E,p], most likely positions.
        doubt: variance of the images' errors.
        correlated: pixels that count as one.
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
    shown: Floats
    expected: Floats
    best: Indices
    doubt: float = DOUBT[0]
    correlated: float = CORRELATED[0]

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
        grey = np.repeat((mean / std)[:, None], height * width, 1)
        images = np.repeat(grey[None], count, 0)
        typical = _moved(grey, sources).mean(0)
        shown = np.broadcast_to(typical, (*weights.shape, len(typical))).copy()
        blackness = np.repeat(-mean / std, height * width)
        expected = weights.sum(1)[:, None] * (typical + blackness)
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
            shown=shown,
            expected=expected.astype(np.float32),
            best=np.zeros(weights.shape, np.int64),
        )

    def improve(self, image: int) -> None:
        """Find where the encodings show an image, then what it looks like."""
        encoding, place = self.members[image]
        if not len(encoding):
            return
        weights = self.weights[encoding, place]
        own = self.expected[encoding] - weights[:, None] * self.shown[encoding, place]
        spread = np.square(self.weights[encoding]).sum(1) * np.float32(self.doubt)
        noise = self.noise[encoding] + spread
        moved = _moved(self.images[image], self.sources)
        seen = (self.values[encoding], own, weights, noise, moved)
        cost = self._misfits(encoding, own, weights, noise, moved)
        chosen, posterior = _weighed(cost / (2 * self.correlated * noise[:, None]))
        self.best[encoding, place] = chosen[:, 0]
        total, certainty = compiled(collect)(
            *seen, self.sources, chosen, posterior, self.folded
        )
        # A pixel that nothing tells of is grey: 0 with variance 1 after normalisation.
        solved = (total.reshape(self.images[image].shape) - self.black[:, None]) / (
            certainty + 1
        )
        self.images[image] = np.clip(solved, 0, self.brightest[:, None])
        moved = _moved(self.images[image], self.sources)
        shown = np.einsum("ec,ecd->ed", posterior, moved[chosen])
        self.shown[encoding, place] = shown
        self.expected[encoding] = own + weights[:, None] * shown

    def _misfits(
        self,
        encoding: Indices,
        rest: Floats,
        weights: Floats,
        noise: Floats,
        moved: Floats,
    ) -> Floats:
        """Compare positions, by some of the pixels."""
        some = slice(None, None, COMPARED if moved.shape[1] > 1024 else 1)
        cost: Floats = compiled(misfits)(
            np.ascontiguousarray(self.values[encoding, some]),
            np.ascontiguousarray(rest[:, some]),
            weights,
            noise,
            np.ascontiguousarray(moved[:, some]),
            self.folded,
        )
        return np.asarray(cost * (moved.shape[1] / len(range(moved.shape[1])[some])))


def _moved(image: Floats, sources: Indices) -> Floats:
    """Return f32[C,P] in every position, f32[Q,C*P]; black is 0."""
    framed = np.concatenate([image, np.zeros((len(image), 1), np.float32)], 1)
    moved = framed[:, sources].transpose(1, 0, 2)  # (Q, C, P)
    return np.ascontiguousarray(moved.reshape(len(sources), -1))


def _weighed(cost: Floats) -> tuple[Indices, Floats]:
    """Return the likeliest positions i64[M,c], best first, and their probabilities."""
    count = min(CANDIDATES, cost.shape[1])
    chosen = np.argsort(cost, 1)[:, :count]
    left = np.take_along_axis(cost, chosen, 1)
    posterior = np.exp(left[:, :1] - left)
    posterior /= posterior.sum(1, keepdims=True)
    return chosen.astype(np.int64), posterior.astype(np.float32)
