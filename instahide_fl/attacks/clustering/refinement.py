"""Links, public parts and images, each from the other two, in turn.

Source: our own. The decoded images tell which links fit (the likelihood of an encoding,
summed over its unknown signs); a link that fits lets the public images be found; and
these leave less noise for the next decoding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from instahide_fl.attacks.attack import Advance
from instahide_fl.attacks.clustering.public_search import PublicSearch
from instahide_fl.attacks.decoding.least_squares import alternating_minimisation
from instahide_fl.attacks.decoding.mixtures import Mixtures

SWEEPS = 2  # over the slots of an encoding
HYPOTHESES = 3  # kept for each encoding
PRIOR = 30.0  # nats for a standard deviation of the embedding's scores
KEPT = 0.7  # of the encodings, those whose best hypothesis leads most
DECODING_ROUNDS = 8
FIRST_ERROR = 0.3  # variance of errors of the first images, per pixel
LEAST_ERROR = 0.02
UNEXPLAINED = 0.02  # variance beside public images and errors
JUDGED_PIXELS = 1024  # at most, when many hypotheses are compared
EXAMINED = 300  # encodings, to compare images as a whole
TOGETHER = 500  # encodings


@dataclass(frozen=True)
class Problem:
    """Encodings whose labels tell the coefficient of each private image.

    Attributes:
        encodings: f32[M,C,H,W], normalised.
        classes: i64[M,p], of the private images.
        coefficients: f32[M,p].
        prior: f32[M,p,n], how much each slot looks like each image by the embedding,
            standardised; minus infinity for images of other classes.
        image_classes: i64[n].
        public_spread: sum of squares of public coefficients over the square of their
            sum, on average; 0 without public images.
        search: None if the pool is not searched.
        largest: f32[C], magnitude of a pixel.
    """

    encodings: Tensor
    classes: Tensor
    coefficients: Tensor
    prior: Tensor
    image_classes: Tensor
    public_spread: float
    search: PublicSearch | None
    largest: Tensor

    @cached_property
    def magnitudes(self) -> Tensor:
        """f32[M,D]: absolute values of pixels."""
        return self.encodings.flatten(1).abs()

    @property
    def rest(self) -> Tensor:
        """f32[M]: sum of the public coefficients."""
        return (1 - self.coefficients.sum(1)).clamp_min(0)

    @property
    def public_variance(self) -> Tensor:
        """f32[M]: of a pixel of the public part, all of it unknown."""
        return self.public_spread * self.rest.square()

    def some(self, rows: Tensor) -> Problem:
        """Return the problem of some of the encodings, i64[m]."""
        return replace(
            self,
            encodings=self.encodings[rows],
            classes=self.classes[rows],
            coefficients=self.coefficients[rows],
            prior=self.prior[rows],
        )

    def mixtures(
        self, links: Tensor, rows: Tensor, public: Tensor | None, unknown: Tensor
    ) -> Mixtures:
        """Return some of the encodings as the decoders take them.

        Args:
            links: i64[M,p], the image of each slot.
            rows: i64[m], encodings to take.
            public: f32[M,D], known part; None if nothing is.
            unknown: f32[M], variance of the rest.
        """
        shape = self.encodings.shape[1:]
        return Mixtures(
            self.encodings[rows],
            links[rows],
            self.coefficients[rows],
            len(self.image_classes),
            public=None if public is None else public[rows].view(-1, *shape),
            unknown_variance=unknown[rows],
        )


@dataclass(frozen=True)
class Refined:
    """What refinement arrived at.

    Attributes:
        images: f32[n,C,H,W], normalised.
        links: i64[M,p].
        residual: f32[M], mean square of what is left of each encoding's pixels.
        margins: f32[M], by how much the best hypothesis leads.
        evidence: how surely images were found at all, see `evidence`.
    """

    images: Tensor
    links: Tensor
    residual: Tensor
    margins: Tensor
    evidence: float


def refine(
    problem: Problem,
    images: Tensor,
    links: Tensor,
    held_out: Tensor,
    rounds: int,
    rng: np.random.Generator,
    advance: Advance,
) -> Refined:
    """Alternate between links, public parts and images.

    Args:
        problem: the encodings.
        images: f32[n,C,H,W], to start from, decoded without those held out.
        links: i64[M,p], by clustering.
        held_out: i64[m], encodings that only the last decoding uses: until then they
            tell whether the images mean anything.
        rounds: how often.
        rng: draws what is compared.
        advance: told the rounds.
    """
    if problem.search is not None:
        images, _ = in_the_better_sign(problem, images, links)
    error, sure = FIRST_ERROR, 0.0
    by_clustering = links
    usable = torch.ones(len(links), dtype=torch.bool)
    usable[held_out] = False
    found = Refined(images, links, problem.public_variance, torch.zeros(len(links)), 0)
    for number in range(rounds):
        flat = found.images.flatten(1)
        last = number == rounds - 1
        if last:
            some = problem.some(held_out)
            sure = evidence(some, flat, by_clustering[held_out], error, rng)
        hypotheses, scores = likely_links(problem, flat, found.links, error)
        links, margins, residual, public = _judge(
            problem, flat, hypotheses, scores, error
        )
        kept = torch.where(usable, margins, float("-inf"))
        share = 1.0 if last else KEPT * float(usable.float().mean())
        rows = _leading(kept, share)
        decoded = alternating_minimisation(
            problem.mixtures(links, rows, public, residual),
            found.images,
            problem.largest,
            DECODING_ROUNDS,
        )
        found = Refined(decoded, links, residual, margins, sure)
        spread = problem.coefficients.square().sum(1)[rows].median()
        error = max(LEAST_ERROR, float(residual[rows].median() / spread))
        advance(number + 1, rounds)
    return found


def evidence(
    problem: Problem,
    images: Tensor,
    links: Tensor,
    error: float,
    rng: np.random.Generator,
) -> float:
    """Return how much better encodings fit their own image than another of its class.

    In standard errors: of meaningless images it is near 0, and rarely above 3.

    Args:
        problem: encodings that the images were not decoded from.
        images: f32[n,D].
        links: i64[M,p], found without the images; the last slot is the largest.
        error: variance of the images' errors.
        rng: draws the other image.
    """
    own = links[:, -1]
    other = own.clone()
    for row, image in enumerate(own.tolist()):
        same = problem.image_classes == problem.image_classes[image]
        same[image] = False
        if bool(same.any()):
            other[row] = int(rng.choice(same.nonzero()[:, 0].numpy()))
    weights = problem.coefficients
    variance = problem.public_variance + error * weights.square().sum(1) + UNEXPLAINED
    swapped = torch.cat([links[:, :-1], other[:, None]], 1)
    fits = [
        folded_likelihood(
            problem.magnitudes, _private(problem, images, one), variance[:, None]
        )
        for one in (links, swapped)
    ]
    gain = (fits[0] - fits[1])[own != other].double()
    if len(gain) < 2:
        return 0.0
    return float(gain.mean() / (gain.std() / len(gain) ** 0.5).clamp_min(1e-12))


def _leading(margins: Tensor, share: float) -> Tensor:
    """Return the rows of the largest margins, ascending."""
    order = margins.argsort(descending=True, stable=True)
    return order[: max(1, round(share * len(margins)))].sort().values


def likely_links(
    problem: Problem, images: Tensor, links: Tensor, error: float
) -> tuple[Tensor, Tensor]:
    """Find the most likely images of each encoding, by a beam search over its slots.

    Every slot in turn takes every image of its class, given the other slots.

    Args:
        problem: the encodings.
        images: f32[n,D].
        links: i64[M,p], to start from.
        error: variance of the images' errors.

    Returns:
        Links of the best hypotheses, i64[M,h,p], best first, and their scores f32[M,h]
        in nats; minus infinity where there are fewer.
    """
    pixels = images.shape[1]
    # Every third pixel or so: neighbours tell much the same.
    step = max(1, pixels // JUDGED_PIXELS)
    seen = images[:, ::step].contiguous()
    magnitudes = problem.magnitudes[:, ::step].contiguous()
    beam = links[:, None]
    scores = torch.zeros(len(links), 1)
    for slot in SWEEPS * list(range(links.shape[1])):
        grown = torch.zeros(len(links), HYPOTHESES, links.shape[1], dtype=torch.int64)
        values = torch.full(grown.shape[:2], float("-inf"))
        for rows in _by_class(problem.classes[:, slot]):
            one = _Beam(problem, seen, magnitudes, beam, scores, rows, slot)
            grown[rows], values[rows] = one.grown(error, pixels / seen.shape[1])
        beam, scores = grown, values
    return beam, scores


def _by_class(classes: Tensor) -> list[Tensor]:
    """Return rows i64[m] class by class, few at a time."""
    return [
        part
        for one in torch.unique(classes)
        for part in (classes == one).nonzero()[:, 0].split(TOGETHER // 4)
    ]


@dataclass(frozen=True)
class _Beam:
    """One slot of some encodings, all of one class, with the hypotheses so far."""

    problem: Problem
    images: Tensor
    magnitudes: Tensor
    beam: Tensor
    scores: Tensor
    rows: Tensor
    slot: int

    def grown(self, error: float, repeat: float) -> tuple[Tensor, Tensor]:
        """Return the best hypotheses with this slot free, and their scores."""
        problem, rows = self.problem, self.rows
        own = problem.classes[rows[0], self.slot]
        candidates = (problem.image_classes == own).nonzero()[:, 0]
        weights = problem.coefficients[rows]
        others = self.beam[rows].clone()  # R,h,p
        kept = torch.ones(weights.shape[1], dtype=torch.bool)
        kept[self.slot] = False
        base = torch.zeros(len(rows), others.shape[1], self.images.shape[1])
        prior = torch.zeros(len(rows), others.shape[1])
        for place in kept.nonzero()[:, 0].tolist():
            base += weights[:, None, place, None] * self.images[others[:, :, place]]
            prior += problem.prior[rows, place].gather(1, others[:, :, place])
        free = weights[:, self.slot, None, None] * self.images[candidates]
        mixed = base[:, :, None] + free[:, None]  # R,h,candidates,pixels
        variance = (
            problem.public_variance[rows]
            + error * weights.square().sum(1)
            + UNEXPLAINED
        )
        fit = folded_likelihood(
            self.magnitudes[rows, None, None], mixed, variance[:, None, None, None]
        )
        own_prior = problem.prior[rows, self.slot][:, candidates]
        value = repeat * fit + PRIOR * (prior[:, :, None] + own_prior[:, None])
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

    The law of |m + noise|, the folded normal, but for what does not depend on m.
    """
    lean = (magnitudes * mixed / variance).abs()
    each = lean + functional.softplus(-2 * lean) - mixed.square() / (2 * variance)
    return each.sum(-1)


