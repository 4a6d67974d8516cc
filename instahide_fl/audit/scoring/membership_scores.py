"""Scoring who an attack takes for members of the training set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instahide_fl.attacks.base import ClientScores, MembershipGuess
from instahide_fl.audit.membership import Membership
from instahide_fl.audit.scoring.candidate_scores import CandidateScores
from instahide_fl.metrics.membership import FALSE_POSITIVE_RATES, membership_metrics

AUC_MARGIN = 0.05
"""Area under the ROC curve above one half that counts as a leak, at least."""
SIGNIFICANCE = 0.001
"""Probability by chance of figures that count as a leak, at most."""


@dataclass(frozen=True)
class MembershipScores:
    """How well members were told from held-out images.

    Attributes:
        decided_by: The name of the score that is reported first.
        metrics: The figures of each score, as `membership_metrics` returns them.
        by_round: The figures of each attacked round's global model alone.
        by_client: The figures of each score that tells clients apart: images of a
            client against held-out ones, by that client's score; and how often the
            likeliest client of a member is the one that holds it.
        test_accuracy: The test accuracy of the attacked model, in [0, 1]; None if it is
            not known.
        chance_bound: The accuracy that a network without knowledge may reach; None if
            it is not known.
        is_at_chance: Whether the attacked model has learned nothing.
        identification: How often the image that weighs most in a single encoding comes
            first among candidates; None if the attack was not on encodings.
    """

    decided_by: str
    metrics: Mapping[str, Mapping[str, Any]]
    by_round: Mapping[int, Mapping[str, Any]]
    by_client: Mapping[str, Mapping[str, Any]]
    test_accuracy: float | None
    chance_bound: float | None
    is_at_chance: bool
    identification: CandidateScores | None = None

    @property
    def decided(self) -> Mapping[str, Any]:
        """The figures that are reported first."""
        return self.metrics[self.decided_by]

    @property
    def beats_chance(self) -> bool:
        """Whether a score tells members from others better than by chance.

        On average over the images, or with a threshold that hardly any held-out image
        passes. Each score, and each of its rates, is a chance to be lucky (Bonferroni).
        """
        limit = SIGNIFICANCE / (len(self.metrics) * (1 + len(FALSE_POSITIVE_RATES)))
        return any(
            (figures["auc"] >= 0.5 + AUC_MARGIN and figures["p_value"] <= limit)
            or min(figures["tpr_p_value"].values()) <= limit
            for figures in self.metrics.values()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        return {
            **self.decided,
            "decided_by": self.decided_by,
            "scores": {
                name: _without_curve(figures) for name, figures in self.metrics.items()
            },
            "by_round": [
                {"round": number, **_without_curve(figures)}
                for number, figures in self.by_round.items()
            ],
            "by_client": dict(self.by_client),
            "test_accuracy": self.test_accuracy,
            "chance_bound": self.chance_bound,
            **(
                {"identification": self.identification.to_json()}
                if self.identification
                else {}
            ),
        }

    def in_words(self) -> str:
        """Sum up the figures that are reported first in one line."""
        figures = self.decided
        low, high = figures["auc_interval"]
        rates = ", ".join(
            f"{share:.1%} of members at {float(rate):.1%} false positives"
            for rate, share in figures["tpr_at_fpr"].items()
        )
        accuracy = self.test_accuracy
        beside = "" if accuracy is None else f"; test accuracy {accuracy:.1%}"
        return (
            f"members told from held-out images with AUC {figures['auc']:.3f} "
            f"({low:.3f}-{high:.3f}), {rates} (score {self.decided_by}){beside}"
            f"{self._identified_in_words()}"
        )

    def _identified_in_words(self) -> str:
        if self.identification is None:
            return ""
        ranked = self.identification.decisive
        low, high = ranked.interval(1)
        return (
            f"; a single encoding puts the image that weighs most first of "
            f"{ranked.size:,} for {ranked.top(1):.1%} ({low:.1%}-{high:.1%})"
        )

    def caveats(self) -> Iterator[str]:
        """Say what a reader of the figures should know."""
        if self.is_at_chance:
            yield (
                f"the network has learned nothing (test accuracy "
                f"{self.test_accuracy:.1%}), and one that has learned nothing gives "
                f"nobody away: this says nothing of the defence"
            )
        smallest, others = FALSE_POSITIVE_RATES[0], self.decided["non_members"]
        if smallest * others < 1:
            yield (
                f"with {others} held-out images, a false positive rate of "
                f"{smallest:.1%} allows no false positive at all: hold out more "
                f"(record.holdout-share)"
            )


def score_membership(
    guess: MembershipGuess | None, truth: Membership | None
) -> MembershipScores | None:
    """Hold scores of membership against who was trained on.

    Args:
        guess: The scores of an attack; None if it asked another question.
        truth: Who was trained on; None if nobody knows.

    Returns:
        The figures; None without scores or truth.

    Raises:
        ShapeError: Scores are NaN, or all candidates are of one kind.
    """
    if guess is None or truth is None:
        return None
    return MembershipScores(
        decided_by=guess.decided_by,
        metrics={
            name: _figures(scores, truth.is_member)
            for name, scores in guess.scores.items()
        },
        by_round={
            number: _figures(scores, truth.is_member)
            for number, scores in guess.by_round.items()
        }
        if len(guess.by_round) > 1
        else {},
        by_client={
            name: _client_figures(scores, truth)
            for name, scores in guess.by_client.items()
        },
        test_accuracy=truth.test_accuracy,
        chance_bound=truth.chance_bound,
        is_at_chance=truth.is_at_chance,
    )


def _figures(scores: Tensor, is_member: Tensor) -> dict[str, Any]:
    member = is_member[: len(scores)]
    return membership_metrics(scores[member], scores[~member])


def _client_figures(scores: ClientScores, truth: Membership) -> dict[str, Any]:
    """Return how well a client's images are told from held-out ones, and by whom.

    A held-out image counts once for each client, so intervals are somewhat too narrow.
    """
    count = scores.scores.shape[1]
    owners = truth.owners[:count]
    known = [n for n, owner in enumerate(owners) if owner in scores.clients]
    rows = torch.tensor([scores.clients.index(owners[n]) for n in known])
    of_owner = scores.scores[rows, torch.tensor(known)]
    of_others = scores.scores[:, ~truth.is_member[:count]]  # [C,M]
    figures = membership_metrics(of_owner, of_others.flatten())
    named = scores.scores[:, torch.tensor(known)].argmax(0)
    return {
        **_without_curve(figures),
        "owner_share": float((named == rows).double().mean()),
        "owner_chance": 1 / len(scores.clients),
    }


def _without_curve(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name != "roc"}
