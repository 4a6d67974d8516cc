"""Turns the tables of a data set's parts into its training and test images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from instahide_fl.config import DataConfig
from instahide_fl.data.data_report import DataWarning, LeftOut, SourceFindings, examples
from instahide_fl.data.sources.base import DatasetContent, DatasetPart
from instahide_fl.data.sources.hugging_face.column_kinds import picture_kind
from instahide_fl.data.sources.hugging_face.columns import choose_columns
from instahide_fl.data.sources.hugging_face.labels import (
    PartLabels,
    class_warnings,
    read_labels,
    renumber,
    require_classes,
    require_labels,
    without_minus_one,
)
from instahide_fl.data.sources.hugging_face.owners import Owners, read_owners
from instahide_fl.data.sources.hugging_face.pictures import stored_pictures
from instahide_fl.data.sources.hugging_face.tables import Table
from instahide_fl.data.sources.part_names import ChosenParts, choose_parts
from instahide_fl.errors import DataError


@dataclass(frozen=True)
class PartTables:
    """One part of a data set, whose rows are not read yet.

    Attributes:
        origin: Where the part lies, for the data report: "part dev (data/dev-0.csv)".
        open: A function that opens the tables of the part, in order.
        missing: The files that are missing, as the names of the others tell.
    """

    origin: str
    open: Callable[[], Sequence[Table]]
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class _LabelledPart:
    name: str
    title: str
    tables: Sequence[Table]
    labels: PartLabels


def read_content(
    place: str,
    parts: Mapping[str, PartTables],
    config: DataConfig,
    left_out: Sequence[LeftOut] = (),
    pictures_beside: Sequence[str] = (),
) -> DatasetContent:
    """Choose parts and columns, and read the labels.

    Args:
        place: The name of the data set, for messages.
        parts: All parts of the data set.
        config: The table `[data]`.
        left_out: The files that were not opened.
        pictures_beside: The picture files beside the tables, which are left out too
            unless the rows name them.

    Raises:
        DataError: A part, a column or a label allows no certain reading.
    """
    chosen = choose_parts(list(parts), config.train_part, config.test_part)
    tables = _open_part(place, parts, chosen.train)
    owners = _read_owners(place, chosen.train, tables, config)
    columns = choose_columns(tables[0], place, config)
    train = _label_part(place, chosen.train, tables, columns.label, reference=None)
    require_labels(train.labels)
    require_classes(train.labels, columns.label)
    test, warnings = _test_part(place, parts, chosen, train, columns.label, config)

    images = _images(train, train, columns.image)
    content = {"train" if test else "all": replace(images, client_ids=owners.ids)}
    used = {"train" if test else "all": train.name}
    if test:
        content["test"] = _images(test, train, columns.image)
        used["test"] = test.name
    test_targets = content["test"].targets if test else None
    warnings += _missing_warnings(parts, used.values())
    warnings += [*owners.warnings, *class_warnings(train.labels, test_targets)]
    taken = {
        "image": columns.image,
        "label": columns.label,
        "client": config.client_column,
    }
    if pictures_beside and picture_kind(tables[0], columns.image) != "path":
        pictures = LeftOut.of("pictures beside the tables", pictures_beside)
        left_out = [*left_out, pictures]
    findings = SourceFindings(
        parts_from={role: parts[name].origin for role, name in used.items()},
        parts_unused=tuple(name for name in parts if name not in used.values()),
        columns={purpose: column for purpose, column in taken.items() if column},
        columns_unused=columns.unused,
        left_out=tuple(left_out),
        warnings=tuple(warnings),
    )
    return DatasetContent(content, list(map(str, train.labels.classes)), findings)


def _open_part(
    place: str, parts: Mapping[str, PartTables], name: str
) -> Sequence[Table]:
    tables = [table for table in parts[name].open() if table.num_rows]
    if not tables:
        raise DataError(
            f"data.dataset: {_title(place, name)} has no rows: choose another part"
        )
    return tables


def _read_owners(
    place: str, name: str, tables: Sequence[Table], config: DataConfig
) -> Owners:
    if not config.client_column:
        return Owners()
    return read_owners(_title(place, name), tables, config.client_column)


def _label_part(
    place: str,
    name: str,
    tables: Sequence[Table],
    column: str,
    reference: PartLabels | None,
) -> _LabelledPart:
    title = _title(place, name)
    labels = without_minus_one(read_labels(title, tables, column), reference)
    return _LabelledPart(name, title, tables, labels)


def _test_part(
    place: str,
    parts: Mapping[str, PartTables],
    chosen: ChosenParts,
    train: _LabelledPart,
    column: str,
    config: DataConfig,
) -> tuple[_LabelledPart | None, list[DataWarning]]:
    """Return the part to test on, passing over those without labels."""
    remaining = [name for name in parts if name != chosen.test]
    name, unlabelled = chosen.test, list[str]()
    while name is not None:
        tables = _open_part(place, parts, name)
        test = _label_part(place, name, tables, column, train.labels)
        if test.labels.has_labels or config.test_part:
            require_labels(test.labels)
            return test, _unlabelled_warnings(unlabelled, name)
        unlabelled.append(name)
        name = choose_parts(remaining, train.name).test
        remaining = [other for other in remaining if other != name]
    return None, _unlabelled_warnings(unlabelled, None)


def _unlabelled_warnings(
    unlabelled: Sequence[str], test: str | None
) -> list[DataWarning]:
    substitute = (
        "a fifth of the training images is held back to test on"
        if test is None
        else f"the part {test} is used to test on"
    )
    return [
        DataWarning(
            f"the part {name} has no labels and is not used, {substitute}",
            "set data.test-part, or label the part, if another test is meant",
        )
        for name in unlabelled
    ]


def _missing_warnings(
    parts: Mapping[str, PartTables], used: Iterable[str]
) -> list[DataWarning]:
    return [
        DataWarning(
            f"{len(parts[name].missing)} files of {parts[name].origin} are missing: "
            f"{examples(parts[name].missing)}",
            "download them, unless only some are meant",
        )
        for name in used
        if parts[name].missing
    ]


def _images(part: _LabelledPart, train: _LabelledPart, column: str) -> DatasetPart:
    return DatasetPart(
        targets=renumber(part.labels, train.labels),
        pictures=stored_pictures(part.title, part.tables, column),
    )


def _title(place: str, part: str) -> str:
    return f"{place} ({part})"
