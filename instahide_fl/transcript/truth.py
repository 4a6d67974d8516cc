"""Truth: what a simulated client hid, written down so that attacks can be scored.

    truth/round-00001/client-3.safetensors    one file for a client in a recorded round
        images, targets, rows           the private images that its encodings mix
        encodings, soft_targets         what it trained on, in order
        coefficients, private_index, public_index, sign_bits, offset, flip: the keys
        others, other_rows              some private images that were not mixed

Only simulated clients write it, if `record.truth` says so. The server and the attacks
never open it. `transcript.build_view` does for adversaries who are given part of it,
and so does an audit, to score what attacks return.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from instahide_fl.encoding.encoder import Encoder
from instahide_fl.errors import TranscriptError
from instahide_fl.tensor_files import save_tensors
from instahide_fl.transcript.recorded import load_described
from instahide_fl.types import (
    AppliedAugmentation,
    EncodedBatch,
    EncodingKey,
    PrivateSplit,
    client_sort_key,
)

TRUTH = "truth"
MAX_OTHERS = 32  # images that were not mixed: what a guess is made from


@dataclass(frozen=True)
class ClientTruth:
    """What a client hid in a round.

    Attributes:
        round: 1, 2, ...
        client: The client's key.
        images: u8[n,C,H,W], the private images that were mixed.
        targets: i64[n].
        rows: i64[n], ascending: which images of the client they are.
        encodings: f32[E,C,H,W], normalised, in the order they were trained on.
        soft_targets: f32[E,K].
        key: The key of the E encodings; `private_index` refers to the client's split.
        batch_sizes: The sizes of the batches that the E encodings came in, step by
            step.
        others: u8[m,C,H,W], private images of the client that were not mixed: what its
            images look like, without being what is attacked.
        other_rows: i64[m], which images of the client they are.
    """

    round: int
    client: str
    images: Tensor
    targets: Tensor
    rows: Tensor
    encodings: Tensor
    soft_targets: Tensor
    key: EncodingKey
    batch_sizes: tuple[int, ...]
    others: Tensor
    other_rows: Tensor

    @property
    def components(self) -> Tensor:
        """i64[E,p]: the private images of each encoding, as rows of `images`."""
        return torch.searchsorted(self.rows, self.key.private_index.contiguous())


Truths: TypeAlias = Mapping[tuple[int, str], ClientTruth]
"""What each client hid in each recorded round, by round and client."""


@dataclass
class RecordingEncoder:
    """An encoder that records the batches and the keys that it returns.

    Attributes:
        inner: The encoder that does the work.
        batches: The batches that it returned, in order.
        keys: The keys of these batches.
    """

    inner: Encoder
    batches: list[EncodedBatch] = field(default_factory=list)
    keys: list[EncodingKey] = field(default_factory=list)

    def encode(
        self, index: Tensor, split: PrivateSplit, rng: np.random.Generator
    ) -> tuple[EncodedBatch, EncodingKey]:
        """Encode, and record a copy."""
        batch, key = self.inner.encode(index, split, rng)
        copy = EncodedBatch(
            batch.images.detach().to("cpu", copy=True),
            batch.soft_targets.detach().to("cpu", copy=True),
        )
        self.batches.append(copy)
        self.keys.append(key)
        return batch, key

    def truth(self, round_number: int, client: str, split: PrivateSplit) -> ClientTruth:
        """Return what was recorded, at least one batch; the record is empty then.

        Args:
            round_number: 1, 2, ...
            client: The client's key.
            split: The client's own images.
        """
        key = EncodingKey.concatenate(self.keys)
        rows = torch.unique(key.private_index)
        located = split.image_rows(rows)
        other_rows = _spread_over_others(rows, len(split))
        others = split.images[
            split.image_rows(other_rows).to(split.images.device)
        ].cpu()
        batch_sizes = tuple(len(batch) for batch in self.batches)
        encodings = torch.cat([batch.images for batch in self.batches])
        soft_targets = torch.cat([batch.soft_targets for batch in self.batches])
        # Encodings of photographs are large: not twice in memory while they are saved.
        self.batches.clear()
        self.keys.clear()
        return ClientTruth(
            round=round_number,
            client=client,
            images=split.images[located.to(split.images.device)].cpu(),
            targets=split.targets[located.to(split.targets.device)].cpu(),
            rows=rows,
            encodings=encodings,
            soft_targets=soft_targets,
            key=key,
            batch_sizes=batch_sizes,
            others=others,
            other_rows=other_rows,
        )


def _spread_over_others(rows: Tensor, count: int) -> Tensor:
    """Return up to `MAX_OTHERS` of `count` rows, none in `rows`, evenly spread."""
    free = torch.ones(count, dtype=torch.bool)
    free[rows] = False
    others = free.nonzero().flatten()
    taken = min(MAX_OTHERS, len(others))
    return others[torch.arange(taken) * len(others) // max(taken, 1)]


def _others(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return a truth's other images and their rows; none in files of older versions."""
    images, rows = tensors["images"], tensors["rows"]
    return tensors.get("others", images[:0]), tensors.get("other_rows", rows[:0])


