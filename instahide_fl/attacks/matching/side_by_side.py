"""Gradients of many victims in one pass, where all were sent the same parameters.

`gradient_matching` computes any update of any network, but vmap turns a convolution
into a grouped one, which copies much. Where all victims hold the same parameters and
sent the gradient of one batch, their images can go through the network as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
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
    """Return the way to compute how far guesses' updates are from those observed.

    Args:
        victims: V of them.
        kind: `cosine_distance` or `squared_distance`.

    Returns:
        A function of images f32[V,M,C,H,W] and soft targets f32[V,M,K], to f32[V].
    """
    if not one_pass_will_do(victims):
        measure = cosine_distance if kind == "cosine" else squared_distance
        return lambda images, soft_targets: measure(
            simulated_updates(victims, images, soft_targets), victims.updates
        )
    together = SideBySide(victims)
    if kind == "cosine":
        return together.cosine_distance
    # By products it would be a small difference of large numbers.
    return lambda images, soft_targets: squared_distance(
        together.updates(images, soft_targets), victims.updates
    )


def one_pass_will_do(victims: Victims) -> bool:
    """Return whether `SideBySide` can compute the victims' updates.

    It can where all were sent the same parameters, sent the gradient of one batch back,
    and the network treats each image by itself (no BatchNorm) and has parameters in
    Linear, GroupNorm and ungrouped Conv2d layers only.
    """
    if not victims.shared or victims.steps.kind != "gradient":
        return False
    return all(_allowed(module) for module in victims.model.modules())


class SideBySide:
    """Victims of which `one_pass_will_do`.

    Args:
        victims: V of them.
    """

    def __init__(self, victims: Victims) -> None:
        self._model = deepcopy(victims.model)
        self._model.load_state_dict(victims.parameters, strict=False)
        self._model.requires_grad_(False)
        self._layers = _fix_layers(self._model)
        updates = victims.updates
        self._matrices = {
            layer.name: layer.matrix(updates[f"{layer.name}.weight"]).contiguous()
            for layer in self._layers
            if isinstance(layer, FixedMatrix)
        }
        self._updates = updates
        squares = [array.flatten(1).square().sum(1) for array in updates.values()]
        self._norm = torch.stack(squares).sum(0).sqrt()

    def updates(self, images: Tensor, soft_targets: Tensor) -> Arrays:
        """Compute what clients would send; see `simulated_updates`."""
        found: Arrays = {}
        for layer, slopes, inputs in self._factors(images, soft_targets):
            found |= layer.vectors(slopes, inputs)
            if isinstance(layer, FixedMatrix):
                product = slopes.mT @ inputs
                found[f"{layer.name}.weight"] = layer.weights(product)
        return found

    def cosine_distance(self, images: Tensor, soft_targets: Tensor) -> Tensor:
        """Compute the distance of updates; see `cosine_distance`.

        The gradients themselves are not made where that is less work. The result can be
        differentiated once.

        Args:
            images: f32[V,M,C,H,W], normalised.
            soft_targets: f32[V,M,K].

        Returns:
            f32[V], 0 to 2.
        """
        vectors: Arrays = {}
        inner, own = [], []
        for layer, slopes, inputs in self._factors(images, soft_targets):
            vectors |= layer.vectors(slopes, inputs)
            if isinstance(layer, FixedMatrix):
                wanted = self._matrices[layer.name]
                with_wanted, with_itself = _products(slopes, inputs, wanted)
                inner.append(with_wanted)
                own.append(with_itself)
        if vectors:
            found = torch.cat(list(vectors.values()), 1)
            known = torch.cat([self._updates[name] for name in vectors], 1)
            inner.append(_dot(found, known))
            own.append(_dot(found, found))
        norms = torch.stack(own).sum(0).sqrt() * self._norm
        return 1 - torch.stack(inner).sum(0) / norms.clamp_min(1e-30)

    def _factors(
        self, images: Tensor, soft_targets: Tensor
    ) -> Iterator[tuple[FixedLayer, Tensor, Tensor]]:
        """Yield layers with their slopes f32[V,P,O] and inputs f32[V,P,I].

        Raises:
            AttackError: the network does not call each of them once.
        """
        count = len(images)
        for layer in self._layers:
            layer.calls = 0
        logits = self._model(images.flatten(0, 1))
        # The mean over all images, times V: the sum of the victims' own losses.
        loss = count * soft_cross_entropy(logits, soft_targets.flatten(0, 1))
        for layer in self._layers:
            if layer.calls != 1:
                raise AttackError(
                    f"the network calls its layer {layer.name} {layer.calls} times for "
                    f"an image; gradients of victims side by side need exactly 1"
                )
        edges = [layer.edge for layer in self._layers]
        slopes = torch.autograd.grad(loss, edges, create_graph=True)
        for layer, slope in zip(self._layers, slopes, strict=True):
            shape = (count, len(slope) // count, -1)
            yield layer, slope.reshape(shape), layer.inputs.view(shape)


def _products(slopes: Tensor, inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return <G, wanted> and <G, G> of each G = slopes^T inputs, as f32[V] each."""
    (positions, inner), outer = inputs.shape[1:], slopes.shape[2]
    # Multiplications, forth and back; both ways also multiply with `wanted` once.
    by_positions = positions * positions * (inner + outer)
    direct = positions * inner * outer // 2
    way = _ByPositions if by_positions < direct else _Direct
    both: tuple[Tensor, Tensor] = way.apply(slopes, inputs, wanted)
    return both


