"""Guess the signs that a mask hides, by a network trained on own mixtures."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from instahide_fl.attacks.base import (
    Advance,
    Attack,
    Reconstruction,
    Recovered,
)
from instahide_fl.attacks.pool_search.attack import observed_encodings
from instahide_fl.attacks.pool_search.network_training import Training
from instahide_fl.attacks.pool_search.sign_network import demask, train_sign_network
from instahide_fl.attacks.pool_search.training_mixtures import own_mixtures
from instahide_fl.config.base import Count
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView


class Demasking(Attack):
    """Turn encodings back into the mixtures that they were before the mask."""

    section = "demasking"
    name: ClassVar[str] = "demasking"
    summary: ClassVar[str] = (
        "signs of encodings, and so the mixture of images behind the mask"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.ENCODINGS})
    cost: ClassVar[str] = "minutes, to train a small network"
    source: ClassVar[str] = (
        "this project; the network is a U-Net (Ronneberger et al., MICCAI 2015)"
    )
    by_default: ClassVar[bool] = False
    threat_model: ClassVar[str] = "encodings-holder"
    no_control: ClassVar[str] = "a run that hides nothing has no sign mask"

    proxy: str = ""
    """Public images in the place of private ones in own mixtures, as in `data.dataset`;
    empty takes images of the pool."""
    steps: Count = 300
    """Batches that the network is trained for."""
    batch_size: Count = 64
    """Mixtures in a batch."""
    encodings: Annotated[int, Field(ge=1)] = 64
    """Encodings of each client and round that are de-masked: the first so many."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Train on own mixtures, then guess the signs of the encodings.

        Args:
            view: with encodings.
            rng: draws initial weights and own mixtures.
            advance: told how far the training is.

        Raises:
            AttackError: the run hides no signs, there are no encodings, or the proxy
                does not fit.
        """
        method = view.config.instahide.method
        if method != "instahide":
            raise AttackError(
                f"attack demasking guesses signs, and this run hides none "
                f"(instahide.method = {method!r}): it applies to "
                f'instahide.method = "instahide"'
            )
        seen = observed_encodings(view)
        mixtures = own_mixtures(view, self.proxy, "demasking.proxy")
        training = Training(self.steps, self.batch_size)
        channels = view.image_shape[0]
        network, loss = train_sign_network(channels, mixtures, training, rng, advance)
        recovered = tuple(
            Recovered(
                one.client,
                one.round,
                demask(network, one.encodings[: self.encodings]),
                rows=torch.arange(min(self.encodings, len(one.encodings))),
            )
            for one in seen
            if one.encodings is not None
        )
        return Reconstruction("mixture", recovered, {"training_loss": loss})
