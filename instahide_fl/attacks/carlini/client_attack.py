"""The attack on the encodings of one client, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import ProgressCallback, Recovered
from instahide_fl.attacks.carlini.assignment import assign, margins
from instahide_fl.attacks.carlini.client_encodings import ClientEncodings
from instahide_fl.attacks.carlini.clusters import (
    MIN_ENTRIES,
    Clusters,
    cluster,
    nearest_entries,
)
from instahide_fl.attacks.carlini.decoding_problem import DecodingProblem
from instahide_fl.attacks.carlini.held_out import (
    MIN_HELD_OUT_STATISTIC,
    held_out_statistic,
    without_prior,
)
from instahide_fl.attacks.carlini.label_entries import LabelEntries
from instahide_fl.attacks.carlini.matching_pursuit import (
    PublicMatchingPursuit,
    PublicPart,
    public_concentration,
)
from instahide_fl.attacks.carlini.refinement import JointEstimate, refine, refine_once
from instahide_fl.attacks.carlini.similarity import similarity_vectors
from instahide_fl.attacks.carlini.stage_cache import StageCache
from instahide_fl.attacks.decoding.mixtures import largest_pixel
from instahide_fl.attacks.encoding_links import LinkedEncodings
from instahide_fl.errors import AttackError
from instahide_fl.metrics.correction import in_likelier_sign
from instahide_fl.rng import stream
from instahide_fl.transcript.view import AdversaryView

# Encodings of the held-out test: a share, but not too few, and not too large a part.
HELD_OUT_SHARE, MIN_HELD_OUT, MAX_HELD_OUT_SHARE = 0.1, 40, 0.25
NUM_NEAREST = 30  # label entries of each cluster that are named, for its purity


class Settings(Protocol):
    """The settings of `Carlini` that the attack on one client reads."""

    @property
    def images(self) -> int:
        """The number of private images of the client; 0 to estimate it."""

    @property
    def rounds(self) -> int:
        """The largest number of rounds of refinement."""


@dataclass(frozen=True)
class ClientAttack:
    """The attack on one client.

    Attributes:
        settings: The settings of the attack.
        view: The view of the adversary.
        encodings: All encodings of the client.
        entries: The label entries of these encodings.
        seed: The seed of every stage.
    """

    settings: Settings
    view: AdversaryView
    encodings: ClientEncodings
    entries: LabelEntries
    seed: int

    @classmethod
    def of(
        cls,
        settings: Settings,
        view: AdversaryView,
        encodings: ClientEncodings,
        seed: int,
    ) -> ClientAttack:
        """Read the labels of a client's encodings.

        Args:
            settings: The settings of the attack.
            view: The view of the adversary.
            encodings: All encodings of the client.
            seed: The seed of every stage.

        Raises:
            AttackError: The encodings are too few, or their labels do not fit.
        """
        num_private = view.config.instahide.private_count
        images = encodings.images
        entries = LabelEntries.of(images, encodings.soft_targets, num_private)
        needed = MIN_ENTRIES * max(1, settings.images)
        if len(entries) < needed or len(entries.unshared) < 2:
            raise AttackError(
                f"not enough information: the {len(images)} encodings of client "
                f"{encodings.client} name {len(entries)} images in all, clustering "
                f"needs {MIN_ENTRIES} of each image: record more rounds"
            )
        return cls(settings, view, encodings, entries, seed)

    def run(
        self,
        pursuit: PublicMatchingPursuit | None,
        cache: StageCache,
        progress: ProgressCallback,
    ) -> Recovered:
        """Run the attack on this client.

        Args:
            pursuit: The search of the pool; None if the pool is not searched.
            cache: The cache of the stages' results.
            progress: The callback told how far the attack on this client is.
        """
        entries, count = self.entries, str(self.settings.images)
        client_cache = cache.subfolder(
            f"client-{self.encodings.client}",
            self.encodings.images,
            self.encodings.soft_targets,
        )
        public = _public_part(
            client_cache.get_or_compute("public", lambda: self._public(pursuit))
        )
        progress(15, 100)
        vectors = similarity_vectors(
            entries.images, entries.private_coefficients, public, pursuit
        )
        progress(20, 100)
        tensors = client_cache.get_or_compute(
            "clusters", lambda: self._clusters(vectors), count
        )
        clusters = Clusters(tensors["classes"], tensors["scores"])
        links = client_cache.get_or_compute(
            "links", lambda: {"links": assign(entries, clusters)}, count
        )["links"]
        progress(30, 100)
        refined = client_cache.get_or_compute(
            "refined",
            lambda: self._refined(
                clusters,
                links,
                public,
                pursuit,
                lambda completed, total: progress(30 + 70 * completed // total, 100),
            ),
            count,
            str(self.settings.rounds),
        )
        progress(100, 100)
        return self._recovered(vectors, clusters, links, refined)

    def _stream(self, stage: str) -> np.random.Generator:
        return stream(self.seed, "carlini", stage, self.encodings.client)

    def _public(self, pursuit: PublicMatchingPursuit | None) -> dict[str, Tensor]:
        entries = self.entries
        if pursuit is None:
            concentration = public_concentration(
                self.view.config.instahide, self._stream("spread")
            )
            public_sum = (1 - entries.soft_targets.sum(1)).clamp_min(0)
            pixels = entries.images[0].numel()
            public = PublicPart.unknown(concentration * public_sum.square(), pixels)
        else:
            public = pursuit.search_blind(entries.images, entries.private_coefficients)
        return {
            "index": public.index,
            "coefficients": public.coefficients,
            "total": public.total,
            "variance": public.variance,
        }

    def _used(self) -> Tensor:
        """Return which encodings are not held out, bool[E].

        Only encodings that are decoded can be held out: the test compares their fit.
        """
        decodable = self.entries.encodings[self.entries.unshared[:, 0]]
        count = len(decodable)
        shuffled = torch.from_numpy(self._stream("held out").permutation(count))
        used = torch.ones(len(self.entries.images), dtype=torch.bool)
        at_least = max(HELD_OUT_SHARE * count, MIN_HELD_OUT)
        held_out = min(at_least, MAX_HELD_OUT_SHARE * count)
        used[decodable[shuffled][: max(1, round(held_out))]] = False
        return used

    def _clusters(self, vectors: Tensor) -> dict[str, Tensor]:
        rng, count = self._stream("clusters"), self.settings.images
        clusters = cluster(self.entries, vectors, self._used(), count, rng)
        if not len(clusters.classes):
            raise AttackError(
                f"not enough information: no class has {MIN_ENTRIES} encodings of "
                f"client {self.encodings.client}: record more rounds"
            )
        return {"classes": clusters.classes, "scores": clusters.scores}

    def _problem(self, clusters: Clusters) -> tuple[DecodingProblem, Tensor]:
        """Return what is to be decoded, and its label entries, i64[M,p]."""
        entries = self.entries
        # An encoding can be decoded if each of its entries is one image, and each
        # image's class has a cluster.
        clustered = torch.isin(entries.classes, clusters.classes)
        rows = entries.unshared[clustered[entries.unshared].all(1)]
        scores = clusters.scores
        finite = scores[scores.isfinite()]
        standard = (scores - finite.mean()) / finite.std().clamp_min(1e-6)
        problem = DecodingProblem(
            encodings=entries.images[entries.encodings[rows[:, 0]]],
            classes=entries.classes[rows],
            coefficients=entries.coefficients[rows],
            prior=standard[rows],  # [L,n] -> [M,p,n]
            image_classes=clusters.classes,
            largest_pixel=largest_pixel(self.view.statistics),
        )
        return problem, rows

    def _refined(
        self,
        clusters: Clusters,
        links: Tensor,
        public: PublicPart,
        pursuit: PublicMatchingPursuit | None,
        progress: ProgressCallback,
    ) -> dict[str, Tensor]:
        problem, rows = self._problem(clusters)
        encodings = self.entries.encodings[rows[:, 0]]
        blind = public.rows(encodings)
        is_used = self._used()[encodings]
        used, held_out = is_used.nonzero()[:, 0], (~is_used).nonzero()[:, 0]
        lead = margins(clusters.scores)[rows].amin(1)
        first = links[rows]
        estimate = refine(
            problem=problem.rows(used),
            links=first[used],
            margins=lead[used],
            public=blind.rows(used),
            pursuit=pursuit,
            rounds=self.settings.rounds,
            rng=self._stream("decoding"),
            progress=lambda completed, total: progress(completed, total + 1),
        )
        # The test takes the public part as it was found without any decoded image:
        # one found with their help would favour them.
        statistic = held_out_statistic(
            without_prior(problem.rows(held_out)),
            estimate.images,
            estimate.errors,
            blind.rows(held_out),
        )
        # The test is over: the encodings that were held out may now help.
        final = refine_once(
            problem, _for_all(estimate, first, used, lead, blind), pursuit
        )
        refined = links.clone()
        refined[rows] = final.links
        images = final.images
        if not final.public.has_images:  # which would tell the sign of all images
            images = in_likelier_sign(images, self.view.statistics)
        return {
            "images": images,
            "links": refined,
            "public": final.public.index,
            "rounds": torch.tensor(float(final.rounds)),
            "decoded": torch.tensor(float(len(rows))),
            "evidence": torch.tensor(statistic),
        }

    def _recovered(
        self,
        vectors: Tensor,
        clusters: Clusters,
        links: Tensor,
        stage: dict[str, Tensor],
    ) -> Recovered:
        entries, encodings = self.entries, self.encodings
        refined, statistic = stage["links"], float(stage["evidence"])
        linked_encodings = LinkedEncodings(
            encodings=encodings.first_rows[entries.encodings],
            classes=entries.classes,
            vectors=vectors,
            vector_rows=entries.encodings,
            clusters=nearest_entries(
                clusters.scores, entries.coefficients, NUM_NEAREST
            ),
            clustered=links,
            refined=refined,
        )
        return Recovered(
            encodings.client,
            0,
            stage["images"] if statistic >= MIN_HELD_OUT_STATISTIC else None,
            diagnostics={
                "encodings": float(len(encodings.images)),
                "images": float(len(clusters.classes)),
                "encodings_decoded": float(stage["decoded"]),
                "public_images_found": float((stage["public"] >= 0).sum()),
                "links_changed": float((refined != links).float().mean()),
                "rounds": float(stage["rounds"]),
                "evidence": statistic,
            },
            weights=self._weights(refined, len(clusters.classes)),
            links=linked_encodings,
        )

    def _weights(self, links: Tensor, count: int) -> Tensor:
        """Return how much of each image is in each encoding, f32[E,n]."""
        entries, first_rows = self.entries, self.encodings.first_rows
        weights = torch.zeros(int(first_rows.max()) + 1, count)
        linked = links >= 0
        rows = first_rows[entries.encodings[linked]]
        weights[rows, links[linked]] = entries.coefficients[linked]
        return weights


def _for_all(
    estimate: JointEstimate,
    links: Tensor,
    used: Tensor,
    lead: Tensor,
    public: PublicPart,
) -> JointEstimate:
    """Return an estimate for all encodings from that for the used ones.

    The held-out encodings have the links of clustering.
    """
    all_links = links.clone()
    all_links[used] = estimate.links
    return JointEstimate(
        images=estimate.images,
        errors=estimate.errors,
        links=all_links,
        margins=lead,
        public=public,
        rounds=estimate.rounds,
    )


def _public_part(tensors: dict[str, Tensor]) -> PublicPart:
    return PublicPart(
        tensors["index"],
        tensors["coefficients"],
        tensors["total"],
        tensors["variance"],
    )
