"""From a run's transcript to the view of one adversary: only what its model permits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.data.federated_data import load_pool
from instahide_fl.errors import ThreatModelError
from instahide_fl.transcript.aggregate import expected_cohort, why_not_one
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.threat_model import Knowledge, ThreatModel
from instahide_fl.transcript.truth import ClientTruth, clients_with_truth, read_truth
from instahide_fl.transcript.view import (
    AdversaryView,
    KnownMapping,
    Observation,
    ObservedRound,
    step_sizes,
)
from instahide_fl.types import EncodingKey


def build_view(
    model: ThreatModel,
    config: Config,
    transcripts: Sequence[RoundTranscript],
    truths: Mapping[tuple[int, str], ClientTruth],
    buffers: Iterable[str],
) -> AdversaryView:
    """Copy what a threat model permits.

    Args:
        model: the adversary.
        config: the run's settings.
        transcripts: recorded rounds, at least one.
        truths: by round and client; opened only for what no server sees. May be empty
            if the threat model gives nothing of it.
        buffers: names of the network's running statistics among its arrays.

    Raises:
        ThreatModelError: the threat model gives what `truths` lacks.
        PoolError: the pool is missing or does not fit the images.
    """
    knows, hidden = model.knows, set(buffers)
    if Knowledge.BUFFERS in knows:
        hidden = set()
    first = transcripts[0]
    observations: list[Observation] = []
    _require_updates(model, transcripts)
    if knows & {Knowledge.UPDATES, Knowledge.ENCODINGS}:
        for seen in transcripts:
            for client in seen.updates or _clients_of(truths, seen.round):
                truth = truths.get((seen.round, client))
                observations.append(
                    _observe(model, config, seen, client, truth, hidden)
                )
    rounds = [
        _observe_round(config, seen, hidden)
        for seen in transcripts
        if {Knowledge.PARAMETERS, Knowledge.AGGREGATE} <= knows
    ]
    if Knowledge.UPDATES not in knows:
        observations += [
            one.as_one_client(config)
            for one in rounds
            if not why_not_one(config, one.clients)
        ]
    pool = load_pool(config, first.image_shape) if Knowledge.POOL in knows else None
    return AdversaryView(
        model,
        config.with_values({"seed": 0}),
        first.statistics,
        first.image_shape,
        first.num_classes,
        tuple(observations),
        tuple(rounds),
        pool,
    )


def _require_updates(
    model: ThreatModel, transcripts: Sequence[RoundTranscript]
) -> None:
    seen = all(one.updates for one in transcripts)
    if Knowledge.UPDATES in model.knows and not seen:
        raise ThreatModelError(
            f"the threat model {model.name} gives single updates, and the server of "
            f"this run saw sums only (secure-aggregation.enabled): choose "
            f"secure-aggregation-server"
        )


def _observe(
    model: ThreatModel,
    config: Config,
    seen: RoundTranscript,
    client: str,
    truth: ClientTruth | None,
    hidden: set[str],
) -> Observation:
    knows = model.knows
    update = seen.updates[client] if Knowledge.UPDATES in knows else None
    secret = knows & {Knowledge.ENCODINGS, Knowledge.LABELS, Knowledge.MAPPING}
    if secret and truth is None:
        raise ThreatModelError(
            f"the threat model {model.name} gives {', '.join(sorted(secret))}, which "
            f"only a simulation knows: run it with --set record.truth=true"
        )
    parameters = None
    if Knowledge.PARAMETERS in knows:
        parameters = _without(seen.parameters, hidden)
    examples = update.num_examples if update else 0
    return Observation(
        round=seen.round,
        client=client,
        num_examples=examples,
        learning_rate_factor=seen.learning_rate_factor,
        kind=seen.kind,
        parameters=parameters,
        update=_without(update.arrays, hidden) if update else None,
        batch_sizes=step_sizes(config, examples),
        encodings=truth.encodings if truth and Knowledge.ENCODINGS in secret else None,
        soft_targets=truth.soft_targets
        if truth and Knowledge.LABELS in secret
        else None,
        mapping=_known_mapping(truth.key, knows)
        if truth and Knowledge.MAPPING in secret
        else None,
        images_held=seen.images_held.get(client, 0),
    )


def _known_mapping(key: EncodingKey, knows: frozenset[Knowledge]) -> KnownMapping:
    # Rows of a pool that one does not have are numbers without a meaning.
    public = key.public_index if Knowledge.POOL in knows else None
    return KnownMapping(key.private_index, key.coefficients, public)


def _observe_round(
    config: Config, seen: RoundTranscript, hidden: set[str]
) -> ObservedRound:
    sizes = [one.num_examples for one in seen.updates.values()]
    # Whoever averages a sum divides by the images in it.
    clients, images = (len(sizes), sum(sizes)) if sizes else expected_cohort(config)
    return ObservedRound(
        round=seen.round,
        parameters=_without(seen.parameters, hidden),
        aggregate=_without(seen.aggregate, hidden),
        kind=seen.kind,
        clients=clients,
        num_examples=images,
        learning_rate_factor=seen.learning_rate_factor,
    )


def read_truths(
    folder: Path, transcripts: Sequence[RoundTranscript]
) -> dict[tuple[int, str], ClientTruth]:
    """Read the truth of recorded rounds, where it was written.

    Of a round whose transcript holds the sum alone, that of all clients is read.

    Raises:
        TranscriptError: a file is damaged.
    """
    return {
        (seen.round, client): read_truth(folder, seen.round, client)
        for seen in transcripts
        for client in clients_with_truth(folder, seen.round)
        if client in seen.updates or not seen.updates
    }


def _clients_of(
    truths: Mapping[tuple[int, str], ClientTruth], round_number: int
) -> list[str]:
    return [client for number, client in truths if number == round_number]


def _without(arrays: Mapping[str, Tensor], hidden: set[str]) -> dict[str, Tensor]:
    return {name: array for name, array in arrays.items() if name not in hidden}
