"""The mixing pool: public images that every client mixes its own with.

A pool is a folder: `images.npy` (u8[M,C,H,W], mapped into memory, so that all clients
of a machine share one copy) and `manifest.json` (count, shape, source, statistics,
sha256). It is never sent: clients and server agree on it by digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instahide_fl.data.npy_files import NPY_READ_ERRORS
from instahide_fl.data.pool_manifest import (
    IMAGES,
    MANIFEST,
    describe,
    new_hasher,
    read_manifest,
)
from instahide_fl.errors import PoolError
from instahide_fl.files import atomic_folder
from instahide_fl.rng import stream
from instahide_fl.types import ChannelStatistics


@dataclass(frozen=True)
class MixingPool:
    """Public images, u8[M,C,H,W], and what identifies them.

    Attributes:
        images: u8[M,C,H,W], usually mapped from disk.
        sha256: Hex digest of shape and pixels.
        statistics: Constants that public images are normalised with.
        source: Origin of the images, in words.
        folder: The folder of the pool; None for a pool in memory.

    Example:
        >>> import torch
        >>> from instahide_fl import MixingPool
        >>> images = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8)
        >>> pool = MixingPool.from_images(images)
        >>> len(pool), pool.image_shape
        (100, (3, 32, 32))
    """

    images: Tensor
    sha256: str
    statistics: ChannelStatistics
    source: str
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @classmethod
    def from_images(cls, images: Tensor, source: str = "memory") -> MixingPool:
        """Make a pool of images in memory.

        Args:
            images: u8[M,C,H,W].
            source: Origin of the images, in words.

        Raises:
            PoolError: there are no images, or they are not u8[M,C,H,W].
        """
        if images.ndim != 4 or images.dtype != torch.uint8 or not len(images):
            raise PoolError(
                f"a pool needs images u8[M,C,H,W] with M >= 1, got {images.dtype} of "
                f"shape {tuple(images.shape)}"
            )
        sha256 = _digest(images.numpy())
        return cls(images, sha256, ChannelStatistics.of(images), source)

    @classmethod
    def photos(cls, image_size: int = 32, channels: int = 3) -> MixingPool:
        """Open the embedded pool, building it on first use (a few seconds).

        Args:
            image_size: Side of the images in pixels.
            channels: 1 (grey) or 3 (colour).

        Raises:
            PoolError: the shape is not possible.
            OutputError: the cache folder cannot be written.
        """
        # Imported here: only this source needs OpenCV and scikit-image.
        from instahide_fl.data.photos_pool import (
            SOURCE,
            cut_patches,
            load_photos,
            photos_folder,
        )

        folder = photos_folder(image_size, channels)
        if folder.is_dir():
            return cls.open(folder)
        patches = torch.from_numpy(cut_patches(load_photos(), image_size, channels))
        return cls.from_images(patches, SOURCE).save(folder)

    @classmethod
    def open(cls, folder: Path | str) -> MixingPool:
        """Map a pool from disk.

        Raises:
            PoolError: the folder holds no pool, or files are missing or damaged.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            images = np.load(folder / IMAGES, mmap_mode="c")
        except NPY_READ_ERRORS as error:
            raise PoolError(
                f"the pool {folder} is damaged: cannot read {IMAGES} ({error}): copy "
                f"or build it again"
            ) from None
        if list(images.shape) != manifest["shape"] or images.dtype != np.uint8:
            raise PoolError(
                f"the pool {folder} is damaged: {IMAGES} is {images.dtype} of shape "
                f"{images.shape}, its manifest says uint8 of {manifest['shape']}: copy "
                f"or build it again"
            )
        statistics = ChannelStatistics(tuple(manifest["mean"]), tuple(manifest["std"]))
        return cls(
            images=torch.from_numpy(images),
            sha256=manifest["sha256"],
            statistics=statistics,
            source=manifest["source"],
            folder=folder,
        )

    def save(self, folder: Path) -> MixingPool:
        """Write the pool into a new folder, atomically, and open it there.

        Raises:
            OutputError: the folder cannot be written.
        """
        manifest = describe(
            shape=tuple(self.images.shape),
            source=self.source,
            statistics=(self.statistics.mean, self.statistics.std),
            sha256=self.sha256,
        )
        with atomic_folder(folder) as temporary:
            np.save(temporary / IMAGES, self.images.numpy())
            text = json.dumps(manifest, indent=2) + "\n"
            (temporary / MANIFEST).write_text(text, encoding="utf-8")
        return MixingPool.open(folder)

    def to(self, device: str | torch.device) -> MixingPool:
        """Return the same pool with its images on a device."""
        return replace(self, images=self.images.to(device))

    on = to  # the name in version 0.1, which scripts call

    def sample(self, count: int = 100) -> Tensor:
        """Return images drawn without repetition, the same ones every time.

        Args:
            count: Number of images; a smaller pool gives all it has.

        Returns:
            u8[min(count,M),C,H,W] in random order.
        """
        rows = stream(0, "pool sample").permutation(len(self))[:count]
        return self.images[torch.from_numpy(rows)]

    def verify(self) -> None:
        """Check that the pixels have the digest of the manifest; reads all of them.

        Raises:
            PoolError: the images are not those that the manifest describes.
        """
        actual = _digest(self.images.numpy())
        if actual != self.sha256:
            raise PoolError(
                f"the pool {self.folder or self.source} has sha256 {actual[:12]}, its "
                f"manifest says {self.sha256[:12]}: copy or build it again"
            )

    def check_fits(self, image_shape: tuple[int, int, int], needed: int) -> None:
        """Refuse a pool that cannot be mixed with images of this shape.

        Args:
            image_shape: (C, H, W) of the private images.
            needed: Number of distinct public images in one encoding.

        Raises:
            PoolError: channels, size or count do not fit.
        """
        if self.image_shape != image_shape:
            raise PoolError(
                f"pool.source: the pool's images are "
                f"{'x'.join(map(str, self.image_shape))} (channels x height x width), "
                f"the private ones {'x'.join(map(str, image_shape))}: choose a pool of "
                f"that shape or set data.image-size"
            )
        if needed > len(self):
            raise PoolError(
                f"instahide.num-mixed: an encoding needs {needed} distinct public "
                f"images, the pool {self.folder or self.source} has {len(self)}"
            )


def _digest(images: np.ndarray[Any, Any]) -> str:
    """Hash shape and pixels, 16 MB at a time so that huge pools stay on disk."""
    hasher = new_hasher(images.shape)
    step = max(1, 2**24 // max(1, images[0].size))
    for start in range(0, len(images), step):
        hasher.update(np.ascontiguousarray(images[start : start + step]).data)
    return hasher.hexdigest()
