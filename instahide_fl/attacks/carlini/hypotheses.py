"""The likeliest images of an encoding, given what images look like so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from instahide_fl.attacks.carlini.decoding_problem import Problem
from instahide_fl.attacks.carlini.matching_pursuit import PublicPart

SWEEPS = 2  # over the slots of an encoding
HYPOTHESES = 3  # kept for each encoding
PRIOR = 30.0  # nats for a standard deviation of the scores of clustering
# Neighbouring pixels of public images that were not found are alike: where these are
# what is left, a pixel tells less than one of its own would.
TRUSTED_VARIANCE, MIN_TRUST = 0.005, 0.1
JUDGED_PIXELS = 1024  # at most
TOGETHER = 125  # encodings


def likely_links(
    problem: Problem,
    images: Tensor,
    links: Tensor,
    errors: Tensor,
    public: PublicPart,
) -> tuple[Tensor, Tensor]:
    """Find the most likely images of each encoding, by a beam search over its slots.

    Every slot in turn takes every image of its class, given the other slots.

    Args:
        problem: the encodings.
        images: f32[n,D].
        links: i64[M,p], to start from.
        errors: f32[n], variance of a pixel of each image's error.
        public: what is known of the public part.

    Returns:
        Links of the best hypotheses, i64[M,h,p], best first, and their scores f32[M,h]
        in nats; minus infinity where there are fewer.
    """
    pixels = images.shape[1]
    # Every third pixel or so: neighbours tell much the same.
    step = max(1, pixels // JUDGED_PIXELS)
    seen = images[:, ::step].contiguous()
    magnitudes = problem.magnitudes[:, ::step].contiguous()
    known = public.total[:, ::step].contiguous()
    beam = links[:, None]
    scores = torch.zeros(len(links), 1)
    for slot in SWEEPS * list(range(links.shape[1])):
        grown = torch.zeros(len(links), HYPOTHESES, links.shape[1], dtype=torch.int64)
        values = torch.full(grown.shape[:2], float("-inf"))
        for rows in _by_class(problem.classes[:, slot]):
            one = _Beam(
                problem,
                seen,
                magnitudes,
                known,
                public.variance,
                beam,
                scores,
                rows,
                slot,
            )
            grown[rows], values[rows] = one.grown(errors, pixels / seen.shape[1])
        beam, scores = grown, values
    return beam, scores


def _by_class(classes: Tensor) -> list[Tensor]:
    """Return rows i64[m] class by class, few at a time."""
    return [
        part
        for one in torch.unique(classes)
        for part in torch.split((classes == one).nonzero()[:, 0], TOGETHER)
    ]


@dataclass(frozen=True)
class _Beam:
    """One slot of some encodings, all of one class, with the hypotheses so far."""

    problem: Problem
    images: Tensor
    magnitudes: Tensor
    public: Tensor
    public_variance: Tensor
    beam: Tensor
    scores: Tensor
    rows: Tensor
    slot: int

    def grown(self, errors: Tensor, repeat: float) -> tuple[Tensor, Tensor]:
        """Return the best hypotheses with this slot free, and their scores."""
        problem, rows = self.problem, self.rows
        own = problem.classes[rows[0], self.slot]
        candidates = (problem.image_classes == own).nonzero()[:, 0]
        weights = problem.coefficients[rows]
        others = self.beam[rows].clone()  # R,h,p
        kept = torch.ones(weights.shape[1], dtype=torch.bool)
        kept[self.slot] = False
        base = self.public[rows, None].repeat(1, others.shape[1], 1)
        prior = torch.zeros(len(rows), others.shape[1])
        for place in kept.nonzero()[:, 0].tolist():
            base += weights[:, None, place, None] * self.images[others[:, :, place]]
            prior += problem.prior[rows, place].gather(1, others[:, :, place])
        free = weights[:, self.slot, None, None] * self.images[candidates]
        mixed = base[:, :, None] + free[:, None]  # R,h,candidates,pixels
        spread = self.public_variance[rows]
        squares = weights.square()
        known = (squares[:, None] * errors[others] * kept).sum(2)
        variance = (
            (spread[:, None] + known)[:, :, None]
            + (squares[:, self.slot, None] * errors[candidates])[:, None]
        )[..., None]  # R,h,candidates,1
        fit = folded_likelihood(self.magnitudes[rows, None, None], mixed, variance)
        own_prior = problem.prior[rows, self.slot][:, candidates]
        trust = (TRUSTED_VARIANCE / spread).clamp(MIN_TRUST, 1)[:, None, None]
        value = repeat * trust * fit + PRIOR * (prior[:, :, None] + own_prior[:, None])
        value = value.masked_fill(self._repeated(others, kept)[:, :, None], -torch.inf)
        best = value.flatten(1).topk(min(HYPOTHESES, value[0].numel()), 1)
        place, choice = best.indices // len(candidates), best.indices % len(candidates)
        found = others.gather(1, place[:, :, None].expand(-1, -1, others.shape[2]))
        found[:, :, self.slot] = candidates[choice]
        short = HYPOTHESES - found.shape[1]
        return (
            functional.pad(found, (0, 0, 0, short)),
            functional.pad(best.values, (0, short), value=float("-inf")),
        )

    def _repeated(self, others: Tensor, kept: Tensor) -> Tensor:
        """Mark hypotheses that differ from an earlier one only in this slot."""
        rest = others[:, :, kept]
        same = (rest[:, :, None] == rest[:, None]).all(3)
        earlier = torch.ones_like(same[0]).tril(-1)
        absent = ~self.scores[self.rows].isfinite()
        return (same & earlier).any(2) | absent


def folded_likelihood(magnitudes: Tensor, mixed: Tensor, variance: Tensor) -> Tensor:
    """Return the logarithm of how likely magnitudes are, summed over the last axis.

    The law of |m + noise|, the folded normal, but for what neither m nor the variance
    changes.
    """
    lean = (magnitudes * mixed / variance).abs()
    size = (magnitudes.square() + mixed.square()) / (2 * variance)
    each = lean + functional.softplus(-2 * lean) - size - variance.log() / 2
    return each.sum(-1)
