"""Rank a pool of public images of any size, in bounded memory.

Every image and every encoding becomes a vector of length 1; the score of a pair is the
inner product. The pool is read once, a chunk at a time, and the best images so far are
remembered, so the result is the same as that of sorting all scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from instahide_fl.attacks.base import ProgressCallback, RankedComponents
from instahide_fl.data.pool import MixingPool

VALUES_PER_CHUNK = 2**22  # pixel values of the pool in memory at a time: 16 MB
ENCODINGS_PER_BLOCK = 1024  # encodings scored against a chunk at a time

Embedding: TypeAlias = Callable[[Tensor], Tensor]
"""A function of normalised images f32[n,C,H,W] to vectors f32[n,d] of length 1."""


@dataclass(frozen=True)
class Comparison:
    """How encodings are compared with public images.

    Attributes:
        queries: a vector of length 1 for each encoding, f32[E,d].
        embed: The function that gives the vectors of public images.
    """

    queries: Tensor
    embed: Embedding

    def scores(self, block: slice, public: Tensor) -> Tensor:
        """Return the scores f32[e,c] of a block of encodings.

        Args:
            block: The rows of the encodings.
            public: The vectors of public images, f32[c,d].
        """
        return self.queries[block] @ public.T


def rank_pool(
    comparison: Comparison, pool: MixingPool, top: int, progress: ProgressCallback
) -> RankedComponents:
    """Find the public images that resemble each encoding most.

    Args:
        comparison: The way to compare E encodings with public images.
        pool: The N public images.
        top: m, the number of images to return; of a smaller pool, all are returned.
        progress: The callback for progress, in images of the pool.
    """
    top, count = min(top, len(pool)), len(comparison.queries)
    scores, index = torch.empty(count, 0), torch.empty(count, 0, dtype=torch.int64)
    starts = range(0, count, ENCODINGS_PER_BLOCK)
    blocks = [slice(start, start + ENCODINGS_PER_BLOCK) for start in starts]
    chunk = max(1, VALUES_PER_CHUNK // pool.images[0].numel())
    for start in range(0, len(pool), chunk):
        images = pool.statistics.normalise(pool.images[start : start + chunk])
        public = comparison.embed(images)
        best = [
            _merge(scores[b], index[b], comparison.scores(b, public), start, top)
            for b in blocks
        ]
        scores = torch.cat([block_scores for block_scores, _ in best])
        index = torch.cat([block_index for _, block_index in best])
        progress(min(start + chunk, len(pool)), len(pool))
    return RankedComponents(index, scores, len(pool))


def correlation_embedding(ignore_signs: bool) -> Embedding:
    """Return an embedding whose inner product is the Pearson correlation of pixels.

    Args:
        ignore_signs: Whether absolute values are compared.
    """

    def embed(images: Tensor) -> Tensor:
        pixels = images.flatten(1)  # [n,C,H,W] -> [n,C*H*W]
        if ignore_signs:
            pixels = pixels.abs()
        return F.normalize(pixels - pixels.mean(dim=1, keepdim=True))

    return embed


def _merge(
    best: Tensor, best_index: Tensor, chunk: Tensor, start: int, top: int
) -> tuple[Tensor, Tensor]:
    """Merge the scores of a chunk with the best ones of earlier chunks.

    Args:
        best: The best scores so far, f32[e,m].
        best_index: The images of the pool that reached them, i64[e,m].
        chunk: The scores of the chunk, f32[e,c].
        start: The number of the chunk's first image in the pool.
        top: The largest m to return.
    """
    chunk_best, column = chunk.topk(min(top, chunk.shape[1]), dim=1)
    scores = torch.cat([best, chunk_best], dim=1)
    index = torch.cat([best_index, column + start], dim=1)
    merged, order = scores.topk(min(top, scores.shape[1]), dim=1)
    return merged, index.gather(1, order)
