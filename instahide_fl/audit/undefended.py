"""The control of an audit: the same clients and parameters, with nothing hidden.

An attack that finds nothing has shown something only if it finds plain images. So every
attack also runs on what the same clients would have sent for the same images without
any defence, and a verdict is given only if it succeeds there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.aggregation.reduction import tree_mean
from instahide_fl.aggregation.robust import robust_rule
from instahide_fl.aggregation.weights import WEIGHTS
from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.attacks.layers.measured_statistics import (
    measured_statistics,
    running_momenta,
)
from instahide_fl.attacks.matching.gradient_matching import simulated_updates
from instahide_fl.attacks.matching.victims import Steps, Victims, training_network
from instahide_fl.config import Config
from instahide_fl.errors import AttackError
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.truth import ClientTruth
from instahide_fl.transcript.view import step_sizes
from instahide_fl.types import ChannelStatistics, ClientUpdate, EncodingKey

Truths = Mapping[tuple[int, str], ClientTruth]


def hides_nothing(config: Config) -> bool:
    """Tell whether clients send what they compute on their own images."""
    defense = config.defense
    defended = (
        defense.transform_names
        or defense.is_private
        or config.secure_aggregation.enabled
    )
    return config.instahide.method == "none" and not defended


def undefended(config: Config) -> Config:
    """Return the settings of the control."""
    return config.with_values(
        {
            "defense.transforms": "",
            "defense.differential-privacy": "none",
            "instahide.method": "none",
            "instahide.scope": "inside",
            "instahide.num-private": "auto",
            "data.augment": "none",
        }
    )


def control_of(
    config: Config, transcripts: Sequence[RoundTranscript], truths: Truths
) -> tuple[list[RoundTranscript], dict[tuple[int, str], ClientTruth]]:
    """Return the transcripts and truths of the control.

    After several local steps running statistics of BatchNorm are left as they were: in
    them parameters moved between the batches.

    Args:
        config: the run's settings.
        transcripts: of the run.
        truths: of every client in them.

    Raises:
        AttackError: what was sent cannot be repeated: the network has dropout, local
            steps took batches of random size, or single updates were not recorded.
    """
    private = config.defense.differential_privacy == "dp-sgd"
    if private and config.train.mode == "update":
        raise AttackError(
            "no control: the local steps of dp-sgd take batches of random size, which "
            "have no counterpart without it"
        )
    first = transcripts[0]
    model = training_network(config, first.image_shape, first.num_classes)
    plain: dict[tuple[int, str], ClientTruth] = {}
    rounds = []
    for seen in transcripts:
        updates = {}
        for client, update in seen.updates.items():
            truth = truths[seen.round, client]
            own = plain[seen.round, client] = undefended_truth(
                truth, seen.statistics, seen.num_classes
            )
            if private:  # which tells the size that was expected of its sample
                update = replace(update, num_examples=len(own.encodings))
            arrays = _update(model, config, seen, own, update)
            updates[client] = replace(update, arrays=arrays)
        mean = _aggregate(config, list(updates.values()))
        rounds.append(replace(seen, updates=updates, aggregate=mean))
    return rounds, plain


def with_images(
    transcripts: Sequence[RoundTranscript], truths: Truths
) -> list[RoundTranscript]:
    """Leave out updates computed on no image, and rounds in which no other came.

    Differential privacy leaves samples and cohorts to chance, which may leave them
    empty; there is then nothing that an attack could find. Rounds of secure aggregation
    hold no single updates, and stay.

    Args:
        transcripts: of a run.
        truths: of every client in them.
    """
    kept = [
        replace(
            seen,
            updates={
                client: update
                for client, update in seen.updates.items()
                if len(truths[seen.round, client].encodings)
            },
        )
        for seen in transcripts
    ]
    return [
        seen
        for seen, before in zip(kept, transcripts, strict=True)
        if seen.updates or not before.updates
    ]


def _aggregate(config: Config, updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Return what the server would have stepped with."""
    if not updates:
        raise AttackError("single updates, which a control imitates, were not recorded")
    if rule := robust_rule(config.server):
        return rule(updates)
    return tree_mean(updates, WEIGHTS[config.server.aggregation])


def undefended_truth(
    truth: ClientTruth, statistics: ChannelStatistics, num_classes: int
) -> ClientTruth:
    """Return the truth of a client that trained on the images themselves.

    Args:
        truth: of a client; the first image of each encoding takes its place.
        statistics: constants that images are normalised with.
        num_classes: K.
    """
    own = truth.components[:, 0]
    count = len(own)
    key = EncodingKey(
        torch.ones(count, 1),
        truth.key.private_index[:, :1],
        torch.empty(count, 0, dtype=torch.int64),
        truth.key.image_shape,
        None,
        None,
    )
    kept = torch.unique(own)
    return replace(
        truth,
        images=truth.images[kept],
        targets=truth.targets[kept],
        rows=truth.rows[kept],
        encodings=statistics.normalise(truth.images[own]),
        soft_targets=F.one_hot(truth.targets[own], num_classes).float(),
        key=key,
    )


def _update(
    model: nn.Module,
    config: Config,
    seen: RoundTranscript,
    truth: ClientTruth,
    update: ClientUpdate,
) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    train = config.train
    steps = Steps(
        seen.kind,
        step_sizes(config, update.num_examples),
        train.learning_rate * seen.learning_rate_factor,
        train.momentum,
        train.weight_decay,
    )
    victim = Victims(
        (),
        model,
        {name: seen.parameters[name] for name in names},
        True,
        {name: update.arrays[name][None] for name in names},
        steps,
        None,
    )
    found = simulated_updates(victim, truth.encodings[None], truth.soft_targets[None])
    moved = {name: array[0].detach() for name, array in found.items()}
    return {**update.arrays, **moved, **_running(config, seen, truth)}


def _running(
    config: Config, seen: RoundTranscript, truth: ClientTruth
) -> dict[str, Tensor]:
    """Return how far the running statistics move that the network keeps, by name."""
    network = build_network(config, seen.image_shape, seen.num_classes)
    momenta = running_momenta(network)
    sizes = truth.batch_sizes
    if not momenta or (seen.kind == "delta" and len(sizes) > 1):
        return {}
    found = measured_statistics(network, seen.parameters, truth.encodings, sizes)
    moved = {}
    for layer, momentum in momenta.items():
        for kind, own in (("mean", "running_mean"), ("variance", "running_var")):
            name, gained = f"{layer}.{own}", 1 - (1 - momentum) ** len(sizes)
            off = found[f"{layer}.{kind}"] - seen.parameters[name]
            moved[name] = (gained * off).float()
    return moved
