"""The attack of Carlini et al. on encodings, end to end, without any key.

Which encodings share an image is learned from other images that the attacker encodes
itself; then images are decoded, and images, links and public parts correct each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.attack import Advance, Attack, Reconstruction, Recovered
from instahide_fl.attacks.clustering.assignment import assign, margins
from instahide_fl.attacks.clustering.clusters import (
    Clusters,
    cluster,
    nearest_slots,
)
from instahide_fl.attacks.clustering.counting import estimate_images
from instahide_fl.attacks.clustering.embedding import (
    SlotNetwork,
    embed,
    new_network,
    train,
)
from instahide_fl.attacks.clustering.joined import JoinedEncodings, join_clients
from instahide_fl.attacks.clustering.proxies import Proxies
from instahide_fl.attacks.clustering.public_search import PublicSearch
from instahide_fl.attacks.clustering.refinement import Problem, refine
from instahide_fl.attacks.clustering.slots import Slots
from instahide_fl.attacks.clustering.stages import Stages, digest_of
from instahide_fl.attacks.clustering.starting import first_images, public_spread
from instahide_fl.attacks.decoding.mixtures import largest_pixel
from instahide_fl.attacks.links import LinkedEncodings
from instahide_fl.config import DataConfig
from instahide_fl.config.table import Count, CountOrZero
from instahide_fl.data.datasets import load_dataset
from instahide_fl.errors import AttackError
from instahide_fl.rng import stream
from instahide_fl.transcript.threat_model import AdversaryView, Knowledge

HELD_OUT = 0.1  # of the encodings, to tell whether images mean anything
LEAST_EVIDENCE = 3.0  # standard errors
NEAREST = 30  # slots of each cluster that are named, for its purity
FEWEST_SLOTS = 6  # of an image; fewer make no cluster


class Carlini(Attack):
    """Cluster the encodings of each client, link, decode and refine."""

    section = "carlini"

    name: ClassVar[str] = "carlini"
    summary: ClassVar[str] = (
        "private images from encodings and soft labels: learned similarity, "
        "clustering, assignment, decoding; no key is known"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.ENCODINGS, Knowledge.LABELS}
    )
    cost: ClassVar[str] = "minutes of training, then a minute for 1,000 encodings"
    source: ClassVar[str] = (
        "Carlini et al., Is Private Learning Possible with Instance Encoding?, "
        "IEEE S&P 2021"
    )
    by_default: ClassVar[bool] = False
    threat_model: ClassVar[str] = "encodings-holder"

    proxy: str = ""
    """Data set whose training images the attacker encodes to learn from, as in
    `data.dataset`; empty takes the images of the public pool."""
    images: CountOrZero = 0
    """Private images of each client; 0 estimates it."""
    steps: Count = 1500
    """Of training the embedding."""
    pairs: Count = 192
    """Pairs of encodings in a step of training."""
    rounds: Count = 5
    """Of refinement."""
    search_pool: bool = True
    """Whether public images are searched in the pool."""
    stages: str = ""
    """Folder where each stage is kept, to resume and inspect; empty keeps none."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Attack the clients one by one.

        Args:
            view: with encodings and soft labels.
            rng: its first number seeds every stage.
            advance: told how far it is.

        Raises:
            AttackError: there is not enough information, or proxies do not fit.
        """
        clients = join_clients(view)
        if view.config.instahide.method == "none":
            plain = [Recovered(one.client, 0, one.images) for one in clients]
            return Reconstruction("private", tuple(plain))
        attacked = _Attacked(self, view, int(rng.integers(2**62)), len(clients))
        slots = [attacked.slots_of(one) for one in clients]
        network = attacked.network(advance)
        search = attacked.search()
        recovered = [
            attacked.client(number, one, parts, network, search, advance)
            for number, (one, parts) in enumerate(zip(clients, slots, strict=True))
        ]
        if all(one.images is None for one in recovered):
            most = max(one.diagnostics["evidence"] for one in recovered)
            raise AttackError(
                f"not enough information: encodings that were held out do not fit the "
                f"decoded images better than others of the same class ({most:.1f} "
                f"standard errors, {LEAST_EVIDENCE:.0f} are needed): record more "
                f"rounds, or train longer on proxies like the private images "
                f"(carlini.steps, carlini.proxy)"
            )
        return Reconstruction("private", tuple(recovered))


class _Attacked:
    """One attack on one view: what its stages share."""

    def __init__(
        self, settings: Carlini, view: AdversaryView, seed: int, clients: int
    ) -> None:
        self.settings, self.view, self.seed = settings, view, seed
        self.proxies = _proxies(settings, view)
        split = self.proxies.split
        learned = settings.model_dump_json(include={"steps", "pairs"})
        known = view.config.model_dump_json(include={"instahide", "data"})
        self.stages = Stages(
            Path(settings.stages) if settings.stages else None,
            digest_of(
                learned,
                known,
                str(seed),
                str(view.statistics),
                view.pool.sha256 if view.pool else "",
                split.images,
                split.targets,
                str(self.proxies.classes_known),
            ),
        )
        # Progress counts steps of training; a round of refinement is worth a few.
        self.round_steps = max(1, settings.steps // 20)
        self.client_steps = self.round_steps * (settings.rounds + 3)
        self.total = settings.steps + clients * self.client_steps

    def slots_of(self, joined: JoinedEncodings) -> Slots:
        """Take encodings apart, refusing a client with too few.

        Raises:
            AttackError: they are too few, or labels do not fit.
        """
        private = self.view.config.instahide.private_count
        slots = Slots.of(joined.images, joined.soft_targets, private)
        count = self.settings.images
        if count and len(slots) < FEWEST_SLOTS * count:
            raise AttackError(
                f"not enough information: the {len(joined.images)} encodings of client "
                f"{joined.client} show each of {count} images about "
                f"{len(slots) / count:.1f} times, clustering needs {FEWEST_SLOTS}: "
                f"record more rounds"
            )
        return slots

    def network(self, advance: Advance) -> SlotNetwork:
        """Return the trained embedding."""
        settings, view = self.settings, self.view
        network = new_network(view.image_shape, view.num_classes, self.seed)

        def compute() -> dict[str, Tensor]:
            gain = train(
                network,
                self.proxies,
                settings.steps,
                settings.pairs,
                stream(self.seed, "carlini", "train"),
                lambda done, _: advance(done, self.total),
            )
            return {**network.state_dict(), "gain": torch.tensor(gain)}

        kept = self.stages.result("network", compute)
        kept.pop("gain")
        network.load_state_dict(kept)
        return network.eval()

    def search(self) -> PublicSearch | None:
        """Return the pool, ready to be searched, if encodings contain it."""
        config, pool = self.view.config.instahide, self.view.pool
        if pool is None or not config.uses_pool or not self.settings.search_pool:
            return None
        rng = stream(self.seed, "carlini", "pool")
        return PublicSearch(pool, config.public_count, config.max_coefficient, rng)

    def client(
        self,
        number: int,
        joined: JoinedEncodings,
        slots: Slots,
        network: SlotNetwork,
        search: PublicSearch | None,
        advance: Advance,
    ) -> Recovered:
        """Attack one client."""
        settings, seed = self.settings, self.seed
        before = settings.steps + number * self.client_steps

        def ahead(rounds: int) -> None:
            advance(before + rounds * self.round_steps, self.total)

        stages = self.stages.within(
            f"client-{joined.client}", joined.images, joined.soft_targets
        )
        embedding = stages.result(
            "embedding", lambda: {"embedding": embed(network, slots)}
        )["embedding"]
        ahead(1)
        count = settings.images or estimate_images(
            slots, embedding, network, self.proxies, stream(seed, "carlini", "count")
        )
        self._check_enough(joined, slots, count)
        grouped = stages.result(
            "clusters",
            lambda: self._clusters(slots, embedding, count, joined.client),
            str(count),
        )
        clusters = Clusters(grouped["classes"], grouped["centres"])
        scores = clusters.scores(slots, embedding)
        links = stages.result(
            "links", lambda: {"links": assign(slots, clusters, scores)}, str(count)
        )["links"]
        ahead(2)
        problem, order = self._problem(slots, clusters, scores, search)
        found = stages.result(
            "refined",
            lambda: self._refine(problem, links[order], scores, order, joined, ahead),
            str(count),
            settings.model_dump_json(include={"rounds", "search_pool"}),
        )
        refined = links.clone()
        refined[order] = found["links"]
        ahead(settings.rounds + 3)
        evidence = LinkedEncodings(
            joined.places[slots.encodings],
            slots.classes,
            embedding,
            nearest_slots(scores, NEAREST),
            links,
            refined,
        )
        sure = float(found["evidence"])
        return Recovered(
            joined.client,
            0,
            found["images"] if sure >= LEAST_EVIDENCE else None,
            diagnostics={
                "encodings": float(len(joined.images)),
                "images": float(len(clusters.classes)),
                "encodings_decoded": float(len(order)),
                "links_changed": float((refined != links).float().mean()),
                "unexplained": float(found["residual"].median()),
                "evidence": sure,
            },
            weights=_weights(slots, joined.places, refined, len(clusters.classes)),
            links=evidence,
        )

    def _check_enough(self, joined: JoinedEncodings, slots: Slots, count: int) -> None:
        if len(slots) < FEWEST_SLOTS * count:
            raise AttackError(
                f"not enough information: the {len(joined.images)} encodings of client "
                f"{joined.client} show each of about {count} images "
                f"{len(slots) / count:.1f} times, clustering needs {FEWEST_SLOTS}: "
                f"record more rounds, or set carlini.images"
            )

    def _clusters(
        self, slots: Slots, embedding: Tensor, count: int, client: str
    ) -> dict[str, Tensor]:
        counts = slots.images_of_each_class(count)
        rng = stream(self.seed, "carlini", "cluster", client)
        found = cluster(slots, embedding, counts, rng)
        return {"classes": found.classes, "centres": found.centres}

    def _problem(
        self,
        slots: Slots,
        clusters: Clusters,
        scores: Tensor,
        search: PublicSearch | None,
    ) -> tuple[Problem, Tensor]:
        """Return what is to be decoded, and its slots, i64[M,p]."""
        # Smallest coefficients first: refinement frees them first.
        by_size = slots.coefficients[slots.clear].argsort(dim=1, stable=True)
        order = slots.clear.gather(1, by_size)
        finite = scores[scores.isfinite()]
        standard = (scores - finite.mean()) / finite.std()
        rng = stream(self.seed, "carlini", "coefficients")
        problem = Problem(
            slots.images[slots.encodings[order[:, 0]]],
            slots.classes[order],
            slots.coefficients[order],
            standard[order],
            clusters.classes,
            public_spread(self.view.config.instahide, rng),
            search,
            largest_pixel(self.view.statistics),
        )
        return problem, order

    def _refine(
        self,
        problem: Problem,
        links: Tensor,
        scores: Tensor,
        order: Tensor,
        joined: JoinedEncodings,
        ahead: Callable[[int], None],
    ) -> dict[str, Tensor]:
        rng = stream(self.seed, "carlini", "decode", joined.client)
        lead = margins(scores)[order]
        shuffled = torch.from_numpy(rng.permutation(len(links)))
        held_out, used = shuffled.tensor_split([max(1, round(HELD_OUT * len(links)))])
        images = first_images(
            problem.some(used), links[used], lead[used], rng, lambda *_: None
        )
        ahead(3)
        found = refine(
            problem,
            images,
            links,
            held_out,
            self.settings.rounds,
            rng,
            lambda done, _: ahead(3 + done),
        )
        return {
            "images": found.images,
            "links": found.links,
            "residual": found.residual,
            "first": images,
            "evidence": torch.tensor(found.evidence),
        }


def _proxies(settings: Carlini, view: AdversaryView) -> Proxies:
    """Open the images that the attacker encodes itself.

    Raises:
        AttackError: there are none, or they do not fit.
    """
    if not settings.proxy:
        if view.pool is None:
            raise AttackError(
                "learning which encodings share an image needs images to encode, and "
                "this run has no public pool: name a data set (carlini.proxy)"
            )
        return Proxies.of(view, view.pool.images, None)
    dataset = load_dataset(DataConfig(dataset=settings.proxy))
    known = dataset.train.num_classes == view.num_classes
    targets = dataset.train.targets if known else None
    return Proxies.of(view, dataset.train.images, targets)


def _weights(slots: Slots, places: Tensor, links: Tensor, images: int) -> Tensor:
    """Return how much of each image is in each encoding, by the soft labels.

    Args:
        slots: S of them, of the E distinct encodings.
        places: i64[E], where these are among the client's encodings.
        links: i64[S], image of each slot; -1 for none.
        images: M.

    Returns:
        f32[N,M], N of all encodings; zero in those that are not among the E.
    """
    known = links >= 0
    encodings, classes = slots.encodings[known], slots.classes[known]
    weights = torch.zeros(int(places.max()) + 1, images)
    weights.index_put_(
        (places[encodings], links[known]),
        slots.soft_targets[encodings, classes],
        accumulate=True,
    )
    return weights
