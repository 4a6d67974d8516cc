"""Craft a first layer that sorts images into bins, as a malicious server may do.

Source: Fowl et al., "Robbing the Fed: Directly Obtaining Private Data in Federated
Learning with Modified Models", ICLR 2022 (arXiv:2110.13057). All units of the first
layer share one direction w and differ by their threshold, so the gradient rows of
neighbouring units differ by the images whose <w,x> lies between their thresholds: often
a single one. Two things are additions of this project: thresholds are quantiles over
public encodings, and the units are divided among several directions, whose bins are
read together (`layers.bins`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
)
from instahide_fl.attacks.layers.absolute_values import images_from_inputs
from instahide_fl.attacks.layers.bins import empty_bins
from instahide_fl.attacks.layers.linear_layers import (
    LayerTensors,
    LinearLayer,
    first_layer_inputs,
    first_linear_layer,
    last_linear_layer,
    layer_gradient,
    layer_parameters,
    require_one_step,
)
from instahide_fl.config import Config
from instahide_fl.data.federated_data import load_pool
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.rng import stream
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import PrivateSplit

MAX_DIRECTIONS = 8
PUBLIC_ENCODINGS = 4_000
PREDICTION = 0.85  # predicted probability of class 0, whatever the image
SPREAD = 0.3  # standard deviation of the logit of class 0 among images


class Imprint(Attack):
    """Recover encodings of large batches, as a server that chooses the parameters."""

    name: ClassVar[str] = "imprint"
    summary: ClassVar[str] = (
        "encodings of a large batch, exactly, from a crafted first layer that sorts "
        "them into bins"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.PARAMETERS, Knowledge.UPDATES, Knowledge.CRAFTED}
    )
    cost: ClassVar[str] = "below a second a client"
    source: ClassVar[str] = 'Fowl et al., "Robbing the Fed", ICLR 2022'
    threat_model: ClassVar[str] = "malicious-server"

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Subtract the rows of neighbouring units; see `Attack.reconstruct`.

        Raises:
            AttackError: the parameters were not crafted, or a client took several
                local steps.
        """
        if view.config.record.crafted != "imprint":
            raise AttackError(
                f"attack imprint needs a round with crafted parameters: run with "
                f'--set record.crafted=imprint, got "{view.config.record.crafted}"'
            )
        first, _ = _layers(view.config, view.image_shape, view.num_classes)
        recovered = []
        for number, observation in enumerate(view.observations):
            recovered.append(_recover(view, observation, first))
            progress(number + 1, len(view.observations))
        return Reconstruction("encoding", tuple(recovered))


