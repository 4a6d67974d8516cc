"""Scoring statistics of batches against those of what was there.

As with images there are two truths: the encodings that a client trained on, and the
private images behind them, which the same network would have seen without any defence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from instahide_fl.attacks.base import Reconstruction
from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.attacks.layers.measured_statistics import (
    Statistics,
    measured_statistics,
)
from instahide_fl.audit.scoring.ground_truth import GroundTruth, RecoveredClient
from instahide_fl.audit.undefended import undefended_truth
from instahide_fl.config import Config
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.truth import ClientTruth

BUFFERS = {"mean": "running_mean", "variance": "running_var"}


@dataclass(frozen=True)
class StatisticsErrors:
    """Absolute errors of recovered statistics, of all layers, channels and clients.

    Attributes:
        encoding: f64[n], against the statistics of the encodings.
        private: f64[n], against the statistics of the private images.
        uninformed: f64[n], the errors of a guess against the statistics of the private
            images. The guess is the mean of the other clients' private images in the
            round; for a client alone, the running statistics that it was sent.
    """

    encoding: Tensor
    private: Tensor
    uninformed: Tensor

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
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
    ground_truth: GroundTruth,
    config: Config,
    transcripts: Sequence[RoundTranscript],
) -> StatisticsErrors | str | None:
    """Compare statistics of batches with those of what clients trained on.

    Args:
        reconstruction: What the attack returned.
        ground_truth: What the clients hid.
        config: The run's settings.
        transcripts: The recorded rounds, with the parameters sent.

    Returns:
        The errors, or why there are none; None if no statistics were recovered.

    Raises:
        TranscriptError: the truth of a client is missing.
    """
    with_statistics = tuple(
        recovered for recovered in reconstruction.recovered if recovered.statistics
    )
    if not with_statistics:
        return None
    clients = ground_truth.recovered_clients(
        replace(reconstruction, recovered=with_statistics)
    )
    several_steps = any(len(truths[0].batch_sizes) > 1 for _, truths in clients)
    if several_steps and config.train.mode == "update":
        return "parameters moved between the local steps that statistics are of"
    first = transcripts[0]
    network = build_network(config, first.image_shape, first.num_classes)
    parts = []
    for transcript in transcripts:
        in_round = [c for c in clients if c.recovered.round == transcript.round]
        parts += _errors(in_round, transcript, network)
    encoding, private, uninformed = zip(*parts, strict=True)
    return StatisticsErrors(
        torch.cat(encoding), torch.cat(private), torch.cat(uninformed)
    )


def _errors(
    clients: Sequence[RecoveredClient],
    transcript: RoundTranscript,
    network: nn.Module,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the three errors of each client of a round."""

    def measured(truth: ClientTruth) -> Statistics:
        parameters, sizes = transcript.parameters, truth.batch_sizes
        return measured_statistics(network, parameters, truth.encodings, sizes)

    truths = [client.truths[0] for client in clients]
    encoded = [measured(truth) for truth in truths]
    private = [
        measured(undefended_truth(truth, transcript.statistics, transcript.num_classes))
        for truth in truths
    ]
    errors = []
    for i, client in enumerate(clients):
        recovered, others = client.recovered.statistics, private[:i] + private[i + 1 :]
        guess = _guess(others, list(private[i]), transcript)
        errors.append(
            (
                _absolute_errors(recovered, encoded[i]),
                _absolute_errors(recovered, private[i]),
                _absolute_errors(guess, private[i]),
            )
        )
    return errors


def _guess(
    others: Sequence[Statistics], names: Sequence[str], transcript: RoundTranscript
) -> Statistics:
    """Return the mean of other clients; for a client alone, what it was sent."""
    if not others:
        return {name: _sent(transcript, name) for name in names}
    return {
        name: torch.stack([other[name] for other in others]).mean(0) for name in names
    }


def _sent(transcript: RoundTranscript, name: str) -> Tensor:
    layer, _, kind = name.rpartition(".")
    return transcript.parameters[f"{layer}.{BUFFERS[kind]}"]


def _absolute_errors(recovered: Statistics, truth: Statistics) -> Tensor:
    """Return f64[n], of all layers and channels in the order of `recovered`."""
    return torch.cat([(recovered[n].double() - truth[n]).abs() for n in recovered])
