"""Closed-form recovery from the gradient of a first fully-connected layer."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from instahide_fl.attacks.base import Advance, Attack, Reconstruction, Recovered
from instahide_fl.attacks.layers.disaggregation import Disaggregated, disaggregate
from instahide_fl.attacks.layers.linear_layers import (
    LinearLayer,
    first_linear_layer,
    layer_gradient,
    layer_parameters,
)
from instahide_fl.config.base import Count
from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView, Observation


class FirstLayer(Attack):
    """Exact encodings of small batches from a linear first layer."""

    section = "first_layer"
    name: ClassVar[str] = "first_layer"
    summary: ClassVar[str] = (
        "encodings of a small batch, exactly, from a fully-connected first layer"
    )
    on_aggregates: ClassVar[bool] = True
    cost: ClassVar[str] = "below a second a client at batch 8, seconds at batch 16"
    source: ClassVar[str] = (
        'Phong et al., "Privacy-Preserving Deep Learning via Additively Homomorphic '
        'Encryption", IEEE TIFS 2018 (one image); Dimitrov et al., "SPEAR", NeurIPS '
        "2024 (batches)"
    )

    starts: Count = 1_000
    """Most random starts of the search that takes a batch apart."""
    largest_batch: Count = 32
    """Images of an update beyond which the attack is refused: it would not succeed."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Divide rows of the weight's gradient by the bias's.

        Raises:
            AttackError: the first layer is not linear on all pixels, or a batch has
                several images and the activation is not relu.
        """
        config = view.config
        layer = first_linear_layer(config, view.image_shape, view.num_classes)
        if layer is None:
            raise AttackError(
                f"attack first_layer needs a first layer that is linear on all pixels: "
                f'run with model.name = "mlp", got {config.model.name!r}'
            )
        recovered = []
        for done, observation in enumerate(view.observations):
            part = _OneOf(advance, done, len(view.observations))
            recovered.append(self._recover(view, observation, layer, rng, part))
        return Reconstruction("encoding", tuple(recovered))

    def _recover(
        self,
        view: AdversaryView,
        observation: Observation,
        layer: LinearLayer,
        rng: np.random.Generator,
        advance: Advance,
    ) -> Recovered:
        gradient = layer_gradient(view.config, observation, layer)
        count = sum(observation.batch_sizes)
        if count == 1:
            row = int(gradient.bias.abs().argmax())
            image = gradient.weight[row] / gradient.bias[row]
            found = Disaggregated(image[None], 1, 0)
            advance(1, 1)
        else:
            self._check_batch(view, observation, count)
            sent = layer_parameters(observation, layer)
            found = disaggregate(gradient, sent, count, self.starts, rng, advance)
        return Recovered(
            observation.client,
            observation.round,
            images=found.images.float().view(-1, *view.image_shape),
            diagnostics={
                "images_in_gradient": float(found.rank),
                "images_verified": float(len(found.images)),
                "starts": float(found.starts),
            },
        )

    def _check_batch(
        self, view: AdversaryView, observation: Observation, count: int
    ) -> None:
        """Refuse a batch that cannot be taken apart."""
        activation, who = view.config.model.activation, observation.who
        if activation != "relu":
            raise AttackError(
                f"attack first_layer takes batches apart by the units that relu leaves "
                f"inactive: {who} sent the gradient of {count} images and "
                f"model.activation is {activation!r}; record a run with "
                f'train.batch-size = 1 or model.activation = "relu"'
            )
        if count > self.largest_batch:
            raise AttackError(
                f"attack first_layer succeeds on small batches: {who} sent "
                f"the gradient of {count} images, largest-batch is "
                f"{self.largest_batch}; record a run with a smaller train.batch-size"
            )


class _OneOf:
    """Progress of one client among several."""

    def __init__(self, advance: Advance, done: int, count: int) -> None:
        self._advance, self._done, self._count = advance, done, count

    def __call__(self, done: int, total: int) -> None:
        self._advance(self._done * total + done, self._count * total)
