"""Private images, and the statistics that images are normalised with.

Letters in shapes: N images, C,H,W an image's channels, height and width, K classes.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from instahide_fl.errors import DataError


class MapDataset(Protocol):
    """A map-style PyTorch data set: it has a length, and gives (image, class) pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel, for images scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor, chunk: int | None = None) -> ChannelStatistics:
        """Measure the statistics of images.

        Args:
            images: u8[N,C,H,W].
            chunk: Number of images converted at a time, to bound memory; None for
                4,096, or of images above 64 pixels as many as have 16 million values.
        """
        if chunk is None:
            values = math.prod(images.shape[1:])
            # Sums in other chunks have other bits: small images keep theirs.
            chunk = 4096 if values <= 3 * 64**2 else max(1, 2**24 // values)
        total = torch.zeros(images.shape[1], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for part in torch.split(images, chunk):
            scaled = part.to(torch.float64) / 255
            total += scaled.sum(dim=(0, 2, 3)).cpu()
            squares += scaled.square().sum(dim=(0, 2, 3)).cpu()
        count = images.shape[0] * images.shape[2] * images.shape[3]
        mean = total / count
        # A constant channel has no spread to divide by: leave its scale alone.
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        std[std < 1e-6] = 1.0
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def normalise(self, images: Tensor) -> Tensor:
        """Return (images / 255 - mean) / std.

        Args:
            images: u8[N,C,H,W].

        Returns:
            f32[N,C,H,W] on the same device.
        """
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)  # [C,1,1]
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return images.to(torch.float32).sub_(mean * 255).div_(std * 255)

    def restore(self, images: Tensor) -> Tensor:
        """Undo `normalise`, without clipping.

        Args:
            images: f32[N,C,H,W], normalised.

        Returns:
            f32[N,C,H,W]; a plain image lies in [0, 1], an encoding need not.
        """
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)  # [C,1,1]
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return images * std + mean


