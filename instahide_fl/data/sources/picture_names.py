"""Finds the pictures that the cells of a table name, however paths are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from instahide_fl.data.sources.part_names import PartRole, part_role
from instahide_fl.data.sources.picture_tree import ancestors, base_name, join, parent

MIN_MATCHED_SHARE = 0.9  # of the rows whose file must exist
MAX_SAMPLE = 60  # cells that a way of writing is tried on
MAX_FOLDERS = 300  # that a path may be relative to
MAX_STRIPPED = 5  # folders before a path that do not exist here
MAX_SUFFIXES = 8


class _Writing(NamedTuple):
    """A way in which a table writes the names of pictures.

    Attributes:
        num_stripped: The number of folders to take away from the beginning.
        folder: The folder that the rest is relative to.
        suffix: What follows the rest.
    """

    num_stripped: int
    folder: str
    suffix: str

    def name(self, cell: str) -> str | None:
        """Return the name that a cell would stand for."""
        path = cell.replace("\\", "/").removeprefix("./").lstrip("/")
        parts = path.split("/")
        if not path or len(parts) <= self.num_stripped:
            return None
        return join(self.folder, "/".join(parts[self.num_stripped :])) + self.suffix


@dataclass(frozen=True)
class PictureNames:
    """The names of all pictures of a data set.

    Attributes:
        names: The names.
        folders: All folders that pictures lie in, at any depth; "" is the top.
        suffixes: The suffixes of pictures, as they are written.
    """

    names: frozenset[str]
    folders: tuple[str, ...]
    suffixes: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> PictureNames:
        """Collect the folders and suffixes of pictures.

        Args:
            names: The names of all pictures.
        """
        inner = {parent(name) for name in names}
        folders = {outer for folder in inner for outer in ancestors(folder)}
        by_depth = sorted(folders, key=lambda folder: (folder.count("/"), folder))
        suffixes = sorted({"." + base_name(name).rpartition(".")[2] for name in names})
        return cls(
            frozenset(names),
            tuple(by_depth[:MAX_FOLDERS]),
            tuple(suffixes[:MAX_SUFFIXES]),
        )

    def match(
        self, cells: Sequence[str], folder: str, role: PartRole | None
    ) -> list[str | None] | None:
        """Return the picture that each cell names; None if the cells name none.

        Args:
            cells: The cells of a column.
            folder: The folder of the table, which paths may be relative to.
            role: The role of the part that the table is named after, which decides
                between folders that hold files of the same names.

        Returns:
            The names, None where a file is missing; None if more than a tenth of the
            files are missing.
        """
        matched = self._closest(cells, folder, role, MIN_MATCHED_SHARE)
        num_missing = matched.count(None)
        is_match = num_missing <= (1 - MIN_MATCHED_SHARE) * len(cells)
        return matched if is_match else None

    def num_existing(self, cells: Sequence[str], folder: str) -> int:
        """Return how many cells name a picture, in the way that suits most of them.

        Args:
            cells: The cells of a column.
            folder: The folder of the table, which paths may be relative to.
        """
        matched = self._closest(cells, folder, None, 0.0)
        return len(cells) - matched.count(None)

    def _closest(
        self,
        cells: Sequence[str],
        folder: str,
        role: PartRole | None,
        min_share: float,
    ) -> list[str | None]:
        """Return the picture that each cell names in the most likely writing."""
        step = max(1, len(cells) // MAX_SAMPLE)
        sample = cells[::step]
        best: tuple[tuple[int, ...], _Writing] | None = None
        for writing in self._writings(sample, folder):
            num_matched = sum(writing.name(cell) in self.names for cell in sample)
            if num_matched < min_share * len(sample):
                continue
            fits_role = role is not None and part_role(base_name(writing[1])) == role
            rank = (
                num_matched,
                -writing.num_stripped,
                not writing.suffix,
                writing.folder == folder,
                fits_role,
                not writing.folder,
            )
            if best is None or rank > best[0]:
                best = rank, writing
        if best is None:
            return [None] * len(cells)
        names = [best[1].name(cell) for cell in cells]
        return [name if name in self.names else None for name in names]

    def _writings(self, sample: Sequence[str], folder: str) -> Iterator[_Writing]:
        depth = max((cell.replace("\\", "/").count("/") for cell in sample), default=0)
        folders = dict.fromkeys([folder, *self.folders])
        for num_stripped in range(min(depth, MAX_STRIPPED) + 1):
            for base in folders:
                for suffix in ("", *self.suffixes):
                    yield _Writing(num_stripped, base, suffix)