class _Direct(torch.autograd.Function):
    """Products by way of G itself."""

    @staticmethod
    def forward(
        ctx: Any, slopes: Tensor, inputs: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradient = slopes.mT @ inputs
        ctx.save_for_backward(slopes, inputs, wanted, gradient)
        return _dot(gradient, wanted), _dot(gradient, gradient)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_inner: Tensor, by_own: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        slopes, inputs, wanted, gradient = ctx.saved_tensors
        factor, twice = by_inner.view(-1, 1, 1), 2 * by_own.view(-1, 1, 1)
        moved = (wanted * factor).addcmul_(gradient, twice)
        return inputs @ moved.mT, slopes @ moved, None


class _ByPositions(torch.autograd.Function):
    """Products by way of positions: <G, G> = <slopes slopes^T, inputs inputs^T>.

    Small where there are few positions (Goodfellow, "Efficient Per-Example Gradient
    Computations", 2015, arXiv:1510.01799).
    """

    @staticmethod
    def forward(
        ctx: Any, slopes: Tensor, inputs: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        answers = inputs @ wanted.mT
        grams = _gram(slopes), _gram(inputs)
        ctx.save_for_backward(slopes, inputs, wanted, answers, *grams)
        return _dot(slopes, answers), _dot(*grams)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_inner: Tensor, by_own: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        slopes, inputs, wanted, answers, of_slopes, of_inputs = ctx.saved_tensors
        factor, twice = by_inner.view(-1, 1, 1), 2 * by_own.view(-1, 1, 1)
        to_slopes = torch.baddbmm(answers * factor, of_inputs * twice, slopes)
        to_inputs = torch.baddbmm((slopes * factor) @ wanted, of_slopes * twice, inputs)
        return to_slopes, to_inputs, None


def _gram(rows: Tensor) -> Tensor:
    if rows.shape[1] == 1:  # a product of matrices is slow for that
        return rows.square().sum(2, keepdim=True)
    return rows @ rows.mT


def _dot(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(left.flatten(1), right.flatten(1))
    return product


def _allowed(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return False
    if type(module) is nn.Conv2d:
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and module.groups == 1
    # Parameters with no layer of their own are nowhere to be found later.
    own = next(module.parameters(recurse=False), None)
    return own is None or type(module) in (nn.Linear, nn.GroupNorm)


def _fix_layers(model: nn.Module) -> list[FixedLayer]:
    """Put fixed layers in the place of those with parameters, and return them."""
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
            parent, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(parent), own_name, fixed)
            layers.append(fixed)
    return layers
