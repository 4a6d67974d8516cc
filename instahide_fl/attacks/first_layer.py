"""Recover encodings exactly from the gradient of a fully-connected first layer."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
    scale_progress,
)
from instahide_fl.attacks.layers.absolute_values import images_from_inputs
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
    """Recover the encodings of small batches from a linear first layer."""

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
    """The largest number of random starts of the search that takes a batch apart."""
    largest_batch: Count = 32
    """The largest number of images in an update that the attack accepts; with more it
    would not succeed."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Divide rows of the weight's gradient by the bias's; see `Attack.reconstruct`.

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
        for number, observation in enumerate(view.observations):
            part = scale_progress(progress, number, len(view.observations))
            recovered.append(self._recover(view, observation, layer, rng, part))
        return Reconstruction("encoding", tuple(recovered))

    def _recover(
        self,
        view: AdversaryView,
        observation: Observation,
        layer: LinearLayer,
        rng: np.random.Generator,
        progress: ProgressCallback,
    ) -> Recovered:
        gradient = layer_gradient(view.config, observation, layer)
        count = sum(observation.batch_sizes)
        if count == 1:
            # Row j of the weight's gradient is that of the bias times the image.
            row = int(gradient.bias.abs().argmax())
            image = gradient.weight[row] / gradient.bias[row]
            batch = Disaggregated(image[None], 1, 0)
            progress(1, 1)
        else:
            self._check_batch(view, observation, count)
            batch = disaggregate(
                gradient=gradient,
                parameters=layer_parameters(observation, layer),
                batch_size=count,
                starts=self.starts,
                rng=rng,
                progress=progress,
            )
        images = images_from_inputs(view.config, batch.images).float()
        return Recovered(
            observation.client,
            observation.round,
            images=images.view(-1, *view.image_shape),  # [M,D] -> [M,C,H,W]
            diagnostics={
                "images_in_gradient": float(batch.rank),
                "images_verified": float(len(batch.images)),
                "starts": float(batch.starts),
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
