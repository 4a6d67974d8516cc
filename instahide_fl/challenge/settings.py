"""The public settings of a challenge: `settings.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import Field

from instahide_fl.config.base import Count, Table
from instahide_fl.config.encoding import EncoderConfig
from instahide_fl.errors import ConfigError, DataError
from instahide_fl.types import ChannelStatistics


class PublishedData(Table):
    """What is published about the private images."""

    section = "data"

    dataset: str = "unknown"
    """Name of the data set, whose test images were taken."""
    image_shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    """C, H, W."""
    mean: list[float]
    """What was subtracted from images in [0, 1] before mixing, by channel."""
    std: list[Annotated[float, Field(gt=0)]]
    """What the difference was divided by, by channel."""
    augment: Literal["none", "crop", "crop-flip"] = "none"
    """What was done to private images before mixing."""


class PublishedPool(Table):
    """What is published about the public images."""

    section = "pool"

    source: str
    """`photos` (the embedded pool), or the name of a pool's folder."""
    images: Count
    """N, the number of public images."""
    sha256: str
    """Digest of the pool."""


class ChallengeSettings(Table):
    """The public settings. Nothing here depends on a key or on a private image."""

    format: Literal[1] = 1
    images: Count = 100
    """n, the number of private images."""
    encodings_per_image: Count = 50
    """T, the number of encodings in which an image is the first component."""
    keys: Literal["operating-system", "reproducible-insecure", "unknown"] = "unknown"
    """Where keys come from. `reproducible-insecure` is a seed: whoever guesses it
    decodes everything."""
    data: PublishedData
    instahide: EncoderConfig
    pool: PublishedPool | None = None
    """The public images; None where none were mixed in, or nothing is known of them."""

    @property
    def statistics(self) -> ChannelStatistics:
        """Constants that private images are normalised with."""
        return ChannelStatistics(tuple(self.data.mean), tuple(self.data.std))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self.data.image_shape
        return channels, height, width

    def to_toml(self) -> str:
        """Return what is written into the file."""
        return tomli_w.dumps(self.model_dump(by_alias=True, exclude_none=True))

    @classmethod
    def as_published(cls, image_shape: tuple[int, int, int]) -> ChallengeSettings:
        """Return what is known of the original challenge, which has no such file.

        k = 6 across data sets, 100 images of 50 encodings each (its README), and pixels
        mapped to [-1, 1] before mixing (Carlini, blog of 2020-12-05).

        Args:
            image_shape: C, H, W of the encodings.
        """
        half = [0.5] * image_shape[0]
        shape = list(image_shape)
        return cls(
            data=PublishedData(image_shape=shape, mean=half, std=half),
            instahide=EncoderConfig(num_mixed=6),
        )


def read_settings_file(path: Path) -> ChallengeSettings:
    """Read `settings.toml`.

    Raises:
        DataError: it cannot be read, or a setting is missing or not valid.
    """
    try:
        with path.open("rb") as file:
            settings = ChallengeSettings(**tomllib.load(file))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise DataError(f"cannot read the challenge's {path}: {error}") from None
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None
    channels = settings.image_shape[0]
    if {len(settings.data.mean), len(settings.data.std)} != {channels}:
        raise DataError(
            f"{path}: data.mean and data.std need one number for each of {channels} "
            f"channels, got {settings.data.mean} and {settings.data.std}"
        )
    return settings
