"""Decode encodings of images that were cropped and mirrored, positions unknown."""

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
from instahide_fl.attacks.carlini.matching_pursuit import PublicPursuit
from instahide_fl.attacks.decode_encodings import (
    KnownEncodings,
    join,
    known_pool,
)
from instahide_fl.attacks.decoding.mixtures import Mixtures
from instahide_fl.attacks.decoding.registration import SWEEPS, registered_decode
from instahide_fl.config.base import Count
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView

IMAGE_ERROR = 0.15  # variance of a pixel of decoded images' errors, for the search
NOTHING = Augmentation(padding=0, flip=False)


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
    """Over all images, positions and pixels in turn."""
    public_part: Literal["searched", "unknown", "known"] = "searched"
    """`searched` in the pool, as far as encodings contain any and hide their signs;
    otherwise as of decode_encodings."""
    searches: Count = 2
    """Searches of the pool, with a decoding after each."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Attack; see `Attack.reconstruct`.

        Raises:
            AttackError: there is nothing to decode.
        """
        known: dict[str, list[KnownEncodings]] = {}
        for one in view.observations:
            if one.encodings is not None and one.mapping is not None:
                part = KnownEncodings(one.client, one.encodings, one.mapping)
                known.setdefault(one.client, []).append(part)
        if not known:
            raise AttackError(
                "there are no encodings to decode: record at least one round "
                '(--set record.rounds="1") with clients in it'
            )
        every = [part for parts in known.values() for part in parts]
        told = "unknown" if self.public_part == "searched" else self.public_part
        pool = known_pool(every, view, told)
        pursuit = self._pursuit(view, rng)
        recovered = []
        for number, (client, parts) in enumerate(known.items()):
            mixtures, rows = join(parts, pool=pool)
            ahead = scale_progress(progress, number, len(known))
            images, about = self._decode(mixtures, view, pursuit, rng, ahead)
            recovered.append(Recovered(client, 0, images, rows=rows, diagnostics=about))
        return Reconstruction("private", tuple(recovered), aligned=True)

    def _pursuit(
        self, view: AdversaryView, rng: np.random.Generator
    ) -> PublicPursuit | None:
        """Return the pool, ready to be searched, if it is to be."""
        config, pool = view.config.instahide, view.pool
        hidden = config.method == "instahide" and config.uses_pool
        if self.public_part != "searched" or pool is None or not hidden:
            return None
        return PublicPursuit(pool, config, rng)

    def _decode(
        self,
        mixtures: Mixtures,
        view: AdversaryView,
        pursuit: PublicPursuit | None,
        rng: np.random.Generator,
        progress: ProgressCallback,
    ) -> tuple[Tensor, dict[str, float]]:
        """Decode the encodings of one client; return images and numbers about it."""
        decoding = partial(
            registered_decode,
            statistics=view.statistics,
            augmentation=augmentation_for(view.config.data, view.image_shape)
            or NOTHING,
            folded=view.config.instahide.method == "instahide",
            rng=rng,
            sweeps=self.sweeps,
        )
        about = {
            "encodings": float(len(mixtures.encodings)),
            "encodings_per_image": mixtures.encodings_per_image,
        }
        if pursuit is None:
            return decoding(mixtures, progress=progress).images, about
        encodings, weights = mixtures.encodings, mixtures.weights
        public = pursuit.blind(encodings, weights)
        error = IMAGE_ERROR * weights.square().sum(1)
        for number in range(self.searches):
            ahead = scale_progress(progress, number, self.searches)
            subtracted = replace(
                mixtures,
                public=public.total.view(encodings.shape),
                unknown_variance=public.variance,
            )
            found = decoding(subtracted, progress=ahead)
            if number + 1 < self.searches:
                public = pursuit.given(encodings, weights, found.private, error)
        about["public_images_found"] = float((public.index >= 0).sum())
        return found.images, about
