"""Layers with fixed parameters that keep what gradients per victim are made of.

The gradient of a linear layer's weight is a product: slopes at what goes out, times
what comes in. One ordinary pass over the images of all victims gives both factors, and
the product is then taken for each victim apart (Rochette et al., "Efficient Per-Example
Gradient Computations in Convolutional Neural Networks", 2019, arXiv:1912.06015).

A convolution is computed as a product of matrices, because the rows that it needs for
that are the ones its gradient needs.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

Pair: TypeAlias = tuple[int, int]


class FixedLayer(nn.Module):
    """A layer whose parameters do not move.

    Attributes:
        name: of the layer in its network.
        inputs: what the last pass multiplied weights with, f32[N,I]: a row for each
            position of each image.
        edge: where the slopes at the last pass's outputs, f32[N,O], can be asked for.
        calls: so far.
    """

    inputs: Tensor
    edge: GradientEdge

    def __init__(self, name: str, bias: Tensor | None) -> None:
        super().__init__()
        self.name, self.calls = name, 0
        self.bias = None if bias is None else bias.detach()

    def keep(self, inputs: Tensor, outputs: Tensor) -> None:
        """Remember one pass; what comes after may overwrite the outputs in place."""
        self.inputs, self.edge = inputs, get_gradient_edge(outputs)
        self.calls += 1

    def vectors(self, slopes: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        """Return the gradients of parameters that are vectors, f32[V,O] by name.

        Args:
            slopes: f32[V,P,O], P positions in the images of each victim.
            inputs: f32[V,P,I].
        """
        return {} if self.bias is None else {f"{self.name}.bias": slopes.sum(1)}


class FixedScale(FixedLayer):
    """GroupNorm: its weight is a factor for each channel."""

    def __init__(self, name: str, layer: nn.GroupNorm) -> None:
        super().__init__(name, layer.bias)
        self._scale = layer.weight.detach()
        self._groups, self._eps = layer.num_groups, layer.eps

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features f32[B,C,...]."""
        normal = F.group_norm(features, self._groups, eps=self._eps).movedim(1, -1)
        rows = normal.flatten(0, -2)
        assert self.bias is not None
        outputs = torch.addcmul(self.bias, rows, self._scale)
        self.keep(rows, outputs)
        return outputs.view(normal.shape).movedim(-1, 1)

    def vectors(self, slopes: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        """See `FixedLayer.vectors`."""
        own = {f"{self.name}.weight": (slopes * inputs).sum(1)}
        return own | super().vectors(slopes, inputs)


class FixedMatrix(FixedLayer):
    """A linear layer: its weight is a matrix."""

    def __init__(self, name: str, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__(name, layer.bias)
        self._matrix = self.matrix(layer.weight.detach()).contiguous()

    def matrix(self, weights: Tensor) -> Tensor:
        """Return weights f32[...,O,...] as f32[...,O,I], as they are multiplied."""
        return weights

    def weights(self, matrix: Tensor) -> Tensor:
        """Return the inverse of `matrix`."""
        return matrix

    def rows(self, features: Tensor) -> Tensor:
        """Return what the weight is multiplied with, f32[...,I]."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        """Return f32[...,O] of f32[...,I]."""
        rows = self.rows(features)
        flat = rows.flatten(0, -2)
        outputs = F.linear(flat, self._matrix, self.bias)
        self.keep(flat, outputs)
        return outputs.view(*rows.shape[:-1], -1)


class FixedConvolution(FixedMatrix):
    """A convolution of one group with zeros around."""

    def __init__(self, name: str, layer: nn.Conv2d) -> None:
        super().__init__(name, layer)
        self._windows = _Windows(layer)

    def matrix(self, weights: Tensor) -> Tensor:
        """Return weights f32[...,O,C,k,l] as f32[...,O,k*l*C]."""
        return weights.movedim(-3, -1).flatten(-3)

    def weights(self, matrix: Tensor) -> Tensor:
        """Return the inverse of `matrix`."""
        parts = matrix.reshape(*matrix.shape[:-1], *self._windows.size, -1)
        return parts.movedim(-1, -3)

    def rows(self, features: Tensor) -> Tensor:
        """Return the windows of features f32[B,C,H,W], as f32[B,h,w,k*l*C]."""
        rows: Tensor = _Unfold.apply(features.movedim(1, -1), self._windows)
        return rows

    def forward(self, features: Tensor) -> Tensor:
        """Return f32[B,O,h,w], channels last in memory."""
        return super().forward(features).movedim(-1, 1)


class _Windows:
    """Where a convolution looks; features have their channels last here."""

    def __init__(self, layer: nn.Conv2d) -> None:
        assert not isinstance(layer.padding, str)
        self.size, self._step = _pair(layer.kernel_size), _pair(layer.stride)
        self._apart, self._border = _pair(layer.dilation), _pair(layer.padding)

    def of(self, features: Tensor) -> Tensor:
        """Return f32[B,h,w,k*l*C] of f32[B,H,W,C]."""
        (above, left), (tall, wide) = self._border, self.size
        batch, rows, columns, channels = features.shape
        grid = features.new_zeros(batch, rows + 2 * above, columns + 2 * left, channels)
        grid[:, above : above + rows, left : left + columns] = features
        image, row, column, channel = grid.stride()
        height, width = self._counts(grid.shape[1], grid.shape[2])
        seen = grid.as_strided(
            (batch, height, width, tall, wide, channels),
            (
                image,
                row * self._step[0],
                column * self._step[1],
                row * self._apart[0],
                column * self._apart[1],
                channel,
            ),
        )
        return seen.flatten(3)

    def added(self, windows: Tensor, shape: torch.Size) -> Tensor:
        """Return the sum of windows f32[B,h,w,k*l*C] where they lie in f32[B,H,W,C]."""
        (above, left), (tall, wide) = self._border, self.size
        batch, rows, columns, channels = shape
        grid = windows.new_zeros(batch, rows + 2 * above, columns + 2 * left, channels)
        height, width = windows.shape[1:3]
        parts = windows.view(batch, height, width, tall, wide, channels)
        for i in range(tall):
            for j in range(wide):
                top, first = i * self._apart[0], j * self._apart[1]
                grid[
                    :,
                    top : top + self._step[0] * (height - 1) + 1 : self._step[0],
                    first : first + self._step[1] * (width - 1) + 1 : self._step[1],
                ] += parts[:, :, :, i, j]
        return grid[:, above : above + rows, left : left + columns]

    def _counts(self, rows: int, columns: int) -> Pair:
        height, width = (
            (side - apart * (size - 1) - 1) // step + 1
            for side, apart, size, step in zip(
                (rows, columns), self._apart, self.size, self._step, strict=True
            )
        )
        return height, width


class _Unfold(torch.autograd.Function):
    """`_Windows.of`, several times faster here than torch's unfold."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, windows: _Windows) -> Tensor:
        ctx.windows, ctx.shape = windows, features.shape
        return windows.of(features)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None]:
        return _Fold.apply(slopes, ctx.windows, ctx.shape), None


class _Fold(torch.autograd.Function):
    """`_Windows.added`, the transpose of `_Unfold`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, windows: _Windows, shape: torch.Size) -> Tensor:
        ctx.windows = windows
        return windows.added(rows.contiguous(), shape)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        return _Unfold.apply(slopes, ctx.windows), None, None


def _pair(values: tuple[int, ...]) -> Pair:
    first, second = values
    return first, second
