"""The undefended reference: the same clients and parameters, with nothing hidden.

An attack that finds nothing has shown something only if it finds plain images. So every
attack also runs on what the same clients would have sent for the same images without
any defence, and a verdict is given only if it succeeds there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.aggregation.reduction import tree_mean
from instahide_fl.aggregation.robust import robust_rule
from instahide_fl.aggregation.weights import WEIGHTS
from instahide_fl.attacks.layers.linear_layers import build_network, require_sgd
from instahide_fl.attacks.layers.measured_statistics import (
    measured_statistics,
    running_momenta,
)
from instahide_fl.attacks.matching.gradient_matching import simulated_updates
from instahide_fl.attacks.matching.victims import Steps, Victims, training_network
from instahide_fl.config import Config
from instahide_fl.errors import AttackError
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.truth import ClientTruth, Truths
from instahide_fl.transcript.view import step_sizes
from instahide_fl.types import ChannelStatistics, ClientUpdate, EncodingKey


def hides_nothing(config: Config) -> bool:
    """Tell whether clients send what they compute on their own images."""
    defense = config.defense
    defended = (
        defense.transform_names
        or defense.is_private
        or config.secure_aggregation.enabled
    )
    return config.instahide.method == "none" and not defended


def undefended_config(config: Config) -> Config:
    """Return the settings of a run of the same network that hides nothing."""
    return config.with_values(
        {
            "model.sign-invariant": config.sign_invariant,
            "defense.transforms": "",
            "defense.differential-privacy": "none",
            "instahide.method": "none",
            "instahide.scope": "inside",
            "instahide.num-private": "auto",
            "data.augment": "none",
        }
    )


def undefended_transcripts(
    config: Config, transcripts: Sequence[RoundTranscript], truths: Truths
) -> tuple[list[RoundTranscript], dict[tuple[int, str], ClientTruth]]:
    """Return the transcripts and truths of the undefended reference.

    After several local steps running statistics of BatchNorm are left as they were: in
    them parameters moved between the batches.

    Args:
        config: The run's settings.
        transcripts: The run's recorded rounds.
        truths: The truth of every client in these rounds.

    Raises:
        AttackError: what was sent cannot be repeated: the network has dropout, local
            steps took batches of random size or were not those of SGD, or single
            updates were not recorded.
    """
    private = config.defense.differential_privacy == "dp-sgd"
    if private and config.train.mode == "update":
        raise AttackError(
            "no undefended reference: the local steps of dp-sgd take batches of random "
            "size, which have no counterpart without it"
        )
    if config.train.mode == "update":
        require_sgd(config.train)
    first = transcripts[0]
    model = training_network(config, first.image_shape, first.num_classes)
    plain_truths: dict[tuple[int, str], ClientTruth] = {}
    plain_transcripts = []
    for transcript in transcripts:
        updates = {}
        for client, update in transcript.updates.items():
            truth = undefended_truth(
                truths[transcript.round, client],
                transcript.statistics,
                transcript.num_classes,
            )
            plain_truths[transcript.round, client] = truth
            if private:  # which tells the size that was expected of its sample
                update = replace(update, num_examples=len(truth.encodings))
            arrays = _update(model, config, transcript, truth, update)
            updates[client] = replace(update, arrays=arrays)
        mean = _aggregate(config, list(updates.values()))
        plain_transcripts.append(replace(transcript, updates=updates, aggregate=mean))
    return plain_transcripts, plain_truths


def with_images(
    transcripts: Sequence[RoundTranscript], truths: Truths
) -> list[RoundTranscript]:
    """Leave out updates computed on no image, and rounds in which no other came.

    Differential privacy leaves samples and cohorts to chance, which may leave them
    empty; there is then nothing that an attack could find. Rounds of secure aggregation
    hold no single updates, and stay.

    Args:
        transcripts: The recorded rounds of a run.
        truths: The truth of every client in these rounds.
    """
    reduced = [
        replace(
            transcript,
            updates={
                client: update
                for client, update in transcript.updates.items()
                if len(truths[transcript.round, client].encodings)
            },
        )
        for transcript in transcripts
    ]
    return [
        transcript
        for transcript, recorded in zip(reduced, transcripts, strict=True)
        if transcript.updates or not recorded.updates
    ]


def _aggregate(config: Config, updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Return what the server would have stepped with."""
    if not updates:
        raise AttackError(
            "single updates, which the undefended reference imitates, were not recorded"
        )
    if rule := robust_rule(config.server):
        return rule(updates)
    return tree_mean(updates, WEIGHTS[config.server.aggregation])


def undefended_truth(
    truth: ClientTruth, statistics: ChannelStatistics, num_classes: int
) -> ClientTruth:
    """Return the truth of a client that trained on the images themselves.

    Args:
        truth: The truth of a client; the first image of each encoding takes its place.
        statistics: Constants that images are normalised with.
        num_classes: K.
    """
    first = truth.components[:, 0]
    count = len(first)
    key = EncodingKey(
        coefficients=torch.ones(count, 1),
        private_index=truth.key.private_index[:, :1],
        public_index=torch.empty(count, 0, dtype=torch.int64),
        image_shape=truth.key.image_shape,
        sign_bits=None,
        augmentation=None,
    )
    used = torch.unique(first)
    return replace(
        truth,
        images=truth.images[used],
        targets=truth.targets[used],
        rows=truth.rows[used],
        encodings=statistics.normalise(truth.images[first]),
        soft_targets=F.one_hot(truth.targets[first], num_classes).float(),
        key=key,
    )


def _update(
    model: nn.Module,
    config: Config,
    transcript: RoundTranscript,
    truth: ClientTruth,
    update: ClientUpdate,
) -> dict[str, Tensor]:
    """Return the arrays that a client would have sent for its images, by name."""
    names = [name for name, _ in model.named_parameters()]
    train = config.train
    steps = Steps(
        kind=transcript.kind,
        batch_sizes=step_sizes(config, update.num_examples),
        learning_rate=train.learning_rate * transcript.learning_rate_factor,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )
    victim = Victims(
        observations=(),
        model=model,
        parameters={name: transcript.parameters[name] for name in names},
        shared=True,
        # [...] -> [1,...]: one client
        updates={name: update.arrays[name][None] for name in names},
        steps=steps,
        soft_targets=None,
    )
    simulated = simulated_updates(
        victim, truth.encodings[None], truth.soft_targets[None]
    )
    arrays = {name: array[0].detach() for name, array in simulated.items()}
    running = _running_statistics(config, transcript, truth)
    return {**update.arrays, **arrays, **running}


def _running_statistics(
    config: Config, transcript: RoundTranscript, truth: ClientTruth
) -> dict[str, Tensor]:
    """Return how far the running statistics move that the network keeps, by name."""
    network = build_network(config, transcript.image_shape, transcript.num_classes)
    momenta = running_momenta(network)
    sizes = truth.batch_sizes
    if not momenta or (transcript.kind == "delta" and len(sizes) > 1):
        return {}
    parameters = transcript.parameters
    measured = measured_statistics(network, parameters, truth.encodings, sizes)
    moved = {}
    for layer, momentum in momenta.items():
        for kind, buffer in (("mean", "running_mean"), ("variance", "running_var")):
            name, share = f"{layer}.{buffer}", 1 - (1 - momentum) ** len(sizes)
            difference = measured[f"{layer}.{kind}"] - parameters[name]
            moved[name] = (share * difference).float()
    return moved
