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

from instahide_fl.attacks.gradient_matching import simulated_updates
from instahide_fl.attacks.victims import Steps, Victims, training_network
from instahide_fl.config import Config
from instahide_fl.errors import AttackError
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.threat_model import step_sizes
from instahide_fl.transcript.truth import ClientTruth
from instahide_fl.types import ChannelStatistics, ClientUpdate, EncodingKey

Truths = Mapping[tuple[int, str], ClientTruth]


def hides_nothing(config: Config) -> bool:
    """Tell whether clients send what they compute on their own images."""
    defense = config.defense
    defended = bool(defense.transform_names) or defense.is_private
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

    Running statistics of BatchNorm are left as they were: only parameters' updates are
    computed again.

    Args:
        config: the run's settings.
        transcripts: of the run.
        truths: of every client in them.

    Raises:
        AttackError: what was sent cannot be repeated: the network has dropout, or local
            steps took batches of random size.
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
            own = plain[seen.round, client] = _plain(
                truth, seen.statistics, seen.num_classes
            )
            if private:  # which tells the size that was expected of its sample
                update = replace(update, num_examples=len(own.encodings))
            arrays = _update(model, config, seen, own, update)
            updates[client] = replace(update, arrays=arrays)
        rounds.append(replace(seen, updates=updates))
    return rounds, plain


def with_images(
    transcripts: Sequence[RoundTranscript], truths: Truths
) -> list[RoundTranscript]:
    """Leave out updates computed on no image, and rounds in which no other came.

    Differential privacy leaves samples and cohorts to chance, which may leave them
    empty; there is then nothing that an attack could find.

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
    return [seen for seen in kept if seen.updates]


def _plain(
    truth: ClientTruth, statistics: ChannelStatistics, num_classes: int
) -> ClientTruth:
    """Return the truth of a client that trained on the images themselves."""
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
    return {**update.arrays, **moved}
