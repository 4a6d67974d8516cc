"""The values that pass between the parts of the library.

Shapes: B batch, k images mixed, p of them private, C,H,W image, K classes, N images.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from instahide_fl.errors import DataError

UpdateKind: TypeAlias = Literal["gradient", "delta"]


class MapDataset(Protocol):
    """A map-style PyTorch data set: a length, and (image, class) by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel, for images scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor, chunk: int = 4096) -> ChannelStatistics:
        """Measure them.

        Args:
            images: u8[N,C,H,W].
            chunk: images converted at a time, to bound memory.
        """
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
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return images.to(torch.float32).sub_(mean * 255).div_(std * 255)

    def restore(self, images: Tensor) -> Tensor:
        """Undo `normalise`, without clipping.

        Args:
            images: f32[N,C,H,W], normalised.

        Returns:
            f32[N,C,H,W]; a plain image lies in [0, 1], an encoding need not.
        """
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return images * std + mean


@dataclass(frozen=True)
class PrivateSplit:
    """The images that one client holds.

    Attributes:
        images: u8[N,C,H,W].
        targets: i64[N], classes 0..num_classes-1.
        num_classes: K.
        given_statistics: constants to normalise with; measured on `images` if None.
        rows: i64[n] of the images that are the client's, where it is one of many that
            share `images` and `targets`; None if all are.

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
            dataset: has a length and gives (image, class) by number; an image is a PIL
                picture, a u8[C,H,W] tensor, or a float tensor of that shape in [0, 1].
            num_classes: K; taken from `dataset.classes`, or the largest class, if None.

        Raises:
            DataError: images of another kind or of several shapes, classes that are no
                whole numbers, or no images at all.
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
        own = self.images if self.rows is None else self.images[self.rows]
        return ChannelStatistics.of(own)

    def image_rows(self, index: Tensor) -> Tensor:
        """Return where the client's images `index` (i64, any shape) are in `images`."""
        return index if self.rows is None else self.rows[index]

    def subset(self, rows: Tensor) -> PrivateSplit:
        """Return the split of a client that holds only some images, without a copy.

        Args:
            rows: i64[n] into this split's images.
        """
        return self._changed(rows=self.image_rows(rows))

    def normalised_with(self, statistics: ChannelStatistics) -> PrivateSplit:
        """Return the same images with other constants to normalise with."""
        return self._changed(given_statistics=statistics)

    def to(self, device: str | torch.device) -> PrivateSplit:
        """Return the same split with its images and targets on a device.

        Images that are there already stay shared; others are copied, only the split's
        own.
        """
        if self.images.device.type == torch.device(device).type:
            return self
        own = slice(None) if self.rows is None else self.rows
        return self._changed(
            images=self.images[own].to(device),
            targets=self.targets[own].to(device),
            rows=None,
            given_statistics=self.statistics,
        )

    def _changed(self, **fields: object) -> PrivateSplit:
        """Return a copy, without looking at all targets again for each client."""
        copied = object.__new__(PrivateSplit)
        known = {**self.__dict__, **fields}
        known.pop("statistics", None)
        copied.__dict__.update(known)
        return copied


def _pixels(image: object, row: int) -> Tensor:
    """Return one image of a PyTorch data set as u8[C,H,W]."""
    from PIL import Image

    if isinstance(image, Image.Image):
        picture = image.convert("L" if image.mode in ("1", "L") else "RGB")
        array = np.array(picture)  # a copy: torch wants to own writable memory
        image = torch.from_numpy(array[None] if array.ndim == 2 else array)
        return image if array.ndim == 2 else image.permute(2, 0, 1).contiguous()
    if isinstance(image, Tensor) and image.ndim == 3:
        if image.dtype == torch.uint8:
            return image
        if image.is_floating_point() and image.min() >= 0 and image.max() <= 1:
            return (image * 255).round().to(torch.uint8)
    found = (
        f"{image.dtype} of shape {tuple(image.shape)}, {image.min()}..{image.max()}"
        if isinstance(image, Tensor) and image.numel()
        else type(image).__name__
    )
    raise DataError(
        f"images must be PIL pictures or tensors [C,H,W], uint8 or float in [0, 1], "
        f"not normalised; got {found} (image {row})"
    )


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """What a client trains on.

    Attributes:
        images: f32[B,C,H,W], normalised, mixed and (InstaHide) sign-flipped.
        soft_targets: f32[B,K]; a row sums to the weight of its private images, which
            is less than 1 where public images were mixed in.

    Example:
        >>> import torch
        >>> from instahide_fl import EncodedBatch
        >>> batch = EncodedBatch(torch.zeros(2, 3, 32, 32), torch.zeros(2, 10))
        >>> len(batch)
        2
    """

    images: Tensor
    soft_targets: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True)
