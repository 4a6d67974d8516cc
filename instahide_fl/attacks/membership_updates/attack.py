"""Who was trained on, from the global models and updates of recorded rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ClientScores,
    MembershipGuess,
    ProgressCallback,
    Reconstruction,
)
from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.attacks.membership_updates.measurements import CandidateMeasurements
from instahide_fl.attacks.membership_updates.scores import (
    MIN_CLIENTS,
    against_other_clients,
    mean_by_client,
)
from instahide_fl.config import Config
from instahide_fl.config.base import Count
from instahide_fl.errors import AttackError
from instahide_fl.models.arrays import shared_buffers
from instahide_fl.models.layout import accept_any_layout
from instahide_fl.transcript.candidates import CandidateImages
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView, ObservedRound

LOSS: Final = "loss"
LOSS_DROP: Final = "loss_drop"
COSINE: Final = "cosine"
UPDATE_LOSS: Final = "update_loss"
UPDATE_COSINE: Final = "update_cosine"


@dataclass(frozen=True)
class _Round:
    """What a round says of the candidates.

    Attributes:
        number: 1, 2, ...
        losses: f64[N], the loss of the global model.
        cosines: f64[C,N], of each client's step and a step on the candidate; C is 1 and
            the step that of the aggregate where no single updates are seen.
        clients: The clients whose updates are seen; may be empty.
        rises: f64[C,N], by how much more the confidence rises by a client's update than
            by those of others, in deviations; None where too few updates are seen.
        directions: f64[C,N], the same of the cosines.
    """

    number: int
    losses: Tensor
    cosines: Tensor
    clients: tuple[str, ...]
    rises: Tensor | None
    directions: Tensor | None


class MembershipUpdates(Attack):
    """Score candidates by losses of global models, and by what updates do to them."""

    name: ClassVar[str] = "membership_updates"
    summary: ClassVar[str] = (
        "which candidate images were trained on, from losses of the global models and "
        "from what each client's update does to them"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.PARAMETERS})
    cost: ClassVar[str] = "seconds a round (one gradient for each candidate)"
    source: ClassVar[str] = (
        'Zhu et al., "FedMIA: An Effective Membership Inference Attack Exploiting All '
        'for One Principle in Federated Learning", CVPR 2025 (arXiv:2402.06289); loss: '
        'Yeom et al., "Privacy Risk in Machine Learning", CSF 2018'
    )
    no_reference: ClassVar[str] = (
        "the global models themselves come from the defended training: the reference "
        "is a run of its own that hides nothing"
    )

    decided_by: Literal[
        "loss", "loss_drop", "cosine", "update_loss", "update_cosine"
    ] = LOSS
    """The score that is reported first. A verdict goes by the best score, corrected for
    having chosen it."""
    max_candidates: Count = 4000
    """The number of candidates that are scored, the first ones."""

    @classmethod
    def runs_by_default(cls, config: Config) -> bool:
        """Run without being named where images were held out to ask about."""
        return config.record.holdout_share > 0

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Score the candidates; see `Attack.reconstruct`.

        Raises:
            AttackError: There are no candidates, parameters were crafted, running
                statistics are not known, a loss is not finite, or the score that
                decides is not to be had from what is seen.
        """
        candidates = _require_candidates(view).first(self.max_candidates)
        measurements = CandidateMeasurements(
            _network(view), view.statistics, candidates
        )
        rounds = []
        for number, observed in enumerate(view.rounds):
            rounds.append(_measure(view, observed, measurements))
            progress(number + 1, len(view.rounds))
        scores, by_client = _scores(rounds)
        self._check_decides(scores)
        return Reconstruction(
            target="membership",
            recovered=(),
            membership=MembershipGuess(
                scores=scores,
                decided_by=self.decided_by,
                by_round={part.number: -part.losses for part in rounds},
                by_client=by_client,
            ),
        )

    def _check_decides(self, scores: Mapping[str, Tensor]) -> None:
        if self.decided_by not in scores:
            raise AttackError(
                f"membership_updates.decided-by = {self.decided_by!r} cannot be had "
                f"from what is seen ({', '.join(scores)}): update_loss and "
                f"update_cosine need the updates of {MIN_CLIENTS} clients in each "
                f"round, loss_drop needs two rounds"
            )


