"""Pictures with their classes: the parts of a data set, before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from instahide_fl.config import DataConfig
from instahide_fl.data.data_report import (
    DataWarning,
    LeftOut,
    SourceFindings,
    examples,
)
from instahide_fl.data.sources.label_tables import LabelTable
from instahide_fl.data.sources.part_names import (
    find_test_part,
    find_train_part,
    part_role,
)
from instahide_fl.data.sources.picture_tree import PictureTree, base_name, join
from instahide_fl.errors import DataError
from instahide_fl.terminal import counted, printable


@dataclass(frozen=True)
class LabelledPart:
    """The pictures of a part.

    Attributes:
        names: The names of the pictures, in order.
        labels: The class of each picture.
        folder: The folder that the names are shown relative to, in messages.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    folder: str = ""


@dataclass(frozen=True)
class LabelledNames:
    """All pictures that are used.

    Attributes:
        parts: The parts `train` and `test`, or `all`.
        class_names: The names of the classes, in order.
        findings: What is used and what is not, but for the files' own findings.
        used_tables: The names of the tables that labels were read from.
        clients: The owner of each training picture, by the picture's name.
    """

    parts: Mapping[str, LabelledPart]
    class_names: tuple[str, ...]
    findings: SourceFindings
    used_tables: tuple[str, ...] = ()
    clients: Mapping[str, str] = field(default_factory=dict)


def merge_labels(tables: Sequence[LabelTable]) -> dict[str, str]:
    """Return the label of each picture that any table names.

    Args:
        tables: The tables.

    Raises:
        DataError: Two tables differ about a picture.
    """
    labels: dict[str, str] = {}
    table_of: dict[str, str] = {}
    for table in tables:
        for name, label in table.labels.items():
            if labels.setdefault(name, label) != label:
                raise DataError(
                    f"data.dataset: {table_of[name]} and {printable(table.name)} give "
                    f"{printable(name)} different labels "
                    f"({examples([labels[name], label])}): "
                    f"give imagefolder:PATH/TABLE of the one that is meant, or remove "
                    f"the other"
                )
            table_of.setdefault(name, printable(table.name))
    return labels


def without_minus_one(tables: Sequence[LabelTable]) -> list[LabelTable]:
    """Take pictures whose class is the number -1 for pictures without a label.

    Args:
        tables: All tables of the data set. If their classes are -1 and 1, -1 is one.

    Returns:
        The tables, in which such pictures are unlabelled.
    """
    if {label for table in tables for label in table.labels.values()} == {"-1", "1"}:
        return list(tables)
    return [
        replace(
            table,
            labels={n: label for n, label in table.labels.items() if label != "-1"},
            unlabelled=(
                *table.unlabelled,
                *(n for n, label in table.labels.items() if label == "-1"),
            ),
        )
        for table in tables
    ]


def label_by_tables(
    tree: PictureTree,
    root: str,
    names: Sequence[str],
    tables: Sequence[LabelTable],
    config: DataConfig,
) -> LabelledNames:
    """Divide the pictures that tables name into parts.

    A table's own column of parts decides, or else the folder that a picture lies in
    (`train/1.png`), or the name of the table (`train.csv`).

    Args:
        tree: All folders.
        root: The folder that holds the pictures' folders, or the pictures.
        names: The names of all pictures.
        tables: The tables, at least one.
        config: The table `[data]`.

    Raises:
        DataError: The parts are not certain, or labels cannot be used.
    """
    labels = merge_labels(tables)
    keys = {
        name: _part_key(name, table, root, is_sole=len(tables) == 1)
        for table in tables
        for name in table.labels
    }
    chosen = _choose_keys(sorted(set(keys.values())), config)
    _require_labels(tables, labels, root, chosen)
    parts = {part: _part_of(labels, keys, key) for part, key in chosen.items()}
    findings = _table_findings(tables, chosen)
    unlabelled = _unlabelled_parts(tree, root, labels)
    not_used = {f"{folder}/" for folder, _ in unlabelled}
    unnamed = [n for n in names if n not in labels and not n.startswith((*not_used,))]
    is_divided = "" not in chosen.values()
    partless = [name for name, key in keys.items() if is_divided and not key]
    entries = (
        *findings.left_out,
        *_left_out("pictures that no table names", unnamed),
        *_left_out("pictures in a table that belong to no part", partless),
    )
    unused_keys = set(keys.values()) - set(chosen.values()) - {""}
    findings = replace(
        findings,
        parts_unused=(*sorted(unused_keys), *(folder for folder, _ in unlabelled)),
        left_out=entries,
        warnings=(*(warning for _, warning in unlabelled), *_warnings(entries)),
    )
    return LabelledNames(
        parts=parts,
        class_names=check_classes(parts, "the tables"),
        findings=findings,
        used_tables=tuple(table.name for table in tables),
        clients={n: owner for table in tables for n, owner in table.clients.items()},
    )


