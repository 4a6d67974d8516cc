"""Builds the view of one adversary from a run's transcript: only what it may know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.data.federated_data import load_pool
from instahide_fl.errors import ThreatModelError
from instahide_fl.transcript.aggregate import expected_cohort, why_not_as_one_client
from instahide_fl.transcript.candidates import CandidateImages
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.threat_model import Knowledge, ThreatModel
from instahide_fl.transcript.truth import (
    ClientTruth,
    Truths,
    clients_with_truth,
    read_truth,
)
from instahide_fl.transcript.view import (
    AdversaryView,
    KnownMapping,
    Observation,
    ObservedRound,
    step_sizes,
)
from instahide_fl.types import EncodingKey


def build_view(
    adversary: ThreatModel,
    config: Config,
    transcripts: Sequence[RoundTranscript],
    truths: Truths,
    buffers: Iterable[str],
    candidates: CandidateImages | None = None,
) -> AdversaryView:
    """Return what a threat model permits of a run.

    Args:
        adversary: The adversary.
        config: The run's settings.
        transcripts: The recorded rounds, at least one.
        truths: The truth of each client in each recorded round, read only for what no
            server sees. It may be empty if the threat model gives nothing of it.
        buffers: The names of the network's running statistics among its arrays.
        candidates: The images that attacks on membership are asked about; None for
            none.

    Raises:
        ThreatModelError: the threat model gives what `truths` lacks.
        PoolError: the pool is missing or does not fit the images.
    """
    knows = adversary.knows
    hidden = set() if Knowledge.BUFFERS in knows else set(buffers)
    _require_updates(adversary, transcripts)
    first = transcripts[0]
    observations: list[Observation] = []
    if knows & {Knowledge.UPDATES, Knowledge.ENCODINGS}:
        observations += [
            _observe(
                adversary=adversary,
                config=config,
                transcript=transcript,
                client=client,
                truth=truths.get((transcript.round, client)),
                hidden=hidden,
            )
            for transcript in transcripts
            for client in transcript.updates or _clients_of(truths, transcript.round)
        ]
    rounds = [
        _observe_round(config, transcript, hidden)
        for transcript in transcripts
        if {Knowledge.PARAMETERS, Knowledge.AGGREGATE} <= knows
    ]
    if Knowledge.UPDATES not in knows:
        observations += [
            observed.as_one_client(config)
            for observed in rounds
            if not why_not_as_one_client(config, observed.clients)
        ]
    pool = load_pool(config, first.image_shape) if Knowledge.POOL in knows else None
    return AdversaryView(
        threat_model=adversary,
        config=config.with_values({"seed": 0}),
        statistics=first.statistics,
        image_shape=first.image_shape,
        num_classes=first.num_classes,
        observations=tuple(observations),
        rounds=tuple(rounds),
        pool=pool,
        candidates=candidates,
    )


def _require_updates(
    adversary: ThreatModel, transcripts: Sequence[RoundTranscript]
) -> None:
    recorded = all(transcript.updates for transcript in transcripts)
    if Knowledge.UPDATES in adversary.knows and not recorded:
        raise ThreatModelError(
            f"the threat model {adversary.name} gives single updates, and the server "
            f"of this run saw sums only (secure-aggregation.enabled): choose "
            f"secure-aggregation-server"
        )


def _observe(
    adversary: ThreatModel,
    config: Config,
    transcript: RoundTranscript,
    client: str,
    truth: ClientTruth | None,
    hidden: set[str],
) -> Observation:
    knows = adversary.knows
    update = transcript.updates[client] if Knowledge.UPDATES in knows else None
    secret = knows & {Knowledge.ENCODINGS, Knowledge.LABELS, Knowledge.MAPPING}
    if secret and truth is None:
        raise ThreatModelError(
            f"the threat model {adversary.name} gives {', '.join(sorted(secret))}, "
            f"which only a simulation knows: run it with --set record.truth=true"
        )
    parameters = None
    if Knowledge.PARAMETERS in knows:
        parameters = _without(transcript.parameters, hidden)
    examples = update.num_examples if update else 0
    return Observation(
        round=transcript.round,
        client=client,
        num_examples=examples,
        learning_rate_factor=transcript.learning_rate_factor,
        kind=transcript.kind,
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
        images_held=transcript.images_held.get(client, 0),
    )


def _known_mapping(key: EncodingKey, knows: frozenset[Knowledge]) -> KnownMapping:
    # Rows of a pool that one does not have are numbers without a meaning.
    public = key.public_index if Knowledge.POOL in knows else None
    return KnownMapping(key.private_index, key.coefficients, public)


def _observe_round(
    config: Config, transcript: RoundTranscript, hidden: set[str]
) -> ObservedRound:
    sizes = [update.num_examples for update in transcript.updates.values()]
    # Whoever averages a sum divides by the images in it.
    clients, images = (len(sizes), sum(sizes)) if sizes else expected_cohort(config)
    return ObservedRound(
        round=transcript.round,
        parameters=_without(transcript.parameters, hidden),
        aggregate=_without(transcript.aggregate, hidden),
        kind=transcript.kind,
        clients=clients,
        num_examples=images,
        learning_rate_factor=transcript.learning_rate_factor,
    )


def read_truths(
    folder: Path, transcripts: Sequence[RoundTranscript]
) -> dict[tuple[int, str], ClientTruth]:
    """Read the truth of recorded rounds, where it was written.

    Where a transcript holds the sum alone, the truth of all clients is read.

    Args:
        folder: The run's folder.
        transcripts: The recorded rounds.

    Returns:
        The truth of each client in each of these rounds.

    Raises:
        TranscriptError: a file is damaged.
    """
    return {
        (transcript.round, client): read_truth(folder, transcript.round, client)
        for transcript in transcripts
        for client in clients_with_truth(folder, transcript.round)
        if client in transcript.updates or not transcript.updates
    }


def _clients_of(truths: Truths, round_number: int) -> list[str]:
    return [client for number, client in truths if number == round_number]


def _without(arrays: Mapping[str, Tensor], hidden: set[str]) -> dict[str, Tensor]:
    return {name: array for name, array in arrays.items() if name not in hidden}