@dataclass(frozen=True)
class PrivateSplit:
    """The images that one client holds.

    Attributes:
        images: u8[N,C,H,W].
        targets: i64[N], classes 0..num_classes-1.
        num_classes: K.
        given_statistics: Constants to normalise with; if None, they are measured on the
            client's images.
        rows: i64[n], the client's rows of `images` and `targets`, which it may share
            with other clients; None if all rows are its own.

    Raises:
        DataError: images are not u8[N,C,H,W], or targets do not fit them.

    Example:
        >>> import torch
        >>> from instahide_fl import PrivateSplit
        >>> images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
        >>> targets = torch.tensor([0, 1, 2, 0, 1, 2])
        >>> split = PrivateSplit(images, targets, num_classes=3)
        >>> len(split)
        6
    """

    images: Tensor
    targets: Tensor
    num_classes: int
    given_statistics: ChannelStatistics | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise DataError(
                f"private images must be u8[N,C,H,W], got {self.images.dtype} of "
                f"shape {tuple(self.images.shape)}"
            )
        if self.targets.shape != self.images.shape[:1]:
            raise DataError(
                f"{len(self.images)} images need as many targets, got shape "
                f"{tuple(self.targets.shape)}"
            )
        if len(self.targets) and not (
            int(self.targets.min()) >= 0 and int(self.targets.max()) < self.num_classes
        ):
            raise DataError(
                f"targets must lie in 0..{self.num_classes - 1} (num_classes), got "
                f"{int(self.targets.min())}..{int(self.targets.max())}"
            )

    @classmethod
    def from_dataset(
        cls, dataset: MapDataset, num_classes: int | None = None
    ) -> PrivateSplit:
        """Take all images of a PyTorch data set, for instance one of torchvision.

        Args:
            dataset: a data set of (image, class) pairs, where an image is a PIL
                picture, a u8[C,H,W] tensor, or a float tensor of that shape in [0, 1].
            num_classes: K; if None, the number of `dataset.classes`, or without those
                the largest class plus one.

        Raises:
            DataError: the images are of another kind or of several shapes, a class is
                no whole number, or there are no images.
        """
        images: list[Tensor] = []
        targets: list[int] = []
        for row in range(len(dataset)):
            image, target = dataset[row]
            images.append(_pixels(image, row))
            if images[-1].shape != images[0].shape:
                raise DataError(
                    f"all images must have one shape, got {tuple(images[0].shape)} and "
                    f"{tuple(images[-1].shape)} (image {row}): resize them"
                )
            try:
                targets.append(operator.index(target))
            except TypeError:
                raise DataError(
                    f"the class of an image must be a whole number, got {target!r} "
                    f"(image {row})"
                ) from None
        if not images:
            raise DataError("a data set without images cannot be encoded")
        if num_classes is None:
            names = getattr(dataset, "classes", None)
            num_classes = max(targets) + 1 if names is None else len(names)
        return cls(torch.stack(images), torch.tensor(targets), num_classes)

    def __len__(self) -> int:
        return len(self.images) if self.rows is None else len(self.rows)

    @cached_property
    def statistics(self) -> ChannelStatistics:
        """The constants that private images are normalised with."""
        if self.given_statistics is not None:
            return self.given_statistics
        images = self.images if self.rows is None else self.images[self.rows]
        return ChannelStatistics.of(images)

    def image_rows(self, index: Tensor) -> Tensor:
        """Return the rows of `images` that hold some of the client's images.

        Args:
            index: i64 of any shape, numbers of the client's images, 0..n-1.

        Returns:
            i64 of the same shape.
        """
        return index if self.rows is None else self.rows[index]

    def subset(self, rows: Tensor) -> PrivateSplit:
        """Return the split of a client that holds only some images, without a copy.

        Args:
            rows: i64[n], numbers of this split's images.
        """
        return self._changed(rows=self.image_rows(rows))

    def normalised_with(self, statistics: ChannelStatistics) -> PrivateSplit:
        """Return the same split, normalised with other constants."""
        return self._changed(given_statistics=statistics)

    def to(self, device: str | torch.device) -> PrivateSplit:
        """Return the same split with its images and targets on a device.

        Images that are on the device already stay shared with other clients. Otherwise
        only the client's own images are copied.
        """
        if self.images.device.type == torch.device(device).type:
            return self
        rows = slice(None) if self.rows is None else self.rows
        return self._changed(
            images=self.images[rows].to(device),
            targets=self.targets[rows].to(device),
            rows=None,
            given_statistics=self.statistics,
        )

    # The names in version 0.1, which scripts call.
    located, share, on = image_rows, subset, to

    def _changed(self, **fields: object) -> PrivateSplit:
        """Return a copy with other values for some fields.

        Unlike `dataclasses.replace`, it does not check all targets again: a federation
        makes such a copy for each of its clients.
        """
        copied = object.__new__(PrivateSplit)
        attributes = {**self.__dict__, **fields}
        attributes.pop("statistics", None)  # cached for the fields as they were
        copied.__dict__.update(attributes)
        return copied


def _pixels(image: object, row: int) -> Tensor:
    """Return one image of a PyTorch data set as u8[C,H,W]."""
    from PIL import Image

    if isinstance(image, Image.Image):
        picture = image.convert("L" if image.mode in ("1", "L") else "RGB")
        array = np.array(picture)  # a copy: torch wants to own writable memory
        image = torch.from_numpy(array[None] if array.ndim == 2 else array)
        # grey [H,W] -> [1,H,W], colour [H,W,C] -> [C,H,W]
        return image if array.ndim == 2 else image.permute(2, 0, 1).contiguous()
    if isinstance(image, Tensor) and image.ndim == 3:
        if image.dtype == torch.uint8:
            return image
        if image.is_floating_point() and image.min() >= 0 and image.max() <= 1:
            return (image * 255).round().to(torch.uint8)
    actual = (
        f"{image.dtype} of shape {tuple(image.shape)}, {image.min()}..{image.max()}"
        if isinstance(image, Tensor) and image.numel()
        else type(image).__name__
    )
    raise DataError(
        f"images must be PIL pictures or tensors [C,H,W], uint8 or float in [0, 1], "
        f"not normalised; got {actual} (image {row})"
    )