def _judge(
    problem: Problem, images: Tensor, hypotheses: Tensor, scores: Tensor, error: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Choose a hypothesis for each encoding.

    Returns:
        Links i64[M,p], margins f32[M], residuals f32[M] and public parts f32[M,D].
    """
    rows = torch.arange(len(hypotheses))
    if problem.search is None:
        links, margins = hypotheses[:, 0], scores[:, 0] - scores[:, 1]
        mixed = _private(problem, images, links)
        if problem.public_spread:
            return links, margins, problem.public_variance + UNEXPLAINED, None
        left = (problem.magnitudes - mixed.abs()).square().mean(1)
        return links, margins, left + LEAST_ERROR**2, None
    left = torch.stack(
        [
            _explain(problem, images, hypotheses[:, number], error)[0]
            for number in range(hypotheses.shape[1])
        ],
        1,
    ).masked_fill(~scores.isfinite(), float("inf"))
    ordered = left.topk(2, 1, largest=False)
    links = hypotheses[rows, ordered.indices[:, 0]]
    margins = (ordered.values[:, 1] / ordered.values[:, 0]).log()
    residual, public = _explain(problem, images, links, error)
    return links, margins, residual + LEAST_ERROR**2, public


def _private(problem: Problem, images: Tensor, links: Tensor) -> Tensor:
    mixed = torch.zeros(len(links), images.shape[1])
    for weight, link in zip(problem.coefficients.T, links.T, strict=True):
        mixed += weight[:, None] * images[link]
    return mixed


def _explain(
    problem: Problem, images: Tensor, links: Tensor, error: float
) -> tuple[Tensor, Tensor]:
    """Search the public part; return residuals f32[M] and that part f32[M,D]."""
    assert problem.search is not None
    left, parts = [], []
    magnitudes = problem.magnitudes
    for rows in torch.split(torch.arange(len(links)), TOGETHER):
        weights = problem.coefficients[rows]
        mixed = torch.zeros(len(rows), images.shape[1])
        for weight, link in zip(weights.T, links[rows].T, strict=True):
            mixed += weight[:, None] * images[link]
        found = problem.search.find(
            magnitudes[rows],
            mixed,
            problem.rest[rows],
            error * weights.square().sum(1),
        )
        off = magnitudes[rows] - (mixed + found.total).abs()
        left.append(off.square().mean(1))
        parts.append(found.total)
    return torch.cat(left), torch.cat(parts)


def in_the_better_sign(
    problem: Problem, images: Tensor, links: Tensor
) -> tuple[Tensor, float]:
    """Return the images or their negative, whichever public images go with better.

    Public images come in one sign only, so they tell that of the private ones.

    Args:
        problem: the encodings, with a pool to search.
        images: f32[n,C,H,W].
        links: i64[M,p].

    Returns:
        The images, and the mean square of what is left of the encodings with the
        largest private part.
    """
    most = problem.coefficients.sum(1).argsort(descending=True, stable=True)[:EXAMINED]
    some = problem.some(most)
    left = [
        float(
            _explain(some, sign * images.flatten(1), links[most], FIRST_ERROR)[0].mean()
        )
        for sign in (1, -1)
    ]
    return (images, left[0]) if left[0] <= left[1] else (-images, left[1])