def truth_path(folder: Path, round_number: int, client: str) -> Path:
    """Return where a run folder keeps a client's truth."""
    name = f"client-{client}.safetensors"
    return folder / TRUTH / f"round-{round_number:05d}" / name


def clients_with_truth(folder: Path, round_number: int) -> list[str]:
    """Return whose truth of a round a run folder keeps, in the order of clients."""
    files = truth_path(folder, round_number, "").parent.glob("client-*.safetensors")
    names = [file.stem.removeprefix("client-") for file in files]
    return sorted(names, key=client_sort_key)


def write_truth(folder: Path, truth: ClientTruth) -> None:
    """Write a client's truth, in one step.

    Args:
        folder: The run's folder.
        truth: The client's truth in one round.

    Raises:
        OutputError: it cannot be written.
    """
    key = truth.key
    tensors = {
        "images": truth.images,
        "targets": truth.targets,
        "rows": truth.rows,
        "others": truth.others,
        "other_rows": truth.other_rows,
        "encodings": truth.encodings,
        "soft_targets": truth.soft_targets,
        "coefficients": key.coefficients,
        "private_index": key.private_index,
        "public_index": key.public_index,
    }
    if key.sign_bits is not None:
        tensors["sign_bits"] = key.sign_bits
    if key.augmentation is not None:
        tensors["offset"] = key.augmentation.offset
        tensors["flip"] = key.augmentation.flip
    metadata = {
        "round": truth.round,
        "client": truth.client,
        "image_shape": key.image_shape,
        "batch_sizes": truth.batch_sizes,
    }
    path = truth_path(folder, truth.round, truth.client)
    save_tensors(path, tensors, {"about": json.dumps(metadata)}, private=True)


def read_truth(folder: Path, round_number: int, client: str) -> ClientTruth:
    """Read a client's truth.

    Raises:
        TranscriptError: it was not written, or is damaged.
    """
    path = truth_path(folder, round_number, client)
    if not path.is_file():
        raise TranscriptError(
            f"{path} is missing: scoring an attack needs the truth of a simulation; "
            f"run it with --set record.truth=true"
        )
    tensors, metadata = load_described(path)
    try:
        channels, height, width = metadata["image_shape"]
        drawn = None
        if "offset" in tensors:
            drawn = AppliedAugmentation(tensors["offset"], tensors["flip"])
        key = EncodingKey(
            coefficients=tensors["coefficients"],
            private_index=tensors["private_index"],
            public_index=tensors["public_index"],
            image_shape=(channels, height, width),
            sign_bits=tensors.get("sign_bits"),
            augmentation=drawn,
        )
        others, other_rows = _others(tensors)
        return ClientTruth(
            round=int(metadata["round"]),
            client=str(metadata["client"]),
            images=tensors["images"],
            targets=tensors["targets"],
            rows=tensors["rows"],
            encodings=tensors["encodings"],
            soft_targets=tensors["soft_targets"],
            key=key,
            batch_sizes=tuple(metadata["batch_sizes"]),
            others=others,
            other_rows=other_rows,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TranscriptError(f"{path} is not a client's truth: {error!r}") from None
