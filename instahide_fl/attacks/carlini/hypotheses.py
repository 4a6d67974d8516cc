"""The likeliest images of an encoding, given what images look like so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from instahide_fl.attacks.carlini.decoding_problem import DecodingProblem
from instahide_fl.attacks.carlini.matching_pursuit import PublicPart

SWEEPS = 2  # over the label entries of an encoding
BEAM_WIDTH = 3  # hypotheses for each encoding
PRIOR_WEIGHT = 30.0  # nats for a standard deviation of the scores of clustering
# Neighbouring pixels of public images that were not found are alike: where these are
# what remains, a pixel tells less than it would if pixels were independent.
TRUSTED_VARIANCE, MIN_TRUST = 0.005, 0.1
MAX_PIXELS = 1024  # that are compared, roughly
ENCODINGS_PER_BLOCK = 125  # limits memory


def likely_links(
    problem: DecodingProblem,
    images: Tensor,
    links: Tensor,
    errors: Tensor,
    public: PublicPart,
) -> tuple[Tensor, Tensor]:
    """Find the most likely images of each encoding by a beam search.

    Every label entry in turn takes every image of its class, given the other entries.

    Args:
        problem: The encodings.
        images: f32[n,D], what images look like so far.
        links: i64[M,p], the links to start from.
        errors: f32[n], the variance of a pixel's error in each image.
        public: What is known of the public part.

    Returns:
        Links of the best hypotheses, i64[M,h,p], best first, and their scores f32[M,h]
        in nats; minus infinity where there are fewer.
    """
    num_pixels = images.shape[1]
    # Every third pixel or so: neighbours tell much the same.
    step = max(1, num_pixels // MAX_PIXELS)
    compared = images[:, ::step].contiguous()  # [n,D] -> [n,P]
    magnitudes = problem.magnitudes[:, ::step].contiguous()  # [M,D] -> [M,P]
    public_pixels = public.total[:, ::step].contiguous()  # [M,D] -> [M,P]
    beam = links[:, None]  # [M,p] -> [M,1,p]
    scores = torch.zeros(len(links), 1)
    for entry in SWEEPS * list(range(links.shape[1])):
        extended = torch.zeros(len(links), BEAM_WIDTH, links.shape[1]).long()
        values = torch.full(extended.shape[:2], float("-inf"))
        for rows in _by_class(problem.classes[:, entry]):
            block = _Beam(
                problem=problem,
                images=compared,
                magnitudes=magnitudes,
                public=public_pixels,
                public_variance=public.variance,
                beam=beam,
                scores=scores,
                rows=rows,
                entry=entry,
            )
            extended[rows], values[rows] = block.extended(
                errors, num_pixels / compared.shape[1]
            )
        beam, scores = extended, values
    return beam, scores


def _by_class(classes: Tensor) -> list[Tensor]:
    """Return rows i64[m] class by class, few at a time."""
    return [
        block
        for label in torch.unique(classes)
        for block in torch.split(
            (classes == label).nonzero()[:, 0], ENCODINGS_PER_BLOCK
        )
    ]


@dataclass(frozen=True)
class _Beam:
    """One label entry of R encodings, all of one class, with the hypotheses so far.

    Attributes:
        problem: All M encodings.
        images: f32[n,P], the pixels that are compared.
        magnitudes: f32[M,P], the absolute values of the encodings' pixels.
        public: f32[M,P], the known public part.
        public_variance: f32[M], the variance of a pixel of the unknown public part.
        beam: i64[M,h,p], links of the hypotheses.
        scores: f32[M,h], minus infinity where there is no hypothesis.
        rows: i64[R], the encodings.
        entry: The label entry that is free, 0..p-1.
    """

    problem: DecodingProblem
    images: Tensor
    magnitudes: Tensor
    public: Tensor
    public_variance: Tensor
    beam: Tensor
    scores: Tensor
    rows: Tensor
    entry: int

    def extended(self, errors: Tensor, repeat: float) -> tuple[Tensor, Tensor]:
        """Return the best hypotheses with this entry free, and their scores.

        Args:
            errors: f32[n], the variance of a pixel's error in each image.
            repeat: The number of pixels that each compared pixel stands for.
        """
        problem, rows = self.problem, self.rows
        label = problem.classes[rows[0], self.entry]
        candidates = (problem.image_classes == label).nonzero()[:, 0]
        weights = problem.coefficients[rows]
        others = self.beam[rows].clone()  # [M,h,p] -> [R,h,p]
        fixed = torch.ones(weights.shape[1], dtype=torch.bool)
        fixed[self.entry] = False
        base, prior = self._fixed_part(weights, others, fixed)
        free = weights[:, self.entry, None, None] * self.images[candidates]  # [R,c,P]
        mixed = base[:, :, None] + free[:, None]  # [R,h,1,P] + [R,1,c,P] -> [R,h,c,P]
        spread = self.public_variance[rows]
        squares = weights.square()
        fixed_variance = (squares[:, None] * errors[others] * fixed).sum(2)  # [R,h]
        variance = (
            (spread[:, None] + fixed_variance)[:, :, None]
            + (squares[:, self.entry, None] * errors[candidates])[:, None]
        )[..., None]  # [R,h,1] + [R,1,c] -> [R,h,c,1]
        # [R,1,1,P] against [R,h,c,P], summed over P -> [R,h,c]
        fit = folded_likelihood(self.magnitudes[rows, None, None], mixed, variance)
        entry_prior = problem.prior[rows, self.entry][:, candidates]
        trust = (TRUSTED_VARIANCE / spread).clamp(MIN_TRUST, 1)[:, None, None]
        value = repeat * trust * fit + PRIOR_WEIGHT * (
            prior[:, :, None] + entry_prior[:, None]
        )
        repeated = self._repeated(others, fixed)
        value = value.masked_fill(repeated[:, :, None], -torch.inf)
        return self._best(value, others, candidates)

    def _fixed_part(
        self, weights: Tensor, others: Tensor, fixed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what the other entries and the public part add, f32[R,h,P].

        And the prior of the other entries, f32[R,h].
        """
        rows = self.rows
        base = self.public[rows, None].repeat(1, others.shape[1], 1)  # [R,P] -> [R,h,P]
        prior = torch.zeros(len(rows), others.shape[1])
        # Summed entry by entry, ascending: float sums depend on the order.
        for entry in fixed.nonzero()[:, 0].tolist():
            base += weights[:, None, entry, None] * self.images[others[:, :, entry]]
            prior += self.problem.prior[rows, entry].gather(1, others[:, :, entry])
        return base, prior

    def _best(
        self, value: Tensor, others: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the hypotheses of the highest values, padded to the beam's width."""
        # [R,h,c] -> [R,h*c]: hypotheses compete with all candidates of each.
        best = value.flatten(1).topk(min(BEAM_WIDTH, value[0].numel()), 1)
        parent, choice = best.indices // len(candidates), best.indices % len(candidates)
        links = others.gather(1, parent[:, :, None].expand(-1, -1, others.shape[2]))
        links[:, :, self.entry] = candidates[choice]
        short = BEAM_WIDTH - links.shape[1]
        return (
            functional.pad(links, (0, 0, 0, short)),
            functional.pad(best.values, (0, short), value=float("-inf")),
        )

    def _repeated(self, others: Tensor, fixed: Tensor) -> Tensor:
        """Mark hypotheses that differ from an earlier one only in this entry.

        And those that do not exist. The shape is that of the beam, bool[R,h].
        """
        rest = others[:, :, fixed]
        same = (rest[:, :, None] == rest[:, None]).all(3)  # [R,h,h]
        earlier = torch.ones_like(same[0]).tril(-1)
        absent = ~self.scores[self.rows].isfinite()
        return (same & earlier).any(2) | absent


def folded_likelihood(magnitudes: Tensor, mixed: Tensor, variance: Tensor) -> Tensor:
    """Return the log-likelihood of magnitudes, summed over the last axis.

    The distribution of |m + noise| is the folded normal one. Terms that neither m nor
    the variance changes are left out.

    Args:
        magnitudes: f32[...,P], the absolute values of pixels.
        mixed: f32[...,P], the expected pixels m.
        variance: f32[...,1], the variance of the noise.
    """
    # log(2 cosh z) as |z| + log(1 + exp(-2|z|)), which does not overflow.
    argument = (magnitudes * mixed / variance).abs()
    size = (magnitudes.square() + mixed.square()) / (2 * variance)
    terms = argument + functional.softplus(-2 * argument) - size - variance.log() / 2
    return terms.sum(-1)
