"""The sizes of stored pictures, and what resizing makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from instahide_fl.data.data_report import DataWarning

MIN_SIDE = 4  # pixels of a picture that shows something
MAX_ENLARGEMENT = 4  # times, without a warning


@dataclass
class PictureSizes:
    """The number of pictures of each size.

    Attributes:
        counts: The number of pictures of each (width, height).
    """

    counts: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, width: int, height: int, count: int = 1) -> None:
        """Count pictures of one size.

        Args:
            width: The width in pixels.
            height: The height in pixels.
            count: The number of pictures.
        """
        size = (width, height)
        self.counts[size] = self.counts.get(size, 0) + count

    def joined(self, other: PictureSizes) -> PictureSizes:
        """Return the sizes of both sets of pictures.

        Args:
            other: The other sizes.
        """
        total = PictureSizes(dict(self.counts))
        for (width, height), count in other.counts.items():
            total.add(width, height, count)
        return total

    def describe(self, image_size: int) -> str:
        """Return the sizes and what becomes of them: "20x20 to 28x28 pixels".

        Args:
            image_size: The side that pictures are resized to; 0 for none.
        """
        if not self.counts:
            return ""
        by_area = sorted(self.counts, key=lambda size: (size[0] * size[1], size))
        text = _format(by_area[0])
        if len(by_area) > 1:
            text += f" to {_format(by_area[-1])}"
        text += " pixels"
        target = (image_size, image_size)
        if not image_size or list(self.counts) == [target]:
            return text
        is_square = all(width == height for width, height in self.counts)
        what = "" if is_square else "middle square "
        return f"{text}, {what}resized to {_format(target)}"

    def warnings(self, image_size: int) -> Iterator[DataWarning]:
        """Warn about pictures that are too small to show anything.

        Args:
            image_size: The side that pictures are resized to; 0 for none.
        """
        total = sum(self.counts.values())
        tiny = {size: n for size, n in self.counts.items() if min(size) < MIN_SIDE}
        if tiny:
            enlarged = f", enlarged to {image_size}" if image_size else ""
            yield DataWarning(
                f"{_share(tiny, total)} smaller than "
                f"{MIN_SIDE} pixels (the smallest {_format(min(tiny, key=min))})"
                f"{enlarged}",
                "look at them, and remove them if they are placeholders",
            )
        small = {
            size: count
            for size, count in self.counts.items()
            if size not in tiny and image_size > MAX_ENLARGEMENT * min(size)
        }
        if small:
            yield DataWarning(
                f"{_share(small, total)} enlarged more than {MAX_ENLARGEMENT} "
                f"times (the smallest from {_format(min(small, key=min))} to "
                f"{image_size}x{image_size})",
                "choose a smaller data.image-size",
            )


def _share(counts: Mapping[tuple[int, int], int], total: int) -> str:
    """Return the subject and verb of a sentence: "1 of 9 pictures is"."""
    number = sum(counts.values())
    return f"{number:,} of {total:,} pictures {'is' if number == 1 else 'are'}"


def _format(size: tuple[int, int]) -> str:
    width, height = size
    return f"{width}x{height}"
