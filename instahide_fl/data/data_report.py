"""What was read of a data set, what was left out, and what a reader should know.

Readers (`sources`) report what they took (`SourceFindings`), decoding reports what the
pixels are (`PixelFindings`), and `DataReport` joins both with counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pydantic import TypeAdapter

from instahide_fl.terminal import shortened

MAX_EXAMPLES = 3  # names that a report or an error gives of many


DRAWN_BY_SEED = "drawn by the seed"


@dataclass(frozen=True)
class LeftOut:
    """Files or rows that are not used, for one reason.

    Attributes:
        reason: The reason, as a phrase: "hidden folders", "file type .heic".
        count: The number of files or rows.
        examples: The first names, at most `MAX_EXAMPLES`, safe to print.
    """

    reason: str
    count: int
    examples: tuple[str, ...]

    @classmethod
    def of(cls, reason: str, names: Sequence[str]) -> LeftOut:
        """Count names and keep the first ones as examples."""
        return cls(reason, len(names), tuple(map(shortened, names[:MAX_EXAMPLES])))


@dataclass(frozen=True)
class DataWarning:
    """Something that is probably not what the user wants.

    Attributes:
        problem: A sentence without its full stop.
        remedy: What to do, for instance the setting to change.
    """

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"


@dataclass(frozen=True)
class SourceFindings:
    """What a reader took of a data set, before any pixel is decoded.

    Attributes:
        parts_from: For each part (`train`, `test` or `all`), where it lies in the data
            set: "folder Training", "part validation".
        parts_unused: Folders or parts that were recognised and are not used.
        columns: The columns taken: {"image": "img", "label": "label"}, with "client"
            where owners are known; empty where there are none.
        columns_unused: The columns that are not used.
        left_out: What is not read, by reason.
        warnings: What the user should look at.
    """

    parts_from: Mapping[str, str] = field(default_factory=dict)
    parts_unused: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    columns_unused: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[DataWarning, ...] = ()


@dataclass(frozen=True)
class PixelFindings:
    """What the stored pictures of all parts are, and how they become 8-bit pixels.

    Attributes:
        channels: 1 (grey) or 3 (colour).
        channels_reason: How the channels were decided, as a phrase.
        stored_as: The number of pictures of each kind: {"8-bit grey": 12}.
        value_range: The stored values (low, high) that become 0 and 255.
        value_range_reason: How the range was decided, as a phrase.
        num_deep: The number of pictures deeper than 8 bits.
        stored_extremes: The smallest and greatest stored value, where all were looked
            at; None for 8-bit pictures that are taken as they are.
        clipped_share: The share of values outside the range, in [0, 1].
        sizes: The sizes of the stored pictures and what becomes of them, as a phrase.
        warnings: What the user should look at.
    """

    channels: int
    channels_reason: str
    stored_as: Mapping[str, int]
    value_range: tuple[float, float] = (0.0, 255.0)
    value_range_reason: str = "8 bits as stored"
    num_deep: int = 0
    stored_extremes: tuple[float, float] | None = None
    clipped_share: float = 0.0
    sizes: str = ""
    warnings: tuple[DataWarning, ...] = ()


@dataclass(frozen=True)
class DataFindings:
    """What reading and decoding a data set found, before its images are counted.

    Attributes:
        source: What the reader took.
        pixels: What the stored pictures are.
        levels: The number of distinct values, 0..255, in a sample of decoded images.
    """

    source: SourceFindings
    pixels: PixelFindings
    levels: int

    def to_json(self) -> dict[str, Any]:
        """Return the findings as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned.

        Raises:
            ValueError: The values are others.
        """
        return TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True)
class DataReport:
    """All that was found about a data set as it is used.

    Attributes:
        dataset: The value of `data.dataset`.
        parts: The number of images of `train` and `test`.
        classes: The number of images of each class, over all parts.
        channels: 1 (grey) or 3 (colour).
        height: Height of the decoded images in pixels.
        width: Width of the decoded images in pixels.
        levels: The number of distinct values, 0..255, in a sample of decoded images.
        duplicates: The number of images whose pixels equal those of an earlier image,
            within and across parts.
        duplicates_across_parts: The number of test images that are training images too.
        one_colour: The number of images of a single colour.
        source: What the reader took.
        pixels: What the stored pictures are.
        warnings: All warnings, of reader, pixels and counts.
    """

    dataset: str
    parts: Mapping[str, int]
    classes: Mapping[str, int]
    channels: int
    height: int
    width: int
    levels: int
    duplicates: int
    duplicates_across_parts: int
    one_colour: int
    source: SourceFindings
    pixels: PixelFindings
    warnings: tuple[DataWarning, ...] = ()

    @property
    def is_divided_by_seed(self) -> bool:
        """Whether the seed draws the test images, as the source has no such part."""
        return self.source.parts_from.get("test", "").endswith(DRAWN_BY_SEED)

    @property
    def left_out(self) -> int:
        """The number of files or rows that are not used."""
        return sum(entry.count for entry in self.source.left_out)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values.

        The keys `parts`, `classes`, `channels`, `height`, `width`, `levels`,
        `duplicates`, `left_out` (a number) and `warnings` (sentences) stay as they are.
        `source.left_out` and `warning_details` hold what those two sum up.
        """
        values = asdict(self)
        values["left_out"] = self.left_out
        values["warning_details"] = values["warnings"]
        values["warnings"] = [str(warning) for warning in self.warnings]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned.

        Raises:
            ValueError: The values are others.
        """
        details = values.get("warning_details")
        return TypeAdapter(cls).validate_python({**values, "warnings": details})


def examples(names: Sequence[str]) -> str:
    """Return the first names as a phrase for a message, safe to print.

    Args:
        names: The names, of which `MAX_EXAMPLES` are given.
    """
    further = ", ..." if len(names) > MAX_EXAMPLES else ""
    return ", ".join(map(shortened, names[:MAX_EXAMPLES])) + further
