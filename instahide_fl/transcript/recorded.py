"""Transcripts: files of what the server sent and received in a round.

    transcript/round-00001.safetensors    one file for each recorded round
        global/NAME             the parameters sent
        update/CLIENT/NAME      a client's update, as received
        aggregate/NAME          the mean that the server stepped with

The numbers that came with the updates are in the file's metadata. Nothing else can be
in a transcript: the recorder is handed what crossed the wire and no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from instahide_fl.errors import TranscriptError
from instahide_fl.tensor_files import load_tensors, save_tensors
from instahide_fl.types import ChannelStatistics, ClientUpdate, UpdateKind

TRANSCRIPT = "transcript"
SCHEMA = 1


@dataclass(frozen=True)
class RoundTranscript:
    """A round as the server saw it.

    Attributes:
        round: 1, 2, ...
        parameters: The parameters sent to every client, by name; running statistics
            are among them.
        updates: The updates as received, after the client's own defences, in the order
            of client keys. Empty where the server sees only the sum.
        aggregate: The arrays that the server stepped with, by name.
        kind: What an update is: "gradient" or "delta".
        statistics: Constants to normalise private images with, sent to clients.
        image_shape: C, H, W of a private image.
        num_classes: K.
        learning_rate_factor: The factor of the schedule, sent to clients.
        pool_sha256: The digest of the agreed pool; empty for no pool.
        images_held: The number of images that each client told the server before the
            first round, by client key; empty in transcripts of older versions.
    """

    round: int
    parameters: Mapping[str, Tensor]
    updates: Mapping[str, ClientUpdate]
    aggregate: Mapping[str, Tensor]
    kind: UpdateKind
    statistics: ChannelStatistics
    image_shape: tuple[int, int, int]
    num_classes: int
    learning_rate_factor: float
    pool_sha256: str
    images_held: Mapping[str, int] = field(default_factory=dict)


def transcript_path(folder: Path, round_number: int) -> Path:
    """Return where a run folder keeps a round."""
    return folder / TRANSCRIPT / f"round-{round_number:05d}.safetensors"


def write_transcript(folder: Path, transcript: RoundTranscript) -> None:
    """Write a round, in one step.

    Args:
        folder: The run's folder.
        transcript: The round.

    Raises:
        OutputError: it cannot be written.
    """
    sent, aggregate = transcript.parameters, transcript.aggregate
    tensors = {f"global/{name}": array for name, array in sent.items()}
    tensors |= {f"aggregate/{name}": array for name, array in aggregate.items()}
    for client, update in transcript.updates.items():
        for name, array in update.arrays.items():
            tensors[f"update/{client}/{name}"] = array
    metadata = {
        "schema": SCHEMA,
        "round": transcript.round,
        "kind": transcript.kind,
        "clients": {
            client: {"num_examples": update.num_examples, "metrics": update.metrics}
            for client, update in transcript.updates.items()
        },
        "mean": transcript.statistics.mean,
        "std": transcript.statistics.std,
        "image_shape": transcript.image_shape,
        "num_classes": transcript.num_classes,
        "learning_rate_factor": transcript.learning_rate_factor,
        "pool_sha256": transcript.pool_sha256,
        "images_held": dict(transcript.images_held),
    }
    save_tensors(
        transcript_path(folder, transcript.round),
        tensors,
        {"about": json.dumps(metadata)},
        private=True,
    )


def recorded_rounds(folder: Path) -> list[int]:
    """Return the rounds that a run folder holds transcripts of, in order."""
    files = (folder / TRANSCRIPT).glob("round-*.safetensors")
    numbers = (file.stem.removeprefix("round-") for file in files)
    return sorted(int(number) for number in numbers if number.isdecimal())


def read_transcript(folder: Path, round_number: int) -> RoundTranscript:
    """Read a round.

    Args:
        folder: The run's folder.
        round_number: 1, 2, ...

    Raises:
        TranscriptError: the round was not recorded, or its file is damaged.
    """
    path = transcript_path(folder, round_number)
    if not path.is_file():
        recorded = recorded_rounds(folder)
        raise TranscriptError(
            f"round {round_number} of {folder} was not recorded; "
            + (f"recorded: {_listed(recorded)}" if recorded else HOW_TO_RECORD)
        )
    tensors, metadata = load_described(path)
    try:
        return _from_file(tensors, metadata)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TranscriptError(f"{path} is not a transcript: {error!r}") from None


HOW_TO_RECORD = (
    'no round was: run again with --set record.rounds="1" (and --set record.truth=true '
    "to score attacks)"
)


def _from_file(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> RoundTranscript:
    if metadata["schema"] != SCHEMA:
        raise ValueError(f"schema {metadata['schema']}, this version reads {SCHEMA}")
    channels, height, width = map(int, metadata["image_shape"])
    mean, std = (tuple(map(float, metadata[name])) for name in ("mean", "std"))
    if not len(mean) == len(std) == channels:
        raise ValueError(f"{len(mean)} means for {channels} channels")
    updates = {
        client: ClientUpdate(
            _below(tensors, f"update/{client}/"),
            int(row["num_examples"]),
            metadata["kind"],
            dict(row["metrics"]),
        )
        for client, row in metadata["clients"].items()
    }
    return RoundTranscript(
        round=int(metadata["round"]),
        parameters=_below(tensors, "global/"),
        updates=updates,
        aggregate=_below(tensors, "aggregate/"),
        kind=metadata["kind"],
        statistics=ChannelStatistics(mean, std),
        image_shape=(channels, height, width),
        num_classes=int(metadata["num_classes"]),
        learning_rate_factor=float(metadata["learning_rate_factor"]),
        pool_sha256=str(metadata["pool_sha256"]),
        images_held={
            client: int(count)
            for client, count in metadata.get("images_held", {}).items()
        },
    )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): array
        for name, array in tensors.items()
        if name.startswith(prefix)
    }


def _listed(rounds: Sequence[int]) -> str:
    """Write 1, 2, 3, 7 as "1-3, 7"."""
    parts: list[list[int]] = []
    for number in rounds:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in parts)


def load_described(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and the JSON object that describes them.

    Raises:
        TranscriptError: the file is missing, truncated or of another kind.
    """
    try:
        tensors, metadata = load_tensors(path)
        return tensors, json.loads(metadata["about"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise TranscriptError(f"cannot read {path}: {error}: record it again") from None