def check_classes(parts: Mapping[str, LabelledPart], origin: str) -> tuple[str, ...]:
    """Return the classes of the part to train on.

    Args:
        parts: The parts.
        origin: Where the labels come from, for messages.

    Raises:
        DataError: There are fewer than two, the test part has others, or a part has no
            images.
    """
    train = parts["train"] if "train" in parts else parts["all"]
    class_names = _in_order(set(train.labels))
    if len(class_names) < 2:
        existing = f"only {class_names[0]}" if class_names else "none"
        raise DataError(
            f"data.dataset: at least two classes are needed, {origin} name {existing}: "
            f"set data.label-column to the column with the classes"
        )
    test = parts.get("test")
    unknown = sorted(set(test.labels) - set(class_names)) if test else []
    if unknown:
        raise DataError(
            f"data.dataset: the test part has classes that the training part has not: "
            f"{examples(unknown)}: remove them, or set data.test-part to another part"
        )
    return class_names


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Sort classes: numbers by their value, other names as texts."""
    if all(label.lstrip("+-").isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _part_key(name: str, table: LabelTable, root: str, *, is_sole: bool) -> str:
    if name in table.parts:
        return table.parts[name]
    inside = name.removeprefix(f"{root}/") if root else name
    folder, slash, _ = inside.partition("/")
    if slash and part_role(folder):
        return folder
    stem = base_name(table.name).rpartition(".")[0]
    return stem if part_role(stem) and not is_sole else ""


def _require_labels(
    tables: Sequence[LabelTable],
    labels: Mapping[str, str],
    root: str,
    chosen: Mapping[str, str],
) -> None:
    """Refuse a part that is used and of which only some rows have a label."""
    for table in tables:
        missing = [
            name
            for name in table.unlabelled
            if name not in labels
            and _part_key(name, table, root, is_sole=len(tables) == 1)
            in chosen.values()
        ]
        if missing:
            num_rows = len(table.labels) + len(table.unlabelled)
            raise DataError(
                f"data.dataset: {len(missing)} of {num_rows} pictures in "
                f"{printable(table.name)} have no label (empty or -1), "
                f"for instance {examples(missing)}: remove these rows, or label them"
            )


def _choose_keys(keys: Sequence[str], config: DataConfig) -> dict[str, str]:
    """Return the key of each part, among those that pictures have."""
    for setting, value in (
        ("train-part", config.train_part),
        ("test-part", config.test_part),
    ):
        if value and value not in keys:
            raise DataError(
                f"data.{setting}: no table labels pictures of a part {value!r}, only "
                f"{', '.join(filter(None, keys)) or 'of one part'}"
            )
    free = [key for key in keys if key not in ("", config.test_part)]
    train = config.train_part or (find_train_part(free) if free else "")
    rest = [key for key in keys if key not in ("", train)]
    test = config.test_part or (find_test_part(rest) if rest else None)
    return {"all": train} if test is None else {"train": train, "test": test}


def _part_of(
    labels: Mapping[str, str], keys: Mapping[str, str], key: str
) -> LabelledPart:
    names = tuple(name for name in sorted(labels) if keys[name] == key)
    return LabelledPart(names, tuple(labels[name] for name in names))


def _table_findings(
    tables: Sequence[LabelTable], chosen: Mapping[str, str]
) -> SourceFindings:
    files = ", ".join(printable(table.name) for table in tables)
    return SourceFindings(
        parts_from={
            part: f"{files} ({key})" if key else files for part, key in chosen.items()
        },
        columns=dict(tables[0].columns),
        columns_unused=tables[0].columns_unused,
        left_out=tuple(
            entry
            for table in tables
            for entry in (
                *table.left_out,
                *_left_out(
                    f"rows of {printable(table.name)} without a label", table.unlabelled
                ),
            )
        ),
    )


def _unlabelled_parts(
    tree: PictureTree, root: str, labels: Mapping[str, str]
) -> list[tuple[str, DataWarning]]:
    """Return folders that are named like a part, of which no picture has a label."""
    unlabelled = []
    for name in tree.filled(root):
        folder = join(root, name)
        if part_role(name) and not any(n.startswith(f"{folder}/") for n in labels):
            problem = (
                f"{printable(folder)}/ holds {counted(tree.total(folder), 'image')} "
                f"without labels, so it is not used"
            )
            remedy = "add a table of its labels to test on it"
            unlabelled.append((folder, DataWarning(problem, remedy)))
    return unlabelled


def _left_out(reason: str, names: Sequence[str]) -> tuple[LeftOut, ...]:
    return (LeftOut.of(reason, names),) if names else ()


def _warnings(entries: Sequence[LeftOut]) -> tuple[DataWarning, ...]:
    return tuple(
        DataWarning(
            f"{entry.reason} are not used ({entry.count}: {', '.join(entry.examples)})",
            "complete the table, or remove what is not meant",
        )
        for entry in entries
    )