def crafted_parameters(
    arrays: Mapping[str, Tensor],
    config: Config,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> dict[str, Tensor]:
    """Return parameters whose gradients contain single images.

    Args:
        arrays: The global parameters by name; they are not changed.
        config: The run's settings; directions and public encodings follow its seed.
        image_shape: C, H, W.
        num_classes: K, the number of classes.

    Returns:
        The crafted parameters by name, in the shapes of `arrays`.

    Raises:
        AttackError: the network is not a linear layer, relu and another linear layer.
        PoolError: there are no public images of this shape.
    """
    first, last = _layers(config, image_shape, num_classes)
    encodings = public_encodings(config, image_shape)
    sorting = sorting_layer(encodings, len(arrays[first.bias]), config.seed)
    head_weight = torch.zeros_like(arrays[last.weight])
    head_bias = torch.zeros_like(arrays[last.bias])
    # Only the logit of class 0 depends on the units, on all of them equally. Each image
    # then enters a unit's gradient with the factor S p - y, with p the prediction of
    # class 0, y the label there and S the label's sum. A p far from any usual y / S
    # keeps the factor away from 0.
    head_weight[0] = 1.0
    odds = max(1, num_classes - 1) * PREDICTION / (1 - PREDICTION)
    centre = float(_activity(sorting, encodings).median())
    head_bias[0] = math.log(odds) - centre
    return {
        **arrays,
        first.weight: sorting.weight.to(arrays[first.weight]),
        first.bias: sorting.bias.to(arrays[first.bias]),
        last.weight: head_weight,
        last.bias: head_bias,
    }


def public_encodings(config: Config, image_shape: tuple[int, int, int]) -> Tensor:
    """Encode public images as the run encodes private ones, f64[N,D].

    A sign-invariant network's first layer sees their standardised absolute values,
    which are then what is returned.

    Args:
        config: The run's settings. If its encodings use no pool, `photos` is encoded.
        image_shape: C, H, W.
    """
    channels, height, _ = image_shape
    pool = load_pool(config, image_shape) or MixingPool.photos(height, channels)
    pool.check_fits(image_shape, 0)
    targets = torch.zeros(len(pool), dtype=torch.int64)
    split = PrivateSplit(pool.images, targets, 1, pool.statistics)
    rng = stream(config.seed, "imprint", "encodings")
    rows = torch.from_numpy(rng.permutation(len(pool))[:PUBLIC_ENCODINGS])
    encoder = build_encoder(config.instahide, pool)
    batch, _ = encoder.encode(rows, split, rng)
    inputs = first_layer_inputs(config, batch.images)
    return inputs.flatten(1).double()  # [N,C,H,W] -> [N,D]


def sorting_layer(encodings: Tensor, units: int, seed: int) -> LayerTensors:
    """Return a layer whose units compare <w,x> with thresholds, direction by direction.

    Args:
        encodings: The encodings of public images, f64[N,D].
        units: J, the number of units.
        seed: The seed of the directions.

    Returns:
        The weight f64[J,D] and bias f64[J], scaled so that the sum of all activities
        has the standard deviation `SPREAD` among encodings, so that predictions do not
        saturate.
    """
    count = max(1, min(MAX_DIRECTIONS, units // 2))
    rng = stream(seed, "imprint", "directions")
    directions = torch.from_numpy(rng.standard_normal((count, encodings.shape[1])))
    products = encodings @ directions.T  # [N,count]
    weights, thresholds = [], []
    for number, part in enumerate(np.array_split(np.arange(units), count)):
        weights.append(directions[number].expand(len(part), -1))
        thresholds.append(_thresholds(products[:, number], len(part)))
    raw = LayerTensors(torch.cat(weights), -torch.cat(thresholds))
    scale = SPREAD / _activity(raw, encodings).std().clamp_min(1e-12)
    return LayerTensors(raw.weight * scale, raw.bias * scale)


def _thresholds(values: Tensor, count: int) -> Tensor:
    """Return thresholds: one below all values, then quantiles that divide them."""
    levels = torch.arange(1, count, dtype=values.dtype) / count
    low, high = values.min(), values.max()
    return torch.cat([(2 * low - high)[None], torch.quantile(values, levels)])


def _activity(layer: LayerTensors, images: Tensor) -> Tensor:
    """Return the sum of all units' activities for images f64[N,D]."""
    return torch.relu(images @ layer.weight.T + layer.bias).sum(dim=1)


def _layers(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[LinearLayer, LinearLayer]:
    """Return the two layers of an mlp.

    Raises:
        AttackError: the network is not an mlp with relu.
    """
    first = first_linear_layer(config, image_shape, num_classes)
    last = last_linear_layer(config, image_shape, num_classes)
    fits = first is not None and config.model.activation == "relu"
    if first is None or last is None or not fits:
        raise AttackError(
            f"imprint crafts a network of a linear layer, relu and a linear layer: set "
            f'model.name = "mlp" and model.activation = "relu", got '
            f"{config.model.name!r} and {config.model.activation!r}"
        )
    return first, last


def _recover(
    view: AdversaryView, observation: Observation, layer: LinearLayer
) -> Recovered:
    require_one_step(Imprint.name, observation)
    gradient = layer_gradient(view.config, observation, layer)
    inputs, passes = empty_bins(gradient, layer_parameters(observation, layer))
    images = images_from_inputs(view.config, inputs)
    return Recovered(
        observation.client,
        observation.round,
        images=images.float().view(-1, *view.image_shape),  # [M,D] -> [M,C,H,W]
        diagnostics={"images": float(len(images)), "passes": float(passes)},
    )
