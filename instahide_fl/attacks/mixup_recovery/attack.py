"""Private images from encodings and their soft labels alone: Mixup is not enough.

Nothing of the keys is known. Which encodings share an image is found from the encodings
themselves, the images then by least squares. On InstaHide the same steps run on the
magnitudes of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.attacks.base import (
    Advance,
    Attack,
    Reconstruction,
    Recovered,
    silent,
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
WHOLE = 1e-3  # largest coefficient taken for none
ENOUGH = "not enough information"


class MixupRecovery(Attack):
    """Find links between encodings, and decode by them, client by client."""

    section = "mixup_recovery"

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
    """How many private images a client has; 0 finds it: the number of dimensions that
    its encodings span (Mixup, all images private), else the number of its encodings in
    a round, each image being encoded once."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Attack; see `Attack.reconstruct`.

        Raises:
            AttackError: there are no encodings, or too few of each image.
        """
        clients = _clients(view)
        recovered = []
        for number, client in enumerate(clients):
            advance(number, len(clients))
            if view.config.instahide.method == "none":
                recovered.append(Recovered(client.name, 0, client.images))
            elif view.config.instahide.uses_pool:
                recovered.append(_with_public(client, view, self.images, rng))
            else:
                recovered.append(_all_private(client, view, self.images, rng))
        advance(len(clients), len(clients))
        return Reconstruction("private", tuple(recovered))


@dataclass(frozen=True)
class _Client:
    """Distinct encodings of one client.

    Attributes:
        name: its key.
        images: f32[E,C,H,W], normalised.
        soft_targets: f32[E,K].
        in_a_round: encodings of its largest round.
    """

    name: str
    images: Tensor
    soft_targets: Tensor
    in_a_round: int

    def values(self, flipped: bool) -> NDArray[np.float32]:
        """f32[E,D]: pixels, or where signs were flipped magnitudes less their mean."""
        pixels = self.images.flatten(1)
        if flipped:
            pixels = pixels.abs()
            pixels = pixels - pixels.mean(0)
        return pixels.numpy()


def _clients(view: AdversaryView) -> list[_Client]:
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for one in view.observations:
        if one.encodings is not None and one.soft_targets is not None:
            seen = one.encodings.cpu(), one.soft_targets.cpu()
            parts.setdefault(one.client, []).append(seen)
    if not parts:
        raise AttackError(
            "there are no encodings to attack: record at least one round "
            '(--set record.rounds="1") with clients in it'
        )
    clients = []
    for name, rounds in parts.items():
        images = torch.cat([one for one, _ in rounds])
        targets = torch.cat([one for _, one in rounds])
        # With instahide.refresh the same encodings come again.
        _, first = np.unique(images.flatten(1).numpy(), axis=0, return_index=True)
        kept = torch.from_numpy(np.sort(first))
        largest = max(len(one) for one, _ in rounds)
        clients.append(_Client(name, images[kept], targets[kept], largest))
    return clients


def _all_private(
    client: _Client, view: AdversaryView, images: int, rng: np.random.Generator
) -> Recovered:
    """Attack encodings of private images alone."""
    config = view.config.instahide
    flipped = config.method == "instahide"
    values = client.values(flipped)
    basis = span(values, images or (client.in_a_round if flipped else 0))
    count, found = basis.shape
    if found == count or (not flipped and found == values.shape[1]):
        raise AttackError(
            f"{ENOUGH}: the {count} encodings of client {client.name} span {found} "
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
    weights = np.take_along_axis(mixing, order, 1).clip(WHOLE)
    weights /= weights.sum(1, keepdims=True)
    return _decoded(client, view, order, weights, found, rng)


def _about(
    mixing: NDArray[np.float64], values: NDArray[np.float32]
) -> dict[str, float]:
    """Say how much of the encodings the images explain."""
    basis = np.linalg.qr(mixing)[0]
    left = values - basis @ (basis.T @ values)
    return {
        "encodings": float(len(mixing)),
        "images": float(mixing.shape[1]),
        "images_mixed": float((mixing > WHOLE).sum(1).mean()),
        "unexplained": float((left**2).sum() / (values**2).sum()),
    }


def _with_public(
    client: _Client, view: AdversaryView, images: int, rng: np.random.Generator
) -> Recovered:
    """Attack encodings of two private images and of public ones."""
    config = view.config.instahide
    if config.private_count != 2 or view.pool is None:
        raise AttackError(
            f"mixup_recovery on encodings with public images is written for two "
            f"private ones (instahide.num-private = 2, got {config.private_count}) and "
            f"needs the public pool"
        )
    flipped = config.method == "instahide"
    targets = client.soft_targets.numpy().astype(np.float64)
    two = (targets > WHOLE).sum(1) == 2
    if not two.any():
        raise AttackError(
            f"{ENOUGH}: no encoding of client {client.name} has two classes, so soft "
            f"labels tell no coefficients"
        )
    public = public_sample(view.pool, config, flipped, rng)
    points = client.values(flipped)[two] @ decorrelating(public)
    classes = np.sort(np.argsort(-targets[two], 1)[:, :2], 1)
    weights = np.take_along_axis(targets[two], classes, 1)
    per_class = images_of_classes(targets, images or client.in_a_round)
    evidence = Evidence(points, classes, weights)
    links = find_links(evidence, per_class, int(rng.integers(SEEDS)))
    kept = _Client(
        client.name,
        client.images[torch.from_numpy(two)],
        client.soft_targets[torch.from_numpy(two)],
        client.in_a_round,
    )
    return _decoded(kept, view, links.chosen, weights, len(links.centres), rng)


def _decoded(
    client: _Client,
    view: AdversaryView,
    chosen: NDArray[np.int64],
    weights: NDArray[np.float64],
    count: int,
    rng: np.random.Generator,
) -> Recovered:
    """Decode by links as an auditor would, except that they may be wrong."""
    config = view.config.instahide
    public = config.num_mixed - chosen.shape[1]
    rest = np.repeat((1 - weights.sum(1, keepdims=True)) / max(public, 1), public, 1)
    mixtures = Mixtures(
        client.images,
        torch.from_numpy(chosen.astype(np.int64)),
        torch.from_numpy(np.concatenate([weights, rest], 1)).float(),
        count,
    )
    decoder = choose_decoder(mixtures, flipped=config.method == "instahide")
    largest = largest_pixel(view.statistics)
    images = decode(mixtures, decoder, rng, largest, advance=silent)
    about = {"encodings": float(len(client.images)), "images": float(count)}
    return Recovered(client.name, 0, images, diagnostics=about)
