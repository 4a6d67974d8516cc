"""Compute the gradients of many victims in one pass, where they share parameters.

`gradient_matching` computes any update of any network, but vmap turns a convolution
into a grouped one, which copies a lot. Where all victims were sent the same parameters
and sent the gradient of one batch, their images can pass the network as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from instahide_fl.attacks.matching.fixed_layers import (
    FixedConvolution,
    FixedLayer,
    FixedMatrix,
    FixedScale,
)
from instahide_fl.attacks.matching.gradient_matching import (
    Arrays,
    cosine_distance,
    simulated_updates,
    squared_distance,
)
from instahide_fl.attacks.matching.victims import Victims
from instahide_fl.errors import AttackError
from instahide_fl.training.losses import soft_cross_entropy

UpdateDistance: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def update_distance(
    victims: Victims, kind: Literal["cosine", "squared"]
) -> UpdateDistance:
    """Return the fastest function for the distance of guesses' updates.

    Args:
        victims: The V victims.
        kind: The distance: `cosine_distance` or `squared_distance`.

    Returns:
        A function of images f32[V,M,C,H,W] and soft targets f32[V,M,K], which returns
        the distances to the observed updates, f32[V].
    """
    defense = victims.defense
    if fits_one_pass(victims):
        together = SideBySide(victims)
        if kind == "cosine" and not (defense and defense.takes_signs):
            return together.cosine_distance
        # Computed by products, the squared distance would be a small difference of
        # large numbers.
        computed = together.updates
    else:
        computed = partial(simulated_updates, victims)
    measure = cosine_distance if kind == "cosine" else squared_distance

    def distance(images: Tensor, soft_targets: Tensor) -> Tensor:
        updates = computed(images, soft_targets)
        if defense is not None:
            updates = defense.apply(updates, victims.updates)
        return measure(updates, victims.updates)

    return distance


def fits_one_pass(victims: Victims) -> bool:
    """Return whether `SideBySide` can compute the victims' updates.

    It can if all victims were sent the same parameters and sent the gradient of one
    batch back, and if the network treats each image separately (no BatchNorm) and has
    parameters only in Linear, GroupNorm and ungrouped Conv2d layers.
    """
    if not victims.shared or victims.steps.kind != "gradient":
        return False
    return all(_supported(module) for module in victims.model.modules())


class SideBySide:
    """Victims whose gradients are computed in one pass.

    Args:
        victims: The V victims, of which `fits_one_pass`.
    """

    def __init__(self, victims: Victims) -> None:
        self._model = deepcopy(victims.model)
        self._model.load_state_dict(victims.parameters, strict=False)
        self._model.requires_grad_(False)
        self._layers = _fix_layers(self._model)
        updates = victims.updates
        self._matrices = {
            layer.name: layer.to_matrix(updates[f"{layer.name}.weight"]).contiguous()
            for layer in self._layers
            if isinstance(layer, FixedMatrix)
        }
        self._updates = updates
        prunes = victims.defense is not None and victims.defense.prunes
        self._sent = (
            {name: matrix != 0 for name, matrix in self._matrices.items()}
            if prunes
            else {}
        )
        self._prunes = prunes
        squares = [array.flatten(1).square().sum(1) for array in updates.values()]
        self._norm = torch.stack(squares).sum(0).sqrt()

    def updates(self, images: Tensor, soft_targets: Tensor) -> Arrays:
        """Compute the updates that clients would send; see `simulated_updates`."""
        updates: Arrays = {}
        for layer, output_gradients, inputs in self._factors(images, soft_targets):
            updates |= layer.vector_gradients(output_gradients, inputs)
            if isinstance(layer, FixedMatrix):
                product = output_gradients.mT @ inputs  # [V,O,P] @ [V,P,I] -> [V,O,I]
                updates[f"{layer.name}.weight"] = layer.to_weight(product)
        return updates

    def cosine_distance(self, images: Tensor, soft_targets: Tensor) -> Tensor:
        """Compute the distance of updates; see `cosine_distance`.

        Of pruned updates only the entries that were sent are compared. The gradients of
        weights are not formed where that is less work. The result can be differentiated
        once.

        Args:
            images: The guessed images, normalised, f32[V,M,C,H,W].
            soft_targets: The guessed or known labels, f32[V,M,K].

        Returns:
            The distances, f32[V], from 0 to 2.
        """
        vectors: Arrays = {}
        inner, squares = [], []
        for layer, output_gradients, inputs in self._factors(images, soft_targets):
            vectors |= layer.vector_gradients(output_gradients, inputs)
            if isinstance(layer, FixedMatrix):
                observed = self._matrices[layer.name]
                sent = self._sent.get(layer.name)
                product, square = _products(output_gradients, inputs, observed, sent)
                inner.append(product)
                squares.append(square)
        if vectors:
            guessed = torch.cat(list(vectors.values()), 1)
            observed = torch.cat([self._updates[name] for name in vectors], 1)
            if self._prunes:
                guessed = guessed * (observed != 0)
            inner.append(_dot(guessed, observed))
            squares.append(_dot(guessed, guessed))
        norms = torch.stack(squares).sum(0).sqrt() * self._norm
        return 1 - torch.stack(inner).sum(0) / norms.clamp_min(1e-30)

    def _factors(
        self, images: Tensor, soft_targets: Tensor
    ) -> Iterator[tuple[FixedLayer, Tensor, Tensor]]:
        """Yield each layer with output gradients f32[V,P,O] and inputs f32[V,P,I].

        Raises:
            AttackError: the network does not call each layer exactly once.
        """
        count = len(images)
        for layer in self._layers:
            layer.calls = 0
        logits = self._model(images.flatten(0, 1))  # [V,M,C,H,W] -> [V*M,C,H,W]
        # The mean over all images, times V, is the sum of the victims' mean losses.
        loss = count * soft_cross_entropy(logits, soft_targets.flatten(0, 1))
        for layer in self._layers:
            if layer.calls != 1:
                raise AttackError(
                    f"the network calls its layer {layer.name} {layer.calls} times for "
                    f"an image; gradients of victims side by side need exactly 1"
                )
        edges = [layer.edge for layer in self._layers]
        gradients = torch.autograd.grad(loss, edges, create_graph=True)
        for layer, gradient in zip(self._layers, gradients, strict=True):
            shape = (count, len(gradient) // count, -1)  # [V*P,...] -> [V,P,...]
            yield layer, gradient.reshape(shape), layer.inputs.view(shape)


def _products(
    output_gradients: Tensor, inputs: Tensor, observed: Tensor, sent: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return <G, observed> and <G, G> of the weight gradients G, f32[V] each.

    Args:
        output_gradients: The gradients at the layer's outputs, f32[V,P,O].
        inputs: The layer's inputs, f32[V,P,I]; G is output_gradients^T inputs.
        observed: The observed gradients of the weight, f32[V,O,I].
        sent: The entries of G to take, bool[V,O,I]; None takes all.
    """
    products: tuple[Tensor, Tensor]
    if sent is not None:  # only G itself has entries that can be left out
        products = _Direct.apply(output_gradients, inputs, observed, sent)
        return products
    (positions, num_inputs), num_outputs = inputs.shape[1:], output_gradients.shape[2]
    # The numbers of multiplications, forward and backward; both ways also multiply with
    # `observed` once.
    by_positions = positions * positions * (num_inputs + num_outputs)
    direct = positions * num_inputs * num_outputs // 2
    function = _ByPositions if by_positions < direct else _Direct
    products = function.apply(output_gradients, inputs, observed)
    return products


