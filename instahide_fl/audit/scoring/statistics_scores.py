"""Scoring statistics of batches against those of what was there.

As with images there are two truths: the encodings that a client trained on, and the
private images behind them, which the same network would have seen without any defence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instahide_fl.attacks.base import Reconstruction, Recovered
from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.attacks.layers.measured_statistics import (
    Statistics,
    measured_statistics,
)
from instahide_fl.audit.scoring.originals import truths_of
from instahide_fl.audit.undefended import undefended_truth
from instahide_fl.config import Config
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.truth import ClientTruth

OWN_NAMES = {"mean": "running_mean", "variance": "running_var"}


@dataclass(frozen=True)
class StatisticsErrors:
    """Absolute errors of recovered statistics, of all layers, channels and clients.

    Attributes:
        encoding: f64[n], against the encodings' statistics.
        private: f64[n], against those of the private images.
        uninformed: f64[n], against the latter, of the mean of the other clients'
            private images in the round; of a client alone, of the running statistics
            that it was sent.
    """

    encoding: Tensor
    private: Tensor
    uninformed: Tensor

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written into an attack's file."""
        return {
            "encoding": _summary(self.encoding),
            "private": _summary(self.private),
            "uninformed": _summary(self.uninformed),
            "count": len(self.encoding),
        }


def _summary(errors: Tensor) -> dict[str, float]:
    return {"max_error": float(errors.max()), "mean_error": float(errors.mean())}


def score_statistics(
    reconstruction: Reconstruction,
    truths: Mapping[tuple[int, str], ClientTruth],
    config: Config,
    transcripts: Sequence[RoundTranscript],
) -> StatisticsErrors | str | None:
    """Compare statistics of batches with those of what clients trained on.

    Args:
        reconstruction: of the attack.
        truths: by round and client.
        config: the run's settings.
        transcripts: of the rounds, with the parameters sent.

    Returns:
        Errors, or why there are none; None if no statistics were recovered.

    Raises:
        TranscriptError: the truth of a client is missing.
    """
    found = [one for one in reconstruction.recovered if one.statistics]
    if not found:
        return None
    if any(len(truths_of(one, truths)[0].batch_sizes) > 1 for one in found) and (
        config.train.mode == "update"
    ):
        return "parameters moved between the local steps that statistics are of"
    first = transcripts[0]
    network = build_network(config, first.image_shape, first.num_classes)
    parts = []
    for seen in transcripts:
        parts += _errors(
            [one for one in found if one.round == seen.round], truths, seen, network
        )
    return StatisticsErrors(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _errors(
    found: Sequence[Recovered],
    truths: Mapping[tuple[int, str], ClientTruth],
    seen: RoundTranscript,
    network: nn.Module,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the three errors of each client of a round."""

    def measured(truth: ClientTruth) -> Statistics:
        sizes = truth.batch_sizes
        return measured_statistics(network, seen.parameters, truth.encodings, sizes)

    known = [truths_of(one, truths)[0] for one in found]
    encoded = [measured(truth) for truth in known]
    private = [
        measured(undefended_truth(truth, seen.statistics, seen.num_classes))
        for truth in known
    ]
    return [
        (
            _off(one.statistics, encoded[i]),
            _off(one.statistics, private[i]),
            _off(_guess(private[:i] + private[i + 1 :], private[i], seen), private[i]),
        )
        for i, one in enumerate(found)
    ]


def _guess(
    others: Sequence[Statistics], own: Statistics, seen: RoundTranscript
) -> Statistics:
    """Return the mean of other clients; of a client alone, what it was sent."""
    if not others:
        return {name: _sent(seen, name) for name in own}
    return {
        name: torch.stack([other[name] for other in others]).mean(0) for name in own
    }


def _sent(seen: RoundTranscript, name: str) -> Tensor:
    layer, _, kind = name.rpartition(".")
    return seen.parameters[f"{layer}.{OWN_NAMES[kind]}"]


def _off(found: Statistics, truth: Statistics) -> Tensor:
    return torch.cat([(found[n].double() - truth[n]).abs() for n in found])
