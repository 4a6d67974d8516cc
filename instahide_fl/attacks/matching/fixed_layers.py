"""Layers with fixed parameters that remember the factors of per-victim gradients.

The gradient of a linear layer's weight is a product: the gradient at the layer's output
times the layer's input. One ordinary pass over the images of all victims gives both
factors, and the product is then taken for each victim separately (Rochette et al.,
"Efficient Per-Example Gradient Computations in Convolutional Neural Networks", 2019,
arXiv:1912.06015).

A convolution is computed as a matrix product, because its gradient needs the same
unfolded rows.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

Pair: TypeAlias = tuple[int, int]


class FixedLayer(nn.Module):
    """A layer whose parameters are constants.

    Attributes:
        name: The name of the layer in its network.
        inputs: The inputs of the last pass, f32[N,I]: a row for each position of each
            image.
        edge: The edge of the autograd graph at which the gradient at the outputs of the
            last pass, f32[N,O], can be requested.
        calls: The number of passes so far.
    """

    inputs: Tensor
    edge: GradientEdge

    def __init__(self, name: str, bias: Tensor | None) -> None:
        super().__init__()
        self.name, self.calls = name, 0
        self.bias = None if bias is None else bias.detach()

    def remember(self, inputs: Tensor, outputs: Tensor) -> None:
        """Remember one pass; the layers after it may overwrite the outputs in place."""
        self.inputs, self.edge = inputs, get_gradient_edge(outputs)
        self.calls += 1

    def vector_gradients(
        self, output_gradients: Tensor, inputs: Tensor
    ) -> dict[str, Tensor]:
        """Return the gradients of parameters that are vectors, f32[V,O] by name.

        Args:
            output_gradients: The gradients at the outputs, f32[V,P,O], for P positions
                in the images of each of V victims.
            inputs: The inputs, f32[V,P,I].
        """
        if self.bias is None:
            return {}
        return {f"{self.name}.bias": output_gradients.sum(1)}


class FixedScale(FixedLayer):
    """A GroupNorm, whose weight is a factor for each channel."""

    def __init__(self, name: str, layer: nn.GroupNorm) -> None:
        super().__init__(name, layer.bias)
        self._scale = layer.weight.detach()
        self._groups, self._eps = layer.num_groups, layer.eps

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features f32[B,C,...]."""
        normal = F.group_norm(features, self._groups, eps=self._eps).movedim(1, -1)
        rows = normal.flatten(0, -2)  # [B,...,C] -> [N,C]
        assert self.bias is not None
        outputs = torch.addcmul(self.bias, rows, self._scale)
        self.remember(rows, outputs)
        return outputs.view(normal.shape).movedim(-1, 1)  # [N,C] -> [B,C,...]

    def vector_gradients(
        self, output_gradients: Tensor, inputs: Tensor
    ) -> dict[str, Tensor]:
        """Return the gradients of scale and bias; see `FixedLayer.vector_gradients`."""
        scale = {f"{self.name}.weight": (output_gradients * inputs).sum(1)}
        return scale | super().vector_gradients(output_gradients, inputs)


class FixedMatrix(FixedLayer):
    """A linear layer, whose weight is a matrix."""

    def __init__(self, name: str, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__(name, layer.bias)
        self._matrix = self.to_matrix(layer.weight.detach()).contiguous()

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Return a weight f32[...,O,...] as the matrix f32[...,O,I] of the product."""
        return weight

    def to_weight(self, matrix: Tensor) -> Tensor:
        """Return a matrix f32[...,O,I] in the shape of the weight."""
        return matrix

    def rows(self, features: Tensor) -> Tensor:
        """Return the rows f32[...,I] that the matrix is multiplied with."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        """Return f32[...,O] of f32[...,I]."""
        rows = self.rows(features)
        flat = rows.flatten(0, -2)  # [...,I] -> [N,I]
        outputs = F.linear(flat, self._matrix, self.bias)
        self.remember(flat, outputs)
        return outputs.view(*rows.shape[:-1], -1)  # [N,O] -> [...,O]


class FixedConvolution(FixedMatrix):
    """A convolution of one group with zero padding."""

    def __init__(self, name: str, layer: nn.Conv2d) -> None:
        super().__init__(name, layer)
        self._windows = _Windows(layer)

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Return a weight f32[...,O,C,k,l] as f32[...,O,k*l*C]."""
        return weight.movedim(-3, -1).flatten(-3)

    def to_weight(self, matrix: Tensor) -> Tensor:
        """Return a matrix f32[...,O,k*l*C] as f32[...,O,C,k,l]."""
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
    """The windows of a convolution; features have their channels last here.

    Pairs are vertical, horizontal.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        assert not isinstance(layer.padding, str)
        self.size, self._stride = _pair(layer.kernel_size), _pair(layer.stride)
        self._dilation, self._padding = _pair(layer.dilation), _pair(layer.padding)

    def unfold(self, features: Tensor) -> Tensor:
        """Return the windows f32[B,h,w,k*l*C] of features f32[B,H,W,C]."""
        (top, side), (tall, wide) = self._padding, self.size
        batch, rows, columns, channels = features.shape
        grid = features.new_zeros(batch, rows + 2 * top, columns + 2 * side, channels)
        grid[:, top : top + rows, side : side + columns] = features
        image, row, column, channel = grid.stride()
        height, width = self._counts(grid.shape[1], grid.shape[2])
        # A view of overlapping windows, [B,h,w,k,l,C]; flatten makes the copy.
        windows = grid.as_strided(
            (batch, height, width, tall, wide, channels),
            (
                image,
                row * self._stride[0],
                column * self._stride[1],
                row * self._dilation[0],
                column * self._dilation[1],
                channel,
            ),
        )
        return windows.flatten(3)  # [B,h,w,k*l*C]

    def fold(self, windows: Tensor, shape: torch.Size) -> Tensor:
        """Add windows f32[B,h,w,k*l*C] up where they lie in f32[B,H,W,C]."""
        (top, side), (tall, wide) = self._padding, self.size
        batch, rows, columns, channels = shape
        grid = windows.new_zeros(batch, rows + 2 * top, columns + 2 * side, channels)
        (height, width), (down, right) = windows.shape[1:3], self._stride
        parts = windows.view((batch, height, width, tall, wide, channels))
        for i in range(tall):
            for j in range(wide):
                row, column = i * self._dilation[0], j * self._dilation[1]
                below = row + down * (height - 1) + 1
                beyond = column + right * (width - 1) + 1
                grid[:, row:below:down, column:beyond:right] += parts[:, :, :, i, j]
        return grid[:, top : top + rows, side : side + columns]

    def _counts(self, rows: int, columns: int) -> Pair:
        """Return the numbers of windows, in a padded image."""
        height, width = (
            (length - dilation * (size - 1) - 1) // stride + 1
            for length, dilation, size, stride in zip(
                (rows, columns), self._dilation, self.size, self._stride, strict=True
            )
        )
        return height, width


class _Unfold(torch.autograd.Function):
    """`_Windows.unfold`, several times faster here than torch's own."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, windows: _Windows) -> Tensor:
        ctx.windows, ctx.shape = windows, features.shape
        return windows.unfold(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Fold.apply(gradient, ctx.windows, ctx.shape), None


class _Fold(torch.autograd.Function):
    """`_Windows.fold`, the transpose of `_Unfold`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, windows: _Windows, shape: torch.Size) -> Tensor:
        ctx.windows = windows
        return windows.fold(rows.contiguous(), shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Unfold.apply(gradient, ctx.windows), None, None


def _pair(values: tuple[int, ...]) -> Pair:
    first, second = values
    return first, second
