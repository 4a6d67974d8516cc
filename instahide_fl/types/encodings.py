"""Encoded images, and the keys that they were encoded with.

Letters in shapes: B encodings in a batch, k images mixed in each, p private ones among
them, C,H,W an image's channels, height and width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch of encoded images and labels, which a client trains on.

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
        """Return the crops and flips of some of the images.

        Args:
            index: i64[m], the rows to take.
        """
        return AppliedAugmentation(self.offset[index], self.flip[index])


@dataclass(frozen=True, slots=True)
class EncodingKey:
    """The one-time key of a batch of encodings. It never leaves the client.

    Attributes:
        coefficients: f32[B,k], private images first; rows sum to 1.
        private_index: i64[B,p], numbers of images of the client's split; column 0 is
            the image that is encoded.
        public_index: i64[B,k-p], numbers of images of the pool.
        image_shape: (C, H, W).
        sign_bits: u8[B,ceil(C*H*W/8)], the signs packed into bits, most significant bit
            first, 1 for +1; None if no signs are flipped.
        augmentation: Crops and flips of the B*p private sources, in row order; None if
            none were drawn.
        repeat: The number 0..T-1 of these encodings, where an image has T fixed ones;
            None for fresh encodings and for concatenated batches.

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
        """The signs, i8[B,C,H,W], each -1 or +1; all +1 if none are flipped."""
        shape = (len(self), *self.image_shape)
        if self.sign_bits is None:
            return torch.ones(shape, dtype=torch.int8)
        return unpack_signs(self.sign_bits, shape)

    def __len__(self) -> int:
        return len(self.coefficients)

    def select(self, index: Tensor) -> EncodingKey:
        """Return the key of some of the encodings.

        Args:
            index: i64[b], the rows to take.
        """
        augmentation = self.augmentation
        if augmentation is not None:
            num_private = self.private_index.shape[1]
            # [b,p] -> [b*p]: sources of encoding i are rows i*p .. i*p+p-1
            sources = (
                index[:, None] * num_private + torch.arange(num_private)
            ).flatten()
            augmentation = augmentation.select(sources)
        return EncodingKey(
            coefficients=self.coefficients[index],
            private_index=self.private_index[index],
            public_index=self.public_index[index],
            image_shape=self.image_shape,
            sign_bits=None if self.sign_bits is None else self.sign_bits[index],
            augmentation=augmentation,
            repeat=self.repeat,
        )

    rows = select  # the name in version 0.1, which scripts call

    @classmethod
    def concatenate(cls, keys: Sequence[EncodingKey]) -> EncodingKey:
        """Concatenate the keys of consecutive batches.

        Args:
            keys: One key or more, all with the same k, p and image shape.
        """
        drawn = [key.augmentation for key in keys if key.augmentation is not None]
        sign_bits = [key.sign_bits for key in keys if key.sign_bits is not None]
        augmentation = (
            AppliedAugmentation(
                torch.cat([augmentation.offset for augmentation in drawn]),
                torch.cat([augmentation.flip for augmentation in drawn]),
            )
            if drawn
            else None
        )
        return cls(
            coefficients=torch.cat([key.coefficients for key in keys]),
            private_index=torch.cat([key.private_index for key in keys]),
            public_index=torch.cat([key.public_index for key in keys]),
            image_shape=keys[0].image_shape,
            sign_bits=torch.cat(sign_bits) if sign_bits else None,
            augmentation=augmentation,
        )


def unpack_signs(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unpack signs from bits.

    Args:
        bits: u8[B,ceil(P/8)], most significant bit first, 1 for +1.
        shape: (B, ...), where a row has P values.

    Returns:
        i8 of that shape, each -1 or +1, on the device of the bits.
    """
    position = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    # [B,n,1] >> [8] -> [B,n,8] -> [B,n*8], of which the last bits may be padding
    single_bits = (bits[:, :, None] >> position).bitwise_and_(1).flatten(1)
    values = single_bits[:, : math.prod(shape[1:])].to(torch.int8)
    return values.mul_(2).sub_(1).view(shape)
