"""Decode encodings into private images, given mapping and coefficients.

This is what an auditor does. It is no bound on what others reach: an adversary without
any key who searches the pool recovers more (see `carlini`).
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
    """The number of rounds of the alternation between signs and images."""
    public_part: Literal["unknown", "known"] = "unknown"
    """`known`: the auditor also knows which public images each encoding mixes; what
    they add is taken off before decoding. `unknown`: it is treated as noise."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Decode the encodings of each client.

        Args:
            view: The view of the adversary, with encodings and mapping.
            rng: The generator that starts the power iteration of second moments.
            progress: The callback told how far the attack is.

        Raises:
            AttackError: There is nothing to decode, or the decoder does not fit how
                the run encodes images.
        """
        return decode_clients(known_encodings(view), view, self, rng, progress)


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
        recovered: The encodings of one round and client each, as `images` in the order
            in which the client trained on them. Those without images are left out.
        view: The view of the adversary, with the mapping of these rounds and clients.
        settings: The decoder and the number of iterations.
        rng: The generator that starts the power iteration of second moments.
        progress: The callback told how far the decoding is.
        error_variance: The variance of the error of a recovered pixel, normalised.

    Raises:
        AttackError: The mapping is unknown, or does not fit what was recovered.
    """
    observations = {(entry.round, entry.client): entry for entry in view.observations}
    encodings = [
        KnownEncodings(
            update.client,
            update.images,
            _mapping_of(
                update,
                len(update.images),
                observations.get((update.round, update.client)),
            ),
        )
        for update in recovered
        if update.images is not None
    ]
    return decode_clients(
        encodings=encodings,
        view=view,
        settings=settings,
        rng=rng,
        progress=progress,
        error_variance=error_variance,
    )


def _mapping_of(
    recovered: Recovered, count: int, observation: Observation | None
) -> KnownMapping:
    where = f"round {recovered.round}, client {recovered.client}"
    if observation is None or observation.mapping is None:
        raise AttackError(
            f"{where}: which private images its encodings mix is unknown, and soft "
            f"targets tell their classes and coefficients, not which images of a class "
            f"they are: choose a threat model that gives the mapping (auditor)"
        )
    if len(observation.mapping.private_index) != count:
        raise AttackError(
            f"{where}: {count} encodings were recovered, the mapping is of "
            f"{len(observation.mapping.private_index)}: every encoding is needed, in "
            f"order"
        )
    return observation.mapping


@dataclass(frozen=True)
class KnownEncodings:
    """Encodings of one client with their mapping.

    Attributes:
        client: The key of the client.
        images: f32[E,C,H,W], the encodings, normalised.
        mapping: The mapping of the E encodings.
    """

    client: str
    images: Tensor
    mapping: KnownMapping


def known_encodings(view: AdversaryView) -> list[KnownEncodings]:
    """Return the encodings in a view whose mapping it holds as well."""
    return [
        KnownEncodings(observation.client, observation.encodings, observation.mapping)
        for observation in view.observations
        if observation.encodings is not None and observation.mapping is not None
    ]


def group_by_client(
    encodings: Iterable[KnownEncodings],
) -> dict[str, list[KnownEncodings]]:
    """Return the encodings of each client, of all rounds.

    Raises:
        AttackError: There are none.
    """
    by_client: dict[str, list[KnownEncodings]] = {}
    for part in encodings:
        by_client.setdefault(part.client, []).append(part)
    if not by_client:
        raise AttackError(
            "there are no encodings to decode: record at least one round "
            '(--set record.rounds="1") with clients in it'
        )
    return by_client


def decode_clients(
    encodings: Sequence[KnownEncodings],
    view: AdversaryView,
    settings: DecodeEncodings,
    rng: np.random.Generator,
    progress: ProgressCallback,
    error_variance: float = EXACT,
) -> Reconstruction:
    """Put the encodings of each client together and decode them.

    Args:
        encodings: The encodings of any number of clients and rounds.
        view: The view of the adversary, for the settings and the range of pixels.
        settings: The decoder and the number of iterations.
        rng: The generator that starts the power iteration of second moments.
        progress: The callback told how far the decoding is.
        error_variance: The variance of the error of a pixel, normalised.

    Raises:
        AttackError: There is nothing to decode, or the decoder does not fit how the
            run encodes images.
    """
    method = view.config.instahide.method
    if settings.decoder == "ridge" and method == "instahide":
        raise AttackError(
            "decoder = ridge ignores signs, and this run flipped them "
            '(instahide.method = "instahide"): use auto, second-moments or '
            "folded-least-squares"
        )
    pool = known_pool(encodings, view, settings.public_part)
    by_client = group_by_client(encodings)
    recovered = []
    for number, (client, parts) in enumerate(by_client.items()):
        if method == "none":
            recovered.append(_unhidden(client, parts))
            continue
        mixtures, rows = join(parts, error_variance, pool)
        decoder = settings.decoder
        if decoder == "auto":
            decoder = choose_decoder(mixtures, flipped=method == "instahide")
        images = decode(
            mixtures=mixtures,
            decoder=decoder,
            rng=rng,
            pixel_bound=largest_pixel(view.statistics),
            iterations=settings.iterations,
            progress=scale_progress(progress, number, len(by_client)),
        )
        diagnostics = _diagnostics(mixtures, decoder)
        recovered.append(
            Recovered(client, 0, images, rows=rows, diagnostics=diagnostics)
        )
    return Reconstruction("private", tuple(recovered))


