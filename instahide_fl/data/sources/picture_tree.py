"""How many pictures lie in which folder: what the layout of a data set is told by."""

from __future__ import annotations

from collections.abc import Iterable


class PictureTree:
    """The folders of a data set, with the numbers of their pictures.

    Args:
        names: The names of the pictures, with "/" between their parts.
        folders: The names of further folders, which may hold none.
    """

    def __init__(self, names: Iterable[str], folders: Iterable[str] = ()) -> None:
        self._direct: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._children: dict[str, set[str]] = {"": set()}
        for name in names:
            folder = parent(name)
            self._direct[folder] = self._direct.get(folder, 0) + 1
        for folder in (*folders, *self._direct):
            self._add(folder)
        for folder, count in self._direct.items():
            for ancestor in ancestors(folder):
                self._total[ancestor] = self._total.get(ancestor, 0) + count

    def _add(self, folder: str) -> None:
        for inner in reversed(ancestors(folder)[:-1]):
            self._children[parent(inner)].add(base_name(inner))
            self._children.setdefault(inner, set())

    def has(self, folder: str) -> bool:
        """Return whether there is such a folder.

        Args:
            folder: The name of the folder; "" is the top.
        """
        return folder in self._children

    def children(self, folder: str) -> list[str]:
        """Return the names, without path, of the folders in a folder, sorted.

        Args:
            folder: The name of the folder.
        """
        return sorted(self._children[folder])

    def filled(self, folder: str) -> list[str]:
        """Return the folders in a folder that hold pictures, at any depth.

        Args:
            folder: The name of the folder.
        """
        return [n for n in self.children(folder) if self.total(join(folder, n))]

    def direct(self, folder: str) -> int:
        """Return the number of pictures in a folder itself.

        Args:
            folder: The name of the folder.
        """
        return self._direct.get(folder, 0)

    def total(self, folder: str) -> int:
        """Return the number of pictures in a folder, at any depth.

        Args:
            folder: The name of the folder.
        """
        return self._total.get(folder, 0)


def join(folder: str, name: str) -> str:
    """Return the name of a file or folder in a folder.

    Args:
        folder: The name of the folder; "" is the top.
        name: The name without path.
    """
    return f"{folder}/{name}" if folder else name


def parent(name: str) -> str:
    """Return the folder that a file or folder lies in; "" is the top.

    Args:
        name: The name of the file or folder.
    """
    return name.rpartition("/")[0]


def base_name(name: str) -> str:
    """Return a name without its path.

    Args:
        name: The name of the file or folder.
    """
    return name.rpartition("/")[2]


def ancestors(folder: str) -> list[str]:
    """Return a folder and all that it lies in, the top last.

    Args:
        folder: The name of the folder.
    """
    outer = [folder]
    while outer[-1]:
        outer.append(parent(outer[-1]))
    return outer
