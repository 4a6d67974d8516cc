"""Decode encodings into private images, given mapping and coefficients.

What an auditor does: an upper bound on what anybody can make of the encodings who first
has to find out which of them share an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
    scale_progress,
)
from instahide_fl.attacks.decoding.choice import Decoder, choose_decoder, decode
from instahide_fl.attacks.decoding.least_squares import ITERATIONS
from instahide_fl.attacks.decoding.mixtures import (
    EXACT,
    Mixtures,
    largest_pixel,
    public_part,
)
from instahide_fl.config.base import Count
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView, KnownMapping, Observation


class DecodeEncodings(Attack):
    """Decode the encodings of each client, of all rounds together."""

    name: ClassVar[str] = "decode_encodings"
    summary: ClassVar[str] = (
        "private images from encodings, with mapping and coefficients known"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.ENCODINGS, Knowledge.MAPPING}
    )
    cost: ClassVar[str] = "seconds; about a minute for 5,000 colour images of 32 pixels"
    source: ClassVar[str] = (
        "Carlini et al., Is Private Learning Possible with Instance Encoding?, "
        "IEEE S&P 2021"
    )
    threat_model: ClassVar[str] = "auditor-of-encodings"

    decoder: Decoder | Literal["auto"] = "auto"
    """`ridge` without signs; with signs `folded-least-squares` or, better from enough
    encodings of each image, `second-moments`. `auto` chooses."""
    iterations: Count = ITERATIONS
    """Of the alternation between signs and images."""
    public_part: Literal["unknown", "known"] = "unknown"
    """`known`: the auditor is also told which public images each encoding mixes; what
    they add is then taken off before decoding. `unknown` takes it for noise."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Decode.

        Args:
            view: with encodings and mapping.
            rng: starts the power iteration of second moments.
            progress: told how far it is.

        Raises:
            AttackError: nothing to decode, or the decoder does not fit the method.
        """
        known = [
            KnownEncodings(one.client, one.encodings, one.mapping)
            for one in view.observations
            if one.encodings is not None and one.mapping is not None
        ]
        return decode_clients(known, view, self, rng, progress)


def decode_recovered(
    recovered: Sequence[Recovered],
    view: AdversaryView,
    settings: DecodeEncodings,
    rng: np.random.Generator,
    progress: ProgressCallback,
    error_variance: float = EXACT,
) -> Reconstruction:
    """Decode encodings that another attack recovered: the second of two steps.

    Args:
        recovered: encodings, `images` in the order in which the client trained on them;
            of one round and client each. Those without images are left out.
        view: with the mapping of these rounds and clients.
        settings: decoder and iterations.
        rng: starts the power iteration of second moments.
        progress: told how far it is.
        error_variance: of the recovered pixels, normalised.

    Raises:
        AttackError: the mapping is unknown, or does not fit what was recovered.
    """
    seen = {(one.round, one.client): one for one in view.observations}
    known = [
        KnownEncodings(
            one.client,
            one.images,
            _mapping_of(one, len(one.images), seen.get((one.round, one.client))),
        )
        for one in recovered
        if one.images is not None
    ]
    return decode_clients(known, view, settings, rng, progress, error_variance)


def _mapping_of(
    recovered: Recovered, count: int, seen: Observation | None
) -> KnownMapping:
    where = f"round {recovered.round}, client {recovered.client}"
    if seen is None or seen.mapping is None:
        raise AttackError(
            f"{where}: which private images its encodings mix is unknown, and soft "
            f"targets tell their classes and coefficients, not which images of a class "
            f"they are: choose a threat model that gives the mapping (auditor)"
        )
    if len(seen.mapping.private_index) != count:
        raise AttackError(
            f"{where}: {count} encodings were recovered, the mapping is of "
            f"{len(seen.mapping.private_index)}: every encoding is needed, in order"
        )
    return seen.mapping


@dataclass(frozen=True)
class KnownEncodings:
    """Encodings of one client with their mapping.

    Attributes:
        client: its key.
        images: f32[E,C,H,W], normalised.
        mapping: of the E encodings.
    """

    client: str
    images: Tensor
    mapping: KnownMapping


def decode_clients(
    known: Iterable[KnownEncodings],
    view: AdversaryView,
    settings: DecodeEncodings,
    rng: np.random.Generator,
    progress: ProgressCallback,
    error_variance: float = EXACT,
) -> Reconstruction:
    """Put the encodings of each client together and decode them.

    Args:
        known: encodings, of any number of rounds.
        view: tells the method, and the range of pixels.
        settings: decoder and iterations.
        rng: starts the power iteration of second moments.
        progress: told how far it is.
        error_variance: of the encodings' pixels, normalised.

    Raises:
        AttackError: nothing to decode, or the decoder does not fit the method.
    """
    method = view.config.instahide.method
    if settings.decoder == "ridge" and method == "instahide":
        raise AttackError(
            "decoder = ridge ignores signs, and this run flipped them "
            '(instahide.method = "instahide"): use auto, second-moments or '
            "folded-least-squares"
        )
    pool = known_pool(known := list(known), view, settings.public_part)
    by_client: dict[str, list[KnownEncodings]] = {}
    for one in known:
        by_client.setdefault(one.client, []).append(one)
    if not by_client:
        raise AttackError(
            "there are no encodings to decode: record at least one round "
            '(--set record.rounds="1") with clients in it'
        )
    recovered = []
    for number, (client, parts) in enumerate(by_client.items()):
        if method == "none":
            recovered.append(_unhidden(client, parts))
            continue
        ahead = scale_progress(progress, number, len(by_client))
        mixtures, rows = join(parts, error_variance, pool)
        decoder = settings.decoder
        if decoder == "auto":
            decoder = choose_decoder(mixtures, flipped=method == "instahide")
        largest = largest_pixel(view.statistics)
        images = decode(mixtures, decoder, rng, largest, settings.iterations, ahead)
        recovered.append(
            Recovered(
                client, 0, images, rows=rows, diagnostics=_about(mixtures, decoder)
            )
        )
    return Reconstruction("private", tuple(recovered))


def known_pool(
    known: Sequence[KnownEncodings],
    view: AdversaryView,
    public_part: Literal["unknown", "known"],
) -> MixingPool | None:
    """Return the pool if public images are to be taken off, and there are any.

    Raises:
        AttackError: they are, and the adversary does not know them.
    """
    if public_part == "unknown" or not view.config.instahide.uses_pool:
        return None
    if view.pool is None or any(one.mapping.public_index is None for one in known):
        raise AttackError(
            f"public_part = known needs the pool and which of its images were mixed, "
            f"which the threat model {view.threat_model.name} withholds: choose "
            f"auditor-of-encodings, or public_part = unknown"
        )
    return view.pool


def _about(mixtures: Mixtures, decoder: Decoder) -> dict[str, float]:
    return {
        "encodings": float(len(mixtures.encodings)),
        "encodings_per_image": mixtures.encodings_per_image,
        "second_moments": float(decoder == "second-moments"),
        "public_part_known": float(mixtures.public is not None),
    }


def join(
    parts: Sequence[KnownEncodings],
    error_variance: float = EXACT,
    pool: MixingPool | None = None,
) -> tuple[Mixtures, Tensor]:
    """Put encodings of one client together; those under the same key count once.

    A client with `instahide.refresh = T` sends the same T encodings again and again.
    Where they were recovered, and differ by errors, their mean is taken.

    Args:
        parts: encodings of one client.
        error_variance: of their pixels, normalised.
        pool: to take public images off, where the mapping says which they are; None
            leaves them in as noise.

    Returns:
        The encodings, whose components refer to the rows; and the rows, i64[n]: which
        images of the client they mix.
    """
    images = torch.cat([one.images for one in parts])
    index = torch.cat([one.mapping.private_index for one in parts]).to(images.device)
    weights = torch.cat([one.mapping.coefficients for one in parts]).to(images.device)
    # float64 holds row numbers and float32 coefficients alike without rounding.
    columns = [index.to(torch.float64), weights.to(torch.float64)]
    if pool is not None:
        columns += [_public_index(parts, images.device).to(torch.float64)]
    keys = torch.cat(columns, 1)
    distinct, group, copies = torch.unique(
        keys, dim=0, return_inverse=True, return_counts=True
    )
    private = index.shape[1]
    mean = images.new_zeros(len(distinct), *images.shape[1:])
    mean.index_add_(0, group, images)
    mean /= copies[:, None, None, None]
    rows, components = torch.unique(
        distinct[:, :private].to(torch.int64), return_inverse=True
    )
    coefficients = distinct[:, private : private + weights.shape[1]].to(torch.float32)
    public = None
    if pool is not None:
        chosen = distinct[:, private + weights.shape[1] :].to(torch.int64)
        public = _public_part(pool, chosen, coefficients)
    mixtures = Mixtures(
        mean, components, coefficients, len(rows), public, error_variance
    )
    return mixtures, rows.cpu()


def _public_index(parts: Sequence[KnownEncodings], device: torch.device) -> Tensor:
    known = [one.mapping.public_index for one in parts]
    return torch.cat([index for index in known if index is not None]).to(device)


def _public_part(pool: MixingPool, chosen: Tensor, coefficients: Tensor) -> Tensor:
    # A pool may be larger than memory: only the images that were mixed are read.
    used, place = torch.unique(chosen, return_inverse=True)
    images = pool.statistics.normalise(pool.images[used.to(pool.images.device)])
    return public_part(images.to(chosen.device), place, coefficients)


def _unhidden(client: str, parts: Sequence[KnownEncodings]) -> Recovered:
    """Return each image as it was first seen: the encodings are the images."""
    first: dict[int, Tensor] = {}
    for part in parts:
        rows = part.mapping.private_index[:, 0].tolist()
        for row, image in zip(rows, part.images, strict=True):
            first.setdefault(row, image)
    rows = sorted(first)
    images = torch.stack([first[row] for row in rows])
    return Recovered(client, 0, images, rows=torch.tensor(rows))
