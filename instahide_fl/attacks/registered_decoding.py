"""Decode encodings of cropped and mirrored images whose positions are unknown."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
    scale_progress,
)
from instahide_fl.attacks.carlini.matching_pursuit import PublicMatchingPursuit
from instahide_fl.attacks.decode_encodings import (
    group_by_client,
    join,
    known_encodings,
    known_pool,
)
from instahide_fl.attacks.decoding.mixtures import Mixtures
from instahide_fl.attacks.decoding.registration import SWEEPS, registered_decode
from instahide_fl.config.base import Count
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView

IMAGE_ERROR = 0.15  # variance of a pixel's error in decoded images, for the search
NO_AUGMENTATION = Augmentation(padding=0, flip=False)


class RegisteredDecoding(Attack):
    """Find where each encoding shows each image, and decode, of all rounds together."""

    name: ClassVar[str] = "registered_decoding"
    summary: ClassVar[str] = (
        "private images from encodings despite crops and mirroring, with mapping and "
        "coefficients known"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.ENCODINGS, Knowledge.MAPPING}
    )
    cost: ClassVar[str] = "minutes for 5,000 colour images of 32 pixels"
    source: ClassVar[str] = (
        "own; the idea to register is that of Luo et al., Fusion-Denoising Attack on "
        "InstaHide with Data Augmentation, arXiv:2105.07754"
    )
    by_default: ClassVar[bool] = False
    threat_model: ClassVar[str] = "auditor-of-encodings"

    sweeps: Count = SWEEPS
    """The number of sweeps over all images, positions and pixels in turn."""
    public_part: Literal["searched", "unknown", "known"] = "searched"
    """`searched`: public images are searched in the pool, if encodings contain any and
    hide their signs. Otherwise as in decode_encodings."""
    searches: Count = 2
    """The number of searches of the pool, with a decoding after each."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Attack; see `Attack.reconstruct`.

        Raises:
            AttackError: There is nothing to decode.
        """
        by_client = group_by_client(known_encodings(view))
        every = [part for parts in by_client.values() for part in parts]
        public_part = "unknown" if self.public_part == "searched" else self.public_part
        pool = known_pool(every, view, public_part)
        pursuit = self._pursuit(view, rng)
        recovered = []
        for number, (client, parts) in enumerate(by_client.items()):
            mixtures, rows = join(parts, pool=pool)
            client_progress = scale_progress(progress, number, len(by_client))
            images, diagnostics = self._decode(
                mixtures, view, pursuit, rng, client_progress
            )
            recovered.append(
                Recovered(client, 0, images, rows=rows, diagnostics=diagnostics)
            )
        return Reconstruction("private", tuple(recovered), aligned=True)

    def _pursuit(
        self, view: AdversaryView, rng: np.random.Generator
    ) -> PublicMatchingPursuit | None:
        """Return the search of the pool, if it is asked for and applies."""
        config, pool = view.config.instahide, view.pool
        hidden = config.method == "instahide" and config.uses_pool
        if self.public_part != "searched" or pool is None or not hidden:
            return None
        return PublicMatchingPursuit(pool, config, rng)

    def _decode(
        self,
        mixtures: Mixtures,
        view: AdversaryView,
        pursuit: PublicMatchingPursuit | None,
        rng: np.random.Generator,
        progress: ProgressCallback,
    ) -> tuple[Tensor, dict[str, float]]:
        """Decode the encodings of one client; return images and diagnostics."""
        decoding = partial(
            registered_decode,
            statistics=view.statistics,
            augmentation=augmentation_for(view.config.data, view.image_shape)
            or NO_AUGMENTATION,
            folded=view.config.instahide.method == "instahide",
            rng=rng,
            sweeps=self.sweeps,
        )
        diagnostics = {
            "encodings": float(len(mixtures.encodings)),
            "encodings_per_image": mixtures.encodings_per_image,
        }
        if pursuit is None:
            return decoding(mixtures, progress=progress).images, diagnostics
        encodings, weights = mixtures.encodings, mixtures.weights
        public = pursuit.search_blind(encodings, weights)
        error = IMAGE_ERROR * weights.square().sum(1)
        for number in range(self.searches):
            subtracted = replace(
                mixtures,
                public=public.total.view(encodings.shape),  # [E,D] -> [E,C,H,W]
                unknown_variance=public.variance,
            )
            decoded = decoding(
                subtracted, progress=scale_progress(progress, number, self.searches)
            )
            if number + 1 < self.searches:
                public = pursuit.search_given_private(
                    encodings, weights, decoded.private, error
                )
        diagnostics["public_images_found"] = float((public.index >= 0).sum())
        return decoded.images, diagnostics