def _require_candidates(view: AdversaryView) -> CandidateImages:
    if view.config.record.crafted != "none":
        raise AttackError(
            "attack membership_updates reads losses of the global model, and this run "
            "sent crafted parameters: record a run with record.crafted = none"
        )
    if view.candidates is None:
        raise AttackError(
            "attack membership_updates needs candidates, of which some were never "
            "trained on: run again with --set record.holdout-share=0.1, and keep the "
            "data set where it is"
        )
    return view.candidates


def _network(view: AdversaryView) -> torch.nn.Module:
    """Return the run's network, for losses and gradients of single images."""
    network = build_network(view.config, view.image_shape, view.num_classes)
    accept_any_layout(network)
    absent = shared_buffers(network).keys() - view.rounds[0].parameters.keys()
    if absent or view.config.model.normalization == "local-batch":
        raise AttackError(
            f"attack membership_updates evaluates single images, which "
            f"model.normalization = {view.config.model.normalization!r} does by "
            f"statistics that {view.threat_model.name} does not see: run with "
            f'"group" or "none"'
        )
    return network


def _measure(
    view: AdversaryView, observed: ObservedRound, measurements: CandidateMeasurements
) -> _Round:
    """Measure a round: losses before it, what its updates do to them, and cosines."""
    start = observed.parameters
    updates = {
        observation.client: observation.update
        for observation in view.observations
        if observation.round == observed.round and observation.update is not None
    }
    single = Knowledge.UPDATES in view.threat_model.knows
    seen = updates if single else {"": observed.aggregate}
    scale = -view.config.server_learning_rate if observed.kind == "gradient" else 1.0
    confidences = measurements.confidences(start)
    losses = F.softplus(-confidences)
    if not bool(losses.isfinite().all()):
        raise AttackError(
            f"the global model of round {observed.round} has no finite loss on some "
            f"candidates: attack an earlier round"
        )
    # Along a gradient the loss rises; a difference of parameters leads down.
    sign = 1.0 if observed.kind == "gradient" else -1.0
    directions = torch.stack(
        [sign * measurements.flat(arrays) for arrays in seen.values()]
    )
    cosines = measurements.cosines(start, directions)
    compared = single and len(updates) >= MIN_CLIENTS
    rises = [
        measurements.confidences(measurements.stepped(start, update, scale))
        - confidences
        for update in (updates.values() if compared else ())
    ]
    return _Round(
        number=observed.round,
        losses=losses,
        cosines=cosines,
        clients=tuple(updates) if single else ("",),
        rises=against_other_clients(torch.stack(rises)) if compared else None,
        directions=against_other_clients(cosines) if compared else None,
    )


def _scores(
    rounds: list[_Round],
) -> tuple[dict[str, Tensor], dict[str, ClientScores]]:
    """Return each score, f64[N], and those of single clients.

    For a score the best client counts: an image that any of them trained on is a
    member.
    """
    losses = torch.stack([part.losses for part in rounds])  # [R,N]
    scores = {LOSS: -losses.mean(0)}
    if len(rounds) > 1:
        scores[LOSS_DROP] = losses[0] - losses[-1]
    of_rounds: dict[str, list[Tensor | None]] = {
        COSINE: [part.cosines for part in rounds],
        UPDATE_LOSS: [part.rises for part in rounds],
        UPDATE_COSINE: [part.directions for part in rounds],
    }
    by_client: dict[str, ClientScores] = {}
    for name, parts in of_rounds.items():
        seen = [
            (part.clients, values)
            for part, values in zip(rounds, parts, strict=True)
            if values is not None
        ]
        if len(seen) == len(rounds):
            clients, values = mean_by_client(seen)
            scores[name] = values.amax(0)
            if clients != ("",):
                by_client[name] = ClientScores(clients, values)
    return scores, by_client