class _Direct(torch.autograd.Function):
    """Products with G itself."""

    @staticmethod
    def forward(
        ctx: Any,
        output_gradients: Tensor,
        inputs: Tensor,
        observed: Tensor,
        sent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        gradient = output_gradients.mT @ inputs  # [V,O,I]
        if sent is not None:  # `observed` is 0 where nothing was sent
            gradient *= sent
        ctx.save_for_backward(output_gradients, inputs, observed, gradient)
        return _dot(gradient, observed), _dot(gradient, gradient)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_inner: Tensor, by_square: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        output_gradients, inputs, observed, gradient = ctx.saved_tensors
        factor, twice = by_inner.view(-1, 1, 1), 2 * by_square.view(-1, 1, 1)
        by_gradient = (observed * factor).addcmul_(gradient, twice)
        return inputs @ by_gradient.mT, output_gradients @ by_gradient, None, None


class _ByPositions(torch.autograd.Function):
    """Products without G, by Gram matrices over positions.

    With D the output gradients and X the inputs, <G, G> = <D D^T, X X^T>, which is
    little work where there are few positions (Goodfellow, "Efficient Per-Example
    Gradient Computations", 2015, arXiv:1510.01799).
    """

    @staticmethod
    def forward(
        ctx: Any, output_gradients: Tensor, inputs: Tensor, observed: Tensor
    ) -> tuple[Tensor, Tensor]:
        projected = inputs @ observed.mT  # [V,P,I] @ [V,I,O] -> [V,P,O]
        output_gram, input_gram = _gram(output_gradients), _gram(inputs)
        grams = output_gram, input_gram
        ctx.save_for_backward(output_gradients, inputs, observed, projected, *grams)
        return _dot(output_gradients, projected), _dot(output_gram, input_gram)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_inner: Tensor, by_square: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        output_gradients, inputs, observed, projected, output_gram, input_gram = (
            ctx.saved_tensors
        )
        factor, twice = by_inner.view(-1, 1, 1), 2 * by_square.view(-1, 1, 1)
        by_outputs = torch.baddbmm(
            projected * factor, input_gram * twice, output_gradients
        )
        by_inputs = torch.baddbmm(
            (output_gradients * factor) @ observed, output_gram * twice, inputs
        )
        return by_outputs, by_inputs, None


def _gram(rows: Tensor) -> Tensor:
    """Return the inner products of the rows of each matrix: [V,P,D] -> [V,P,P]."""
    if rows.shape[1] == 1:  # a matrix product is slow for a single row
        return rows.square().sum(2, keepdim=True)
    return rows @ rows.mT


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))  # [V]
    return product


def _supported(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return False
    if type(module) is nn.Conv2d:
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and module.groups == 1
    # Other modules would use their parameters in ways that no fixed layer computes.
    parameter = next(module.parameters(recurse=False), None)
    return parameter is None or type(module) in (nn.Linear, nn.GroupNorm)


def _fix_layers(model: nn.Module) -> list[FixedLayer]:
    """Replace the layers that have parameters by fixed ones, and return these."""
    layers: list[FixedLayer] = []
    for name, module in list(model.named_modules()):
        fixed: FixedLayer | None = None
        if isinstance(module, nn.Conv2d):
            fixed = FixedConvolution(name, module)
        elif isinstance(module, nn.Linear):
            fixed = FixedMatrix(name, module)
        elif isinstance(module, nn.GroupNorm) and module.affine:
            fixed = FixedScale(name, module)
        if fixed is not None:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, fixed)
            layers.append(fixed)
    return layers
