"""Two steps: recover encodings from the updates of several rounds, then decode them.

Huang et al., "Evaluating Gradient Inversion Attacks and Defenses in Federated
Learning", NeurIPS 2021, section 5, attack InstaHide in this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
    ignore_progress,
)
from instahide_fl.attacks.decode_encodings import DecodeEncodings, decode_recovered
from instahide_fl.attacks.decoding.choice import Decoder
from instahide_fl.attacks.decoding.mixtures import EXACT
from instahide_fl.attacks.first_layer import FirstLayer
from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.attacks.layers.absolute_values import images_from_inputs
from instahide_fl.config import Scalar
from instahide_fl.config.base import Count
from instahide_fl.errors import AttackError
from instahide_fl.models.sign_invariance import standardised_absolute
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView


class TwoStep(Attack):
    """Gradient inversion, then decoding with mapping and coefficients given."""

    name: ClassVar[str] = "two_step"
    summary: ClassVar[str] = (
        "private images from the updates of several rounds: encodings first, then "
        "decoded with mapping and coefficients known"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.PARAMETERS, Knowledge.UPDATES, Knowledge.MAPPING}
    )
    cost: ClassVar[str] = "that of the first step for each round and client"
    source: ClassVar[str] = "Huang et al., NeurIPS 2021, arXiv:2112.00059"
    threat_model: ClassVar[str] = "auditor"
    quick: ClassVar[Mapping[str, Scalar]] = {"iterations": 300}

    first_step: Literal["auto", "first_layer", "inverting_gradients"] = "auto"
    """`auto`: first_layer where the network begins with a linear layer."""
    iterations: Count = 1000
    """The number of iterations of inverting_gradients."""
    error_variance: Annotated[float, Field(gt=0)] = 0.05
    """The variance of the error of a pixel that inverting_gradients recovers, in
    normalised units: the larger, the less the decoder trusts it. The pixels of
    first_layer are exact."""
    decoder: Decoder | Literal["auto"] = "auto"
    """The decoder, as in decode_encodings."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Attack every update, then every client; see `Attack.reconstruct`."""
        first, variance = self._encodings(view, rng, progress)
        decoded = decode_recovered(
            recovered=first.recovered,
            view=view,
            settings=DecodeEncodings(decoder=self.decoder),
            rng=rng,
            progress=ignore_progress,
            error_variance=variance,
        )
        return Reconstruction(
            "private",
            decoded.recovered,
            decoded.diagnostics,
            adaptation=first.adaptation,
        )

    def _encodings(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> tuple[Reconstruction, float]:
        """Return the recovered encodings, and the variance of a pixel's error."""
        batches = [update for update in view.observations if update.num_examples != 1]
        if batches:
            raise AttackError(
                f"attack two_step needs updates of one encoding, client "
                f"{batches[0].client} sent one of {batches[0].num_examples}: their "
                f"order within a batch is unknown; record a run with "
                f"train.batch-size = 1 and train.local-batches = 1"
            )
        sign_invariant, method = (
            view.config.sign_invariant,
            view.config.instahide.method,
        )
        if sign_invariant and method == "mixup":
            raise AttackError(
                "attack two_step decodes Mixup by the signs of pixels, of which an "
                "update says nothing where model.sign-invariant = true: record a run "
                "with model.sign-invariant = false"
            )
        # Mean and scale of absolute values are estimates, however exact the rest is.
        variance = self.error_variance if sign_invariant else EXACT
        if self.first_step != "inverting_gradients":
            try:
                return FirstLayer().reconstruct(view, rng, progress), variance
            except AttackError:
                if self.first_step == "first_layer":
                    raise
        inverting = InvertingGradients(iterations=self.iterations)
        inverted = inverting.reconstruct(view, rng, progress)
        if sign_invariant:
            folded = tuple(_absolute_values(view, part) for part in inverted.recovered)
            inverted = replace(inverted, recovered=folded)
        return inverted, self.error_variance


def _absolute_values(view: AdversaryView, recovered: Recovered) -> Recovered:
    """Return the images as absolute values of the scale that encodings have.

    Gradient matching leaves mean, scale and signs as its starting point had them,
    where the network does not see them.
    """
    if recovered.images is None:
        return recovered
    images = standardised_absolute(recovered.images)
    # [M,C,H,W] -> [M,C*H*W] -> [M,C,H,W]
    scaled = images_from_inputs(view.config, images.flatten(1).double()).float()
    return replace(recovered, images=scaled.view_as(images))
