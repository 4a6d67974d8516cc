"""The attack on the encodings of one client, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import ProgressCallback, Recovered
from instahide_fl.attacks.carlini.assignment import assign, margins
from instahide_fl.attacks.carlini.client_encodings import JoinedEncodings
from instahide_fl.attacks.carlini.clusters import (
    MIN_SLOTS,
    Clusters,
    cluster,
    nearest_slots,
)
from instahide_fl.attacks.carlini.decoding_problem import Problem
from instahide_fl.attacks.carlini.held_out import (
    MIN_EVIDENCE,
    evidence,
    without_prior,
)
from instahide_fl.attacks.carlini.label_slots import Slots
from instahide_fl.attacks.carlini.matching_pursuit import (
    PublicPart,
    PublicPursuit,
    public_spread,
)
from instahide_fl.attacks.carlini.refinement import Refined, improved, refine
from instahide_fl.attacks.carlini.similarity import similarity_vectors
from instahide_fl.attacks.carlini.stage_cache import Stages
from instahide_fl.attacks.decoding.mixtures import largest_pixel
from instahide_fl.attacks.encoding_links import LinkedEncodings
from instahide_fl.errors import AttackError
from instahide_fl.metrics.correction import in_likelier_sign
from instahide_fl.rng import stream
from instahide_fl.transcript.view import AdversaryView

# Encodings that tell whether images mean anything: a share, but not too few.
HELD_OUT_SHARE, MIN_HELD_OUT, MAX_HELD_OUT_SHARE = 0.1, 40, 0.25
NEAREST = 30  # slots of each cluster that are named, for its purity


class Settings(Protocol):
    """What `attacks.carlini.Carlini` is told."""

    @property
    def images(self) -> int:
        """Private images of the client; 0 to estimate it."""

    @property
    def rounds(self) -> int:
        """Of refinement, at most."""


@dataclass(frozen=True)
class ClientAttack:
    """What is attacked.

    Attributes:
        settings: of the attack.
        view: of the adversary.
        joined: all encodings of the client.
        slots: of these.
        seed: of every stage.
    """

    settings: Settings
    view: AdversaryView
    joined: JoinedEncodings
    slots: Slots
    seed: int

    @classmethod
    def of(
        cls, settings: Settings, view: AdversaryView, joined: JoinedEncodings, seed: int
    ) -> ClientAttack:
        """Take the encodings of a client apart.

        Raises:
            AttackError: they are too few, or labels do not fit.
        """
        private = view.config.instahide.private_count
        slots = Slots.of(joined.images, joined.soft_targets, private)
        wanted = MIN_SLOTS * max(1, settings.images)
        if len(slots) < wanted or len(slots.clear) < 2:
            raise AttackError(
                f"not enough information: the {len(joined.images)} encodings of client "
                f"{joined.client} name {len(slots)} images in all, clustering needs "
                f"{MIN_SLOTS} of each image: record more rounds"
            )
        return cls(settings, view, joined, slots, seed)

    def run(
        self, pursuit: PublicPursuit | None, stages: Stages, progress: ProgressCallback
    ) -> Recovered:
        """Attack.

        Args:
            pursuit: None if the pool is not searched.
            stages: where results are kept.
            progress: told how far it is.
        """
        slots, count = self.slots, str(self.settings.images)
        own = stages.within(
            f"client-{self.joined.client}",
            self.joined.images,
            self.joined.soft_targets,
        )
        public = _public_part(own.result("public", lambda: self._public(pursuit)))
        progress(15, 100)
        vectors = similarity_vectors(
            slots.images, slots.private_coefficients, public, pursuit
        )
        progress(20, 100)
        grouped = own.result("clusters", lambda: self._clusters(vectors), count)
        clusters = Clusters(grouped["classes"], grouped["scores"])
        links = own.result("links", lambda: {"links": assign(slots, clusters)}, count)[
            "links"
        ]
        progress(30, 100)
        found = own.result(
            "refined",
            lambda: self._refined(
                clusters,
                links,
                public,
                pursuit,
                lambda done, total: progress(30 + 70 * done // total, 100),
            ),
            count,
            str(self.settings.rounds),
        )
        progress(100, 100)
        return self._recovered(vectors, clusters, links, found)

    def _stream(self, stage: str) -> np.random.Generator:
        return stream(self.seed, "carlini", stage, self.joined.client)

    def _public(self, pursuit: PublicPursuit | None) -> dict[str, Tensor]:
        slots = self.slots
        if pursuit is None:
            spread = public_spread(self.view.config.instahide, self._stream("spread"))
            rest = (1 - slots.soft_targets.sum(1)).clamp_min(0)
            pixels = slots.images[0].numel()
            found = PublicPart.unknown(spread * rest.square(), pixels)
        else:
            found = pursuit.blind(slots.images, slots.private_coefficients)
        return {
            "index": found.index,
            "coefficients": found.coefficients,
            "total": found.total,
            "variance": found.variance,
        }

    def _used(self) -> Tensor:
        """Return which encodings are not held out, bool[E]."""
        clear = self.slots.encodings[self.slots.clear[:, 0]]
        count = len(clear)
        order = clear[torch.from_numpy(self._stream("held out").permutation(count))]
        used = torch.ones(len(self.slots.images), dtype=torch.bool)
        at_least = max(HELD_OUT_SHARE * count, MIN_HELD_OUT)
        held_out = min(at_least, MAX_HELD_OUT_SHARE * count)
        used[order[: max(1, round(held_out))]] = False
        return used

    def _clusters(self, vectors: Tensor) -> dict[str, Tensor]:
        rng, count = self._stream("clusters"), self.settings.images
        found = cluster(self.slots, vectors, self._used(), count, rng)
        if not len(found.classes):
            raise AttackError(
                f"not enough information: no class has {MIN_SLOTS} encodings of "
                f"client {self.joined.client}: record more rounds"
            )
        return {"classes": found.classes, "scores": found.scores}

    def _problem(self, clusters: Clusters) -> tuple[Problem, Tensor]:
        """Return what is to be decoded, and its slots, i64[M,p]."""
        slots = self.slots
        decodable = torch.isin(slots.classes, clusters.classes)
        order = slots.clear[decodable[slots.clear].all(1)]
        scores = clusters.scores
        finite = scores[scores.isfinite()]
        standard = (scores - finite.mean()) / finite.std().clamp_min(1e-6)
        problem = Problem(
            slots.images[slots.encodings[order[:, 0]]],
            slots.classes[order],
            slots.coefficients[order],
            standard[order],
            clusters.classes,
            largest_pixel(self.view.statistics),
        )
        return problem, order

    def _refined(
        self,
        clusters: Clusters,
        links: Tensor,
        public: PublicPart,
        pursuit: PublicPursuit | None,
        progress: ProgressCallback,
    ) -> dict[str, Tensor]:
        problem, order = self._problem(clusters)
        encodings = self.slots.encodings[order[:, 0]]
        blind = public.rows(encodings)
        kept = self._used()[encodings]
        used, held_out = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
        lead = margins(clusters.scores)[order].amin(1)
        first = links[order]
        found = refine(
            problem.rows(used),
            first[used],
            lead[used],
            blind.rows(used),
            pursuit,
            self.settings.rounds,
            self._stream("decoding"),
            lambda done, total: progress(done, total + 1),
        )
        some = without_prior(problem.rows(held_out))
        sure = evidence(some, found.images, found.errors, blind.rows(held_out))
        # Nothing more is to be tested: those held out may now help.
        whole = improved(problem, _of_all(found, first, used, lead, blind), pursuit)
        refined = links.clone()
        refined[order] = whole.links
        images = whole.images
        if not whole.public.found:  # which would tell the sign of all images
            images = in_likelier_sign(images, self.view.statistics)
        return {
            "images": images,
            "links": refined,
            "public": whole.public.index,
            "rounds": torch.tensor(float(whole.rounds)),
            "decoded": torch.tensor(float(len(order))),
            "evidence": torch.tensor(sure),
        }

    def _recovered(
        self,
        vectors: Tensor,
        clusters: Clusters,
        links: Tensor,
        found: dict[str, Tensor],
    ) -> Recovered:
        slots, joined = self.slots, self.joined
        refined, sure = found["links"], float(found["evidence"])
        seen = LinkedEncodings(
            joined.places[slots.encodings],
            slots.classes,
            vectors,
            slots.encodings,
            nearest_slots(clusters.scores, slots.coefficients, NEAREST),
            links,
            refined,
        )
        return Recovered(
            joined.client,
            0,
            found["images"] if sure >= MIN_EVIDENCE else None,
            diagnostics={
                "encodings": float(len(joined.images)),
                "images": float(len(clusters.classes)),
                "encodings_decoded": float(found["decoded"]),
                "public_images_found": float((found["public"] >= 0).sum()),
                "links_changed": float((refined != links).float().mean()),
                "rounds": float(found["rounds"]),
                "evidence": sure,
            },
            weights=self._weights(refined, len(clusters.classes)),
            links=seen,
        )

    def _weights(self, links: Tensor, count: int) -> Tensor:
        """Return how much of each image is in each encoding, f32[E,n]."""
        slots, places = self.slots, self.joined.places
        weights = torch.zeros(int(places.max()) + 1, count)
        linked = links >= 0
        rows = places[slots.encodings[linked]]
        weights[rows, links[linked]] = slots.coefficients[linked]
        return weights


def _of_all(
    found: Refined, links: Tensor, used: Tensor, lead: Tensor, public: PublicPart
) -> Refined:
    """Return what was found of some encodings, as of all of them."""
    joined = links.clone()
    joined[used] = found.links
    return Refined(found.images, found.errors, joined, lead, public, found.rounds)


def _public_part(kept: dict[str, Tensor]) -> PublicPart:
    return PublicPart(
        kept["index"], kept["coefficients"], kept["total"], kept["variance"]
    )
