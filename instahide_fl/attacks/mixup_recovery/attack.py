"""Recover private images from encodings and their soft labels alone.

Nothing of the keys is known. The attack first finds out which encodings share an image,
and then solves for the images by least squares. On InstaHide the same steps run on the
absolute values of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
    ignore_progress,
)
from instahide_fl.attacks.decoding.choice import choose_decoder, decode
from instahide_fl.attacks.decoding.mixtures import Mixtures, largest_pixel
from instahide_fl.attacks.mixup_recovery.decorrelation import (
    decorrelating,
    public_sample,
)
from instahide_fl.attacks.mixup_recovery.image_clusters import (
    Evidence,
    find_links,
    images_of_classes,
)
from instahide_fl.attacks.mixup_recovery.independent_components import (
    span,
    sparse_mixing,
)
from instahide_fl.config.base import CountOrZero
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView

SEEDS = 2**31
MIN_COEFFICIENT = 1e-3  # a smaller one counts as 0
TOO_LITTLE = "not enough information"


class MixupRecovery(Attack):
    """Find out which encodings share images, and decode them, client by client."""

    name: ClassVar[str] = "mixup_recovery"
    summary: ClassVar[str] = (
        "private images from encodings and soft labels, no key known: made for Mixup"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.ENCODINGS, Knowledge.LABELS}
    )
    cost: ClassVar[str] = "seconds to a minute for 5,000 encodings of 32 pixels"
    source: ClassVar[str] = (
        "Huang et al., InstaHide, ICML 2020, which finds Mixup insecure; blind source "
        "separation and clustering are our own"
    )
    threat_model: ClassVar[str] = "encodings-holder"

    images: CountOrZero = 0
    """The number of private images of a client. 0 estimates it: for Mixup of private
    images alone, by the number of dimensions that the encodings span; otherwise by the
    number of encodings in a round, in which each image is encoded once."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Decode the encodings of each client; see `Attack.reconstruct`.

        Raises:
            AttackError: there are no encodings, or too few of each image.
        """
        clients = _clients(view)
        recovered = []
        for number, client in enumerate(clients):
            progress(number, len(clients))
            if view.config.instahide.method == "none":
                recovered.append(Recovered(client.name, 0, client.images))
            elif view.config.instahide.uses_pool:
                recovered.append(_with_public(client, view, self.images, rng))
            else:
                recovered.append(_all_private(client, view, self.images, rng))
        progress(len(clients), len(clients))
        return Reconstruction("private", tuple(recovered))


@dataclass(frozen=True)
class _Client:
    """The distinct encodings of one client.

    Attributes:
        name: The client's key.
        images: The encodings, normalised, f32[E,C,H,W].
        soft_targets: Their soft labels, f32[E,K].
        max_in_round: The number of encodings in its largest round.
    """

    name: str
    images: Tensor
    soft_targets: Tensor
    max_in_round: int

    def values(self, flipped: bool) -> NDArray[np.float32]:
        """Return pixels, or centred absolute values if signs are flipped, f32[E,D]."""
        pixels = self.images.flatten(1)  # [E,C,H,W] -> [E,D]
        if flipped:
            pixels = pixels.abs()
            pixels = pixels - pixels.mean(0)
        return pixels.numpy()


def _clients(view: AdversaryView) -> list[_Client]:
    by_client: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for observation in view.observations:
        encodings, soft_targets = observation.encodings, observation.soft_targets
        if encodings is not None and soft_targets is not None:
            rounds = by_client.setdefault(observation.client, [])
            rounds.append((encodings.cpu(), soft_targets.cpu()))
    if not by_client:
        raise AttackError(
            "there are no encodings to attack: record at least one round "
            '(--set record.rounds="1") with clients in it'
        )
    clients = []
    for name, rounds in by_client.items():
        images = torch.cat([encodings for encodings, _ in rounds])
        targets = torch.cat([soft_targets for _, soft_targets in rounds])
        # With instahide.refresh the same encodings are sent again.
        _, first = np.unique(images.flatten(1).numpy(), axis=0, return_index=True)
        distinct = torch.from_numpy(np.sort(first))
        max_in_round = max(len(encodings) for encodings, _ in rounds)
        clients.append(_Client(name, images[distinct], targets[distinct], max_in_round))
    return clients


def _all_private(
    client: _Client, view: AdversaryView, images: int, rng: np.random.Generator
) -> Recovered:
    """Attack encodings of private images alone."""
    config = view.config.instahide
    flipped = config.method == "instahide"
    values = client.values(flipped)
    basis = span(values, images or (client.max_in_round if flipped else 0))
    count, rank = basis.shape
    if rank == count or (not flipped and rank == values.shape[1]):
        raise AttackError(
            f"{TOO_LITTLE}: the {count} encodings of client {client.name} span {rank} "
            f"dimensions, as many as {count} unrelated pictures would: record more "
            f"rounds than one, of no more images than one has pixels and without "
            f'augmentation (data.augment="none")'
        )
    seed = int(rng.integers(SEEDS))
    mixing = sparse_mixing(basis, config.num_mixed, not flipped, seed)
    if not flipped:
        solved = np.linalg.lstsq(mixing, client.images.flatten(1).numpy(), rcond=None)
        decoded = torch.from_numpy(solved[0]).float().view(-1, *view.image_shape)
        return Recovered(client.name, 0, decoded, diagnostics=_about(mixing, values))
    order = np.argsort(-mixing, 1)[:, : config.num_mixed]
    weights = np.take_along_axis(mixing, order, 1).clip(MIN_COEFFICIENT)
    weights /= weights.sum(1, keepdims=True)
    return _decoded(client, view, chosen=order, weights=weights, count=rank, rng=rng)


def _about(
    mixing: NDArray[np.float64], values: NDArray[np.float32]
) -> dict[str, float]:
    """Return diagnostics: how much of the encodings the images explain."""
    basis = np.linalg.qr(mixing)[0]
    residual = values - basis @ (basis.T @ values)
    return {
        "encodings": float(len(mixing)),
        "images": float(mixing.shape[1]),
        "images_mixed": float((mixing > MIN_COEFFICIENT).sum(1).mean()),
        "unexplained": float((residual**2).sum() / (values**2).sum()),
    }


def _with_public(
    client: _Client, view: AdversaryView, images: int, rng: np.random.Generator
) -> Recovered:
    """Attack encodings of two private images and several public ones."""
    config = view.config.instahide
    if config.private_count != 2 or view.pool is None:
        raise AttackError(
            f"mixup_recovery on encodings with public images is written for two "
            f"private ones (instahide.num-private = 2, got {config.private_count}) and "
            f"needs the public pool"
        )
    flipped = config.method == "instahide"
    targets = client.soft_targets.numpy().astype(np.float64)
    two = (targets > MIN_COEFFICIENT).sum(1) == 2
    if not two.any():
        raise AttackError(
            f"{TOO_LITTLE}: no encoding of client {client.name} has two classes, so "
            f"soft labels tell no coefficients"
        )
    public = public_sample(view.pool, config, flipped, rng)
    points = client.values(flipped)[two] @ decorrelating(public)
    classes = np.sort(np.argsort(-targets[two], 1)[:, :2], 1)
    weights = np.take_along_axis(targets[two], classes, 1)
    per_class = images_of_classes(targets, images or client.max_in_round)
    evidence = Evidence(points, classes, weights)
    links = find_links(evidence, per_class, int(rng.integers(SEEDS)))
    with_two_classes = _Client(
        client.name,
        client.images[torch.from_numpy(two)],
        client.soft_targets[torch.from_numpy(two)],
        client.max_in_round,
    )
    return _decoded(
        with_two_classes,
        view,
        chosen=links.chosen,
        weights=weights,
        count=len(links.centres),
        rng=rng,
    )


def _decoded(
    client: _Client,
    view: AdversaryView,
    chosen: NDArray[np.int64],
    weights: NDArray[np.float64],
    count: int,
    rng: np.random.Generator,
) -> Recovered:
    """Decode as an auditor does, with links that may be wrong.

    Args:
        client: The client's E encodings.
        view: The adversary's view.
        chosen: The numbers of the images in each encoding, i64[E,p].
        weights: Their coefficients, f64[E,p].
        count: The number of images in all.
        rng: The generator of the decoder's starting point.
    """
    config = view.config.instahide
    public = config.num_mixed - chosen.shape[1]
    # What private images leave of the total of 1 is shared evenly by the public ones.
    rest = np.repeat((1 - weights.sum(1, keepdims=True)) / max(public, 1), public, 1)
    mixtures = Mixtures(
        client.images,
        torch.from_numpy(chosen.astype(np.int64)),
        torch.from_numpy(np.concatenate([weights, rest], 1)).float(),
        count,
    )
    decoder = choose_decoder(mixtures, flipped=config.method == "instahide")
    largest = largest_pixel(view.statistics)
    images = decode(mixtures, decoder, rng, largest, progress=ignore_progress)
    diagnostics = {"encodings": float(len(client.images)), "images": float(count)}
    return Recovered(client.name, 0, images, diagnostics=diagnostics)
