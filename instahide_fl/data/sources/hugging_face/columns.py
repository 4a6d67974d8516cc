"""Chooses the columns with the pictures and the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instahide_fl.config import DataConfig
from instahide_fl.data.sources.hugging_face.column_kinds import (
    MAX_PATH,
    array_depth,
    first_value,
    is_binary,
    is_list,
    label_kind,
    nested_shape,
    picture_kind,
)
from instahide_fl.data.sources.hugging_face.tables import Table, some_columns
from instahide_fl.errors import DataError
from instahide_fl.terminal import shortened

# Of the first group that a table has a name of, there must be one column only.
IMAGE_NAMES = (
    ("image", "images"),
    ("img", "imgs", "picture", "photo", "pixel_values", "pixels"),
    ("file_name", "filename", "file", "path", "image_path", "image_file"),
)
LABEL_NAMES = (
    ("label", "labels"),
    ("fine_label", "fine_labels"),
    ("class", "classes", "category", "target", "targets", "class_name", "y"),
)
BY_NAME_ONLY = 2
MAX_COLUMNS = 10  # whose types a message tells
MAX_TYPE_LETTERS = 40  # of the type of a column in a message
_INDEX = "__index_level_"  # how pandas names a column for the numbers of rows


@dataclass(frozen=True)
class ChosenColumns:
    """The columns of a data set that are used, and those that are not.

    Attributes:
        image: The name of the column with the pictures.
        label: The name of the column with the classes.
        unused: The names of the other columns.
    """

    image: str
    label: str
    unused: tuple[str, ...]


@dataclass(frozen=True)
class _Purpose:
    """What a column is looked for.

    Attributes:
        setting: The setting that names the column.
        contents: What the column must hold, for messages.
        usual_names: Groups of usual names, the most usual first.
        rank: A function that ranks a column, the best 0; `BY_NAME_ONLY` where it may
            not be taken without a usual name, None where it cannot hold it.
        objection: Why a column that cannot be taken cannot, as a phrase.
        remedy: What to do if no column can.
    """

    setting: str
    contents: str
    usual_names: Sequence[Sequence[str]]
    rank: Callable[[Table, str], int | None]
    objection: Callable[[Table, str], str]
    remedy: str


def choose_columns(table: Table, place: str, config: DataConfig) -> ChosenColumns:
    """Choose the columns with the pictures and the classes.

    A column with a usual name goes before others, and a column of declared classes
    before one of numbers or texts.

    Args:
        table: The first table of the part to train on.
        place: The name of the data set, for messages.
        config: The table `[data]`.

    Raises:
        DataError: A setting names no column, or a column that cannot be used; no column
            can be used; or several have an equal claim.
    """
    columns = [name for name in table.schema.names if not name.startswith(_INDEX)]
    choice = _Choice(table, place, columns, config.client_column)
    image = choice.of(_PICTURES, config.image_column, taken=config.label_column)
    label = choice.of(_CLASSES, config.label_column, taken=image)
    used = (image, label, config.client_column)
    return ChosenColumns(
        image, label, tuple(name for name in columns if name not in used)
    )


@dataclass(frozen=True)
class _Choice:
    """What columns are chosen of.

    Attributes:
        table: The table.
        place: The name of the data set, for messages.
        columns: The names of its columns.
        owner: The column with the owners, which is hardly the one with the classes;
            empty if there is none.
    """

    table: Table
    place: str
    columns: Sequence[str]
    owner: str

    def of(self, purpose: _Purpose, setting: str, taken: str) -> str:
        """Return the column for a purpose.

        Args:
            purpose: The purpose.
            setting: The column that a setting names; empty chooses.
            taken: The column that serves another purpose.

        Raises:
            DataError: The choice is not certain.
        """
        if setting and setting not in self.columns:
            raise DataError(
                f"data.{purpose.setting}: {self.place} has no column {setting!r}, "
                f"choose of {some_columns(self.columns)}"
            )
        free = [name for name in self.columns if name != taken]
        named = [setting] if setting else _usual(purpose.usual_names, free)
        candidates = named or [name for name in free if name != self.owner]
        ranks = {name: purpose.rank(self.table, name) for name in candidates}
        usable = [name for name, rank in ranks.items() if rank is not None]
        if not named:
            best = min((ranks[name] or 0 for name in usable), default=BY_NAME_ONLY)
            usable = [n for n in usable if ranks[n] == best and best < BY_NAME_ONLY]
        if not usable:
            raise self._nothing_usable(purpose, candidates)
        if len(usable) > 1:
            raise DataError(
                f"data.{purpose.setting}: {self.place} has several columns with "
                f"{purpose.contents}, {some_columns(usable)}: set "
                f"data.{purpose.setting} to the one that is meant"
            )
        return usable[0]

    def _nothing_usable(
        self, purpose: _Purpose, candidates: Sequence[str]
    ) -> DataError:
        objections = [
            f"{shortened(name)} ({purpose.objection(self.table, name)})"
            for name in candidates[:MAX_COLUMNS]
        ]
        further = ", ..." if len(candidates) > MAX_COLUMNS else ""
        looked_at = f" in {', '.join(objections)}{further}" if objections else ""
        return DataError(
            f"data.{purpose.setting}: {self.place} has no {purpose.contents}"
            f"{looked_at}: {purpose.remedy}, or set data.{purpose.setting} to another "
            f"column of {some_columns(self.columns)}"
        )


def _usual(groups: Sequence[Sequence[str]], columns: Sequence[str]) -> list[str]:
    """Return the columns that are named as in the first group that has any."""
    for group in groups:
        named = [name for name in columns if name.lower() in group]
        if named:
            return named
    return []


def _rank_as_pictures(table: Table, name: str) -> int | None:
    kind = picture_kind(table, name)
    return None if kind is None else int(kind in ("array", "path"))


def _rank_as_classes(table: Table, name: str) -> int | None:
    kind = label_kind(table, name)
    if kind is None:
        return None
    if kind == "class":
        return 0
    is_certain = kind != "float" and not is_list(table.schema.field(name).type)
    return 1 if is_certain else BY_NAME_ONLY


def _why_no_pictures(table: Table, name: str) -> str:
    column_type = table.schema.field(name).type
    if is_binary(column_type):
        return "bytes that are no picture file"
    if array_depth(column_type) is not None:
        shape = nested_shape(first_value(table, name))
        return f"numbers of the shape {list(shape)}, not surely those of a picture"
    if is_list(column_type):
        return "a list in each row"
    if label_kind(table, name) == "text":
        value = first_value(table, name)
        if value is not None and len(value) < MAX_PATH:
            return f"texts that are no files, as {value!r}"
    return _type_name(table, name)


def _why_no_classes(table: Table, name: str) -> str:
    return _type_name(table, name)


def _type_name(table: Table, name: str) -> str:
    text = str(table.schema.field(name).type)
    return text if len(text) <= MAX_TYPE_LETTERS else f"{text[:MAX_TYPE_LETTERS]}..."


_PICTURES = _Purpose(
    setting="image-column",
    contents="pictures",
    usual_names=IMAGE_NAMES,
    rank=_rank_as_pictures,
    objection=_why_no_pictures,
    remedy=(
        "store encoded pictures, dataset.cast_column(NAME, datasets.Image()), or "
        "pixels, dataset.cast_column(NAME, datasets.Array3D((HEIGHT, WIDTH, 3), "
        "'uint8'))"
    ),
)
_CLASSES = _Purpose(
    setting="label-column",
    contents="class labels",
    usual_names=LABEL_NAMES,
    rank=_rank_as_classes,
    objection=_why_no_classes,
    remedy=(
        "store whole numbers or names, for instance "
        "dataset.cast_column(NAME, datasets.ClassLabel(names=[...]))"
    ),
)