class AppliedAugmentation:
    """Which crop and flip each private source image went through.

    Attributes:
        offset: i64[M,2], top and left corner of the crop in the padded image.
        flip: bool[M], mirrored left to right.
    """

    offset: Tensor
    flip: Tensor

    def select(self, index: Tensor) -> AppliedAugmentation:
        """Return it for some of the images.

        Args:
            index: i64[m], rows to take.
        """
        return AppliedAugmentation(self.offset[index], self.flip[index])


@dataclass(frozen=True, slots=True)
class EncodingKey:
    """The one-time key of a batch of encodings. It never leaves the client.

    Attributes:
        coefficients: f32[B,k], private images first; rows sum to 1.
        private_index: i64[B,p] into the client's split; column 0 is the image itself.
        public_index: i64[B,k-p] into the pool.
        image_shape: C, H, W.
        sign_bits: u8[B,ceil(C*H*W/8)], the mask packed, most significant bit first, 1
            for +1; None without a mask.
        augmentation: of the B*p private sources in row order; None if none was drawn.
        repeat: where an image has T fixed encodings, which of them these are, 0..T-1;
            None for fresh ones, and for batches joined.

    Example:
        >>> import torch
        >>> from instahide_fl import EncodingKey
        >>> key = EncodingKey(
        ...     coefficients=torch.tensor([[0.6, 0.4]]),
        ...     private_index=torch.tensor([[0, 3]]),  # k = p = 2: no public images
        ...     public_index=torch.empty(1, 0, dtype=torch.int64),
        ...     image_shape=(1, 2, 4),
        ...     sign_bits=torch.tensor([[0b11110000]], dtype=torch.uint8),
        ... )
        >>> key.signs.flatten().tolist()
        [1, 1, 1, 1, -1, -1, -1, -1]
    """

    coefficients: Tensor
    private_index: Tensor
    public_index: Tensor
    image_shape: tuple[int, int, int]
    sign_bits: Tensor | None = None
    augmentation: AppliedAugmentation | None = None
    repeat: int | None = None

    @property
    def signs(self) -> Tensor:
        """The mask: i8[B,C,H,W], each -1 or +1; all +1 without a mask."""
        shape = (len(self), *self.image_shape)
        if self.sign_bits is None:
            return torch.ones(shape, dtype=torch.int8)
        return unpack_signs(self.sign_bits, shape)

    def __len__(self) -> int:
        return len(self.coefficients)

    def select(self, index: Tensor) -> EncodingKey:
        """Return the key of some of the encodings.

        Args:
            index: i64[b], rows to take.
        """
        augmentation = self.augmentation
        if augmentation is not None:
            private = self.private_index.shape[1]
            source = (index[:, None] * private + torch.arange(private)).flatten()
            augmentation = augmentation.select(source)
        return EncodingKey(
            self.coefficients[index],
            self.private_index[index],
            self.public_index[index],
            self.image_shape,
            None if self.sign_bits is None else self.sign_bits[index],
            augmentation,
            self.repeat,
        )

    @classmethod
    def concatenate(cls, keys: Sequence[EncodingKey]) -> EncodingKey:
        """Join the keys of consecutive batches, which all have the same k and p."""
        drawn = [key.augmentation for key in keys if key.augmentation is not None]
        bits = [key.sign_bits for key in keys if key.sign_bits is not None]
        return cls(
            torch.cat([key.coefficients for key in keys]),
            torch.cat([key.private_index for key in keys]),
            torch.cat([key.public_index for key in keys]),
            keys[0].image_shape,
            torch.cat(bits) if bits else None,
            AppliedAugmentation(
                torch.cat([one.offset for one in drawn]),
                torch.cat([one.flip for one in drawn]),
            )
            if drawn
            else None,
        )


def unpack_signs(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return packed signs as numbers.

    Args:
        bits: u8[B,ceil(P/8)], most significant bit first, 1 for +1.
        shape: (B, ...) with P values a row.

    Returns:
        i8 of that shape, each -1 or +1, on the device of the bits.
    """
    place = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    single = (bits[:, :, None] >> place).bitwise_and_(1).flatten(1)
    values = single[:, : math.prod(shape[1:])].to(torch.int8)
    return values.mul_(2).sub_(1).view(shape)


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What one client contributes to a round.

    Attributes:
        arrays: by parameter name; gradients of the mean loss, or local minus global
            parameters.
        num_examples: images the update was computed on; its weight in the aggregate.
        kind: which of the two the arrays are.
        metrics: numbers for the log: "train_loss", "seconds".
    """

    arrays: dict[str, Tensor]
    num_examples: int
    kind: UpdateKind
    metrics: dict[str, float]


def client_sort_key(key: str) -> tuple[int, int, str]:
    """Sort numbered clients by number and named ones after them by name."""
    return (0, int(key), "") if key.isdecimal() else (1, 0, key)
