"""Decode encodings of images that were cropped and mirrored, positions unknown."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from instahide_fl.attacks.attack import (
    Advance,
    Attack,
    Reconstruction,
    Recovered,
    continued,
)
from instahide_fl.attacks.decode_encodings import (
    KnownEncodings,
    join,
    known_pool,
)
from instahide_fl.attacks.decoding.registration import SWEEPS, registered_decode
from instahide_fl.config.table import Count
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import AdversaryView, Knowledge

NOTHING = Augmentation(padding=0, flip=False)


class RegisteredDecoding(Attack):
    """Find where each encoding shows each image, and decode, of all rounds together."""

    section = "registered_decoding"

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
    public_part: Literal["unknown", "known"] = "unknown"
    """As of decode_encodings."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
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
        pool = known_pool(every, view, self.public_part)
        augmentation = augmentation_for(view.config.data, view.image_shape) or NOTHING
        folded = view.config.instahide.method == "instahide"
        recovered = []
        for number, (client, parts) in enumerate(known.items()):
            mixtures, rows = join(parts, pool=pool)
            images, _ = registered_decode(
                mixtures,
                view.statistics,
                augmentation,
                folded,
                rng,
                self.sweeps,
                continued(advance, number, len(known)),
            )
            about = {
                "encodings": float(len(mixtures.encodings)),
                "encodings_per_image": mixtures.encodings_per_image,
            }
            recovered.append(Recovered(client, 0, images, rows=rows, diagnostics=about))
        return Reconstruction("private", tuple(recovered), aligned=True)
