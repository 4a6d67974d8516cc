"""Scoring which candidates an attack takes to be in a client's encodings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from instahide_fl.attacks.base import MixtureGuess
from instahide_fl.audit.mixed_candidates import MixedCandidates
from instahide_fl.audit.scoring.candidate_scores import CandidateScores, RankScores
from instahide_fl.audit.scoring.ground_truth import GroundTruth, RecoveredClient
from instahide_fl.audit.scoring.membership_scores import MembershipScores
from instahide_fl.metrics.candidates import SIZES
from instahide_fl.metrics.membership import membership_metrics
from instahide_fl.transcript.truth import ClientTruth

TOGETHER = "encodings"
ONE_ENCODING = "one encoding"


def score_mixtures(
    clients: Sequence[RecoveredClient], ground_truth: GroundTruth
) -> MembershipScores | None:
    """Hold scores of candidates against the images in each client's encodings.

    Members are the private images in the encodings that were looked at, each scored for
    its client. Images that nobody trained on are divided among the clients, so that
    each counts once.

    Args:
        clients: What was recovered of each client, beside its truth.
        ground_truth: What the clients hid.

    Returns:
        The figures; None if the attack asked another question.
    """
    guesses = [
        (client.recovered.client, client.truths, client.recovered.mixture)
        for client in clients
        if client.recovered.mixture is not None
    ]
    if not guesses or (mixed := ground_truth.mixed_candidates) is None:
        return None
    members, others, ranks, same_class, images = [], [], [], [], set()
    for number, (client, truths, guess) in enumerate(guesses):
        private = torch.cat([truth.key.private_index for truth in truths])
        rows = private[guess.encodings]
        position = mixed.located(client, torch.unique(rows))
        members.append(guess.together[position])
        others.append(guess.together[mixed.others[number :: len(guesses)]])
        strongest = rows.gather(1, _strongest(truths, guess)[:, None])[:, 0]
        true = mixed.located(client, strongest)
        ranks.append(_ranks(guess, true, mixed.others))
        same_class.append(_same_class(mixed, true))
        images |= {(client, row) for row in strongest.tolist()}
    figures = membership_metrics(torch.cat(members), torch.cat(others))
    return MembershipScores(
        decided_by=TOGETHER,
        metrics={TOGETHER: figures},
        by_round={},
        by_client={},
        test_accuracy=None,
        chance_bound=None,
        is_at_chance=False,
        identification=_identification(
            torch.cat(ranks), torch.cat(same_class), len(mixed.others), len(images)
        ),
    )


def _strongest(truths: Sequence[ClientTruth], guess: MixtureGuess) -> Tensor:
    """Return i64[E], which private image of each encoding weighs most."""
    weights = torch.cat([truth.key.coefficients for truth in truths])
    private = truths[0].key.private_index.shape[1]
    return weights[guess.encodings, :private].argmax(dim=1)


def _ranks(guess: MixtureGuess, true: Tensor, others: Tensor) -> Tensor:
    """Return i64[E,S], how many others score as high, for each number of candidates."""
    score = guess.scores.gather(1, true[:, None])  # [E,1]
    as_high = guess.scores[:, others] >= score  # [E,N]
    counts = [as_high[:, : size - 1].sum(dim=1) for size in _sizes(len(others))]
    return torch.stack(counts, dim=1) if counts else torch.empty(len(true), 0)


def _sizes(num_others: int) -> list[int]:
    return [size for size in SIZES if size - 1 <= num_others]


def _same_class(mixed: MixedCandidates, true: Tensor) -> Tensor:
    """Return i64[E,S], how many others are of the true image's class."""
    targets = mixed.candidates.targets
    same = targets[true][:, None] == targets[mixed.others]  # [E,N]
    counts = [same[:, : size - 1].sum(dim=1) for size in _sizes(len(mixed.others))]
    return torch.stack(counts, dim=1) if counts else torch.empty(len(true), 0)


def _identification(
    ranks: Tensor, same_class: Tensor, num_others: int, num_images: int
) -> CandidateScores | None:
    """Return how often one encoding puts its strongest image first."""
    sizes = _sizes(num_others)
    if not sizes:
        return None
    return CandidateScores(
        num_others,
        [
            RankScores(
                size=size,
                ranks={ONE_ENCODING: ranks[:, column]},
                in_class={ONE_ENCODING: same_class[:, column]},
                choices=torch.ones(len(ranks), dtype=torch.int64),
                num_images=num_images,
            )
            for column, size in enumerate(sizes)
        ],
    )