def known_pool(
    encodings: Sequence[KnownEncodings],
    view: AdversaryView,
    public_part: Literal["unknown", "known"],
) -> MixingPool | None:
    """Return the pool if public images are to be taken off, and there are any.

    Args:
        encodings: The encodings, whose mappings may say which public images they mix.
        view: The view of the adversary.
        public_part: Whether the public part is to be taken as known.

    Raises:
        AttackError: They are to be taken off, and the adversary does not know them.
    """
    if public_part == "unknown" or not view.config.instahide.uses_pool:
        return None
    if view.pool is None or any(
        part.mapping.public_index is None for part in encodings
    ):
        raise AttackError(
            f"public_part = known needs the pool and which of its images were mixed, "
            f"which the threat model {view.threat_model.name} withholds: choose "
            f"auditor-of-encodings, or public_part = unknown"
        )
    return view.pool


def _diagnostics(mixtures: Mixtures, decoder: Decoder) -> dict[str, float]:
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
        parts: The encodings of one client.
        error_variance: The variance of the error of their pixels, normalised.
        pool: The pool whose images are taken off, where the mapping says which they
            are; None leaves them in as noise.

    Returns:
        The encodings, whose components refer to the rows; and the rows, i64[n]: which
        images of the client they mix.
    """
    images = torch.cat([part.images for part in parts])
    device = images.device
    index = torch.cat([part.mapping.private_index for part in parts]).to(device)
    weights = torch.cat([part.mapping.coefficients for part in parts]).to(device)
    # One row for each key, so that equal keys are equal rows. float64 holds both row
    # numbers and float32 coefficients without rounding.
    columns = [index.to(torch.float64), weights.to(torch.float64)]
    if pool is not None:
        columns += [_public_index(parts, device).to(torch.float64)]
    keys = torch.cat(columns, 1)  # [E,p], [E,k], [E,k-p] -> [E,2k]
    distinct, group, copies = torch.unique(
        keys, dim=0, return_inverse=True, return_counts=True
    )
    num_private = index.shape[1]
    mean = images.new_zeros(len(distinct), *images.shape[1:])
    mean.index_add_(0, group, images)
    mean /= copies[:, None, None, None]
    rows, components = torch.unique(
        distinct[:, :num_private].to(torch.int64), return_inverse=True
    )
    after_weights = num_private + weights.shape[1]
    coefficients = distinct[:, num_private:after_weights].to(torch.float32)
    public = None
    if pool is not None:
        public_index = distinct[:, after_weights:].to(torch.int64)
        public = _public_part(pool, public_index, coefficients)
    mixtures = Mixtures(
        encodings=mean,
        components=components,
        coefficients=coefficients,
        count=len(rows),
        public=public,
        error_variance=error_variance,
    )
    return mixtures, rows.cpu()


def _public_index(parts: Sequence[KnownEncodings], device: torch.device) -> Tensor:
    indices = [part.mapping.public_index for part in parts]
    return torch.cat([index for index in indices if index is not None]).to(device)


def _public_part(
    pool: MixingPool, public_index: Tensor, coefficients: Tensor
) -> Tensor:
    # A pool may be larger than memory: only the images that were mixed are read.
    used, index_in_used = torch.unique(public_index, return_inverse=True)
    images = pool.statistics.normalise(pool.images[used.to(pool.images.device)])
    return public_part(images.to(public_index.device), index_in_used, coefficients)


def _unhidden(client: str, parts: Sequence[KnownEncodings]) -> Recovered:
    """Return each image as it first appeared: the encodings are the images."""
    first: dict[int, Tensor] = {}
    for part in parts:
        rows = part.mapping.private_index[:, 0].tolist()
        for row, image in zip(rows, part.images, strict=True):
            first.setdefault(row, image)
    rows = sorted(first)
    images = torch.stack([first[row] for row in rows])
    return Recovered(client, 0, images, rows=torch.tensor(rows))
