"""Ranking a pool of public images, of any size, in bounded memory.

Every image and every encoding becomes a vector of length 1; the score of a pair is
their inner product. The pool is read once, a chunk at a time, and the best so far are
kept, so the result is that of sorting all scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from instahide_fl.attacks.base import Advance, RankedComponents
from instahide_fl.data.pool import MixingPool

VALUES_PER_CHUNK = 2**22  # pixels of the pool in memory: 16 MB
ENCODINGS_PER_BLOCK = 1024  # scored against a chunk at a time

Embedding: TypeAlias = Callable[[Tensor], Tensor]
"""From normalised images f32[n,C,H,W] to vectors f32[n,d] of length 1."""


@dataclass(frozen=True)
class Comparison:
    """How encodings are compared with public images.

    Attributes:
        queries: f32[E,d], a vector of length 1 for each encoding.
        embed: gives the vectors of public images.
    """

    queries: Tensor
    embed: Embedding

    def scores(self, block: slice, public: Tensor) -> Tensor:
        """Return f32[e,c], of a block of encodings with public vectors f32[c,d]."""
        return self.queries[block] @ public.T


def rank_pool(
    comparison: Comparison, pool: MixingPool, top: int, advance: Advance
) -> RankedComponents:
    """Find the public images that resemble each encoding most.

    Args:
        comparison: of E encodings with public images.
        pool: N images.
        top: m, images wanted; a smaller pool gives all it has.
        advance: told how many images of the pool were read.
    """
    wanted, count = min(top, len(pool)), len(comparison.queries)
    scores, index = torch.empty(count, 0), torch.empty(count, 0, dtype=torch.int64)
    starts = range(0, count, ENCODINGS_PER_BLOCK)
    blocks = [slice(start, start + ENCODINGS_PER_BLOCK) for start in starts]
    chunk = max(1, VALUES_PER_CHUNK // pool.images[0].numel())
    for start in range(0, len(pool), chunk):
        images = pool.statistics.normalise(pool.images[start : start + chunk])
        public = comparison.embed(images)
        best = [
            _best(comparison.scores(b, public), start, scores[b], index[b], wanted)
            for b in blocks
        ]
        scores = torch.cat([one for one, _ in best])
        index = torch.cat([one for _, one in best])
        advance(min(start + chunk, len(pool)), len(pool))
    return RankedComponents(index, scores, len(pool))


def correlation_embedding(ignore_signs: bool) -> Embedding:
    """Return vectors whose inner product is the Pearson correlation of pixels.

    Args:
        ignore_signs: compare absolute values.
    """

    def embed(images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        if ignore_signs:
            pixels = pixels.abs()
        return F.normalize(pixels - pixels.mean(dim=1, keepdim=True))

    return embed


def _best(
    scores: Tensor, start: int, known: Tensor, known_index: Tensor, wanted: int
) -> tuple[Tensor, Tensor]:
    """Merge the scores of a chunk, f32[e,c], with the best f32[e,m] of earlier ones."""
    best, place = scores.topk(min(wanted, scores.shape[1]), dim=1)
    every = torch.cat([known, best], dim=1)
    index = torch.cat([known_index, place + start], dim=1)
    kept, order = every.topk(min(wanted, every.shape[1]), dim=1)
    return kept, index.gather(1, order)
