"""Tells from the names of folders which are parts of a data set and which are classes.

All functions are pure: they see names and numbers of pictures, never a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from instahide_fl.data.data_report import DataWarning, examples
from instahide_fl.data.sources.part_names import (
    PartRole,
    find_test_part,
    find_train_part,
    is_plain_part_name,
    part_role,
    role_template,
)
from instahide_fl.data.sources.picture_tree import PictureTree, base_name, join
from instahide_fl.errors import DataError
from instahide_fl.terminal import counted, printable

TOP = "."  # as a setting: the whole folder

# Folders inside a part that name no class.
_NEUTRAL_NAMES = frozenset(
    {
        "all",
        "data",
        "image",
        "images",
        "img",
        "imgs",
        "jpegimages",
        "photos",
        "pictures",
        "unknown",
        "unlabeled",
        "unlabelled",
    }
)


@dataclass(frozen=True)
class PartFolder:
    """The folder of a part.

    Attributes:
        folder: The name of the folder; "" is the top.
        classes: The names of the class folders in it; none if pictures lie in it
            directly, whose labels a table tells.
    """

    folder: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class FolderLayout:
    """The parts of a data set of picture folders.

    Attributes:
        parts: The parts `train` and `test`, or `all` if there is no test part.
        unused: The names of folders beside the parts that hold pictures.
        warnings: What the user should look at.
    """

    parts: Mapping[str, PartFolder]
    unused: tuple[str, ...] = ()
    warnings: tuple[DataWarning, ...] = ()


def find_layout(
    tree: PictureTree,
    train_part: str = "",
    test_part: str = "",
    has_table: Callable[[str], bool] = lambda folder: False,
) -> FolderLayout:
    """Find the folders of the parts and of the classes.

    Args:
        tree: All folders of the data set.
        train_part: The value of `data.train-part`; "." takes the whole folder.
        test_part: The value of `data.test-part`.
        has_table: A function that tells whether a table labels a folder's pictures.

    Raises:
        DataError: The folders allow no certain reading.
    """
    root = _look_through(tree)
    layout = _Layout(tree, root, has_table)
    if train_part or test_part:
        return layout.by_settings(train_part, test_part)
    return layout.by_names()


@dataclass(frozen=True)
class _Layout:
    """The folders below the one that is looked at.

    Attributes:
        tree: All folders of the data set.
        root: The folder that holds the parts or the classes.
        has_table: As in `find_layout`.
    """

    tree: PictureTree
    root: str
    has_table: Callable[[str], bool]

    def by_settings(self, train_part: str, test_part: str) -> FolderLayout:
        """Take the folders that the settings name, and recognise the other."""
        train = self._resolve("train-part", train_part)
        test = self._resolve("test-part", test_part)
        names = [self._path(name) for name in self.tree.filled(self.root)]
        if train is None:
            trains = [n for n in names if n != test and self._role(n) == "train"]
            train = self._best(find_train_part, trains) or self.root
        if test is None and train != self.root:
            return self._choose(train, [name for name in names if name != train])
        if test == train:
            raise DataError(
                f"data.train-part and data.test-part both name {_shown(train)}: choose "
                f"two folders"
            )
        if test is None:
            return FolderLayout({"all": self._part(train)})
        unused = tuple(name for name in names if name not in (train, test))
        parts = {"train": self._part(train, but=test), "test": self._part(test)}
        return FolderLayout(parts, () if train == self.root else unused)

    def by_names(self) -> FolderLayout:
        """Recognise parts by their names and by what lies in them."""
        names = [self._path(name) for name in self.tree.children(self.root)]
        filled = [name for name in names if self.tree.total(name)]
        trains = [name for name in filled if self._role(name) == "train"]
        tests = [name for name in names if self._role(name) in ("test", "validation")]
        if trains and any(self._is_pair(a, b) for a in trains for b in tests):
            train = self._best(find_train_part, trains) or trains[0]
            return self._choose(train, [name for name in names if name != train])
        if len(trains) == 1 and len(filled) == 1 and self._classes(trains[0]):
            return FolderLayout({"all": self._part(trains[0])})
        self._refuse_parts_as_classes(filled, trains)
        warnings = tuple(
            DataWarning(
                f"{base_name(name)} is taken for a class, although it is named like a "
                f"part",
                "set data.train-part and data.test-part if it is none",
            )
            for name in filled
            if is_plain_part_name(base_name(name))
        )
        return FolderLayout({"all": self._part(self.root)}, warnings=warnings)

    def _choose(self, train: str, others: Sequence[str]) -> FolderLayout:
        """Choose the part to test on among folders; it has labels."""
        tests = [n for n in others if self._role(n) in ("test", "validation")]
        labelled = [name for name in tests if self._is_labelled(name)]
        test = self._best(find_test_part, labelled)
        empty = [name for name in tests if not self.tree.total(name)]
        if test is None and empty:
            raise DataError(
                f"data.dataset: no images in {_shown(empty[0])}, which is named like a "
                f"test part: add them, or remove the folder to hold a fifth back"
            )
        warnings = tuple(
            self._unlabelled(name, test)
            for name in tests
            if name not in labelled and name not in empty
        )
        unused = tuple(n for n in others if n != test and self.tree.total(n))
        if test is None:
            return FolderLayout({"all": self._part(train)}, unused, warnings)
        parts = {"train": self._part(train), "test": self._part(test)}
        return FolderLayout(parts, unused, warnings)

    def _best(
        self, find: Callable[[Sequence[str]], str | None], folders: Sequence[str]
    ) -> str | None:
        """Choose a folder beside others by its name without path."""
        paths = {base_name(folder): folder for folder in folders}
        name = find(list(paths)) if paths else None
        return None if name is None else paths[name]

    def _unlabelled(self, name: str, test: str | None) -> DataWarning:
        instead = (
            f"{_shown(test)} is tested on"
            if test
            else "a fifth of the training images is held back to test on"
        )
        return DataWarning(
            f"{_shown(name)} holds {counted(self.tree.total(name), 'image')} without "
            f"labels, so it is not used, and {instead}",
            "give each class a folder in it, or a table of labels, to test on it",
        )

    def _refuse_parts_as_classes(
        self, names: Sequence[str], trains: Sequence[str]
    ) -> None:
        remedy = (
            f"set data.train-part and data.test-part to the folders that are meant (or "
            f'data.train-part to "{TOP}" if they are classes)'
        )
        inner = {name: set(self._classes(name)) for name in names}
        first: dict[str, str] = {}
        for name in names:
            shared: dict[str, list[str]] = {}
            for folder in sorted(inner[name]):
                shared.setdefault(first.setdefault(folder, name), []).append(folder)
            for other, folders in shared.items():
                if other != name and 2 * len(folders) >= max(
                    4, min(len(inner[name]), len(inner[other]))
                ):
                    raise DataError(
                        f"data.train-part: {_shown(other)} and {_shown(name)} have the "
                        f"same folders inside ({examples(folders)}), so they are parts "
                        f"rather than classes: {remedy}"
                    )
        siblings = set(map(base_name, names))
        for name in names:
            is_part = self._role(name) and len(inner[name] & siblings) >= 2
            is_train = name in trains and len(inner[name]) >= 2
            if is_part or (is_train and any(not inner[n] for n in names)):
                raise DataError(
                    f"data.train-part: {_shown(name)} is named like a part and has "
                    f"folders of its own inside ({examples(sorted(inner[name]))}), "
                    f"other than the folders beside it: {remedy}"
                )

    def _is_pair(self, train: str, test: str) -> bool:
        """Return whether two folders are parts of one set, not two classes."""
        names = (base_name(train), base_name(test))
        shared = set(self._classes(train)) & set(self._classes(test))
        return (
            any(map(is_plain_part_name, names))
            or role_template(names[0]) == role_template(names[1])
            or bool(shared)
        )

    def _role(self, name: str) -> PartRole | None:
        return part_role(base_name(name))

    def _path(self, name: str) -> str:
        return join(self.root, name)

    def _inside(self, folder: str) -> str:
        """Pass through folders that repeat the part's name or name no class."""
        role = self._role(folder)
        while not self.tree.direct(folder):
            inner = self.tree.children(folder)
            if len(inner) != 1:
                break
            repeats = role is not None and part_role(inner[0]) == role
            if not repeats and inner[0].lower() not in _NEUTRAL_NAMES:
                break
            folder = join(folder, inner[0])
        return folder

    def _classes(self, folder: str) -> list[str]:
        """Return the folders with pictures in a part."""
        return self.tree.filled(self._inside(folder))

    def _is_labelled(self, folder: str) -> bool:
        inner = self._inside(folder)
        return bool(self.tree.filled(inner)) or self.has_table(inner)

    def _part(self, folder: str, but: str | None = None) -> PartFolder:
        folder = self._inside(folder) if folder != self.root else folder
        names = self.tree.children(folder)
        classes = tuple(name for name in names if join(folder, name) != but)
        return PartFolder(folder, classes)

    def _resolve(self, setting: str, value: str) -> str | None:
        if not value:
            return None
        name = value.strip("/")
        if name == TOP:
            return self.root
        for folder in (join(self.root, name), name):
            if self.tree.has(folder):
                return folder
        there = self.tree.children(self.root)
        raise DataError(
            f"data.{setting}: there is no folder {value!r}, choose of {examples(there)}"
        )


def _look_through(tree: PictureTree) -> str:
    """Return the folder below folders that only wrap one another."""
    root = ""
    while not tree.direct(root) and len(tree.children(root)) == 1:
        name = tree.children(root)[0]
        inner = join(root, name)
        if not tree.filled(inner) or part_role(name):
            break
        root = inner
    # Folders in a single class are no classes.
    return root if len(tree.children(root)) > 1 or part_role(_only(tree, root)) else ""


def _only(tree: PictureTree, folder: str) -> str:
    names = tree.children(folder)
    return names[0] if len(names) == 1 else ""


def _shown(folder: str) -> str:
    return f"{printable(folder)}/" if folder else "the whole folder"
