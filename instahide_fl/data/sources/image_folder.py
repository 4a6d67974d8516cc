"""Data sets of picture files: a folder per class, or a table of their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from instahide_fl.config import DataConfig
from instahide_fl.data.data_report import MAX_EXAMPLES
from instahide_fl.data.picture_archives import is_archive
from instahide_fl.data.picture_files import list_picture_files
from instahide_fl.data.picture_listing import PictureFiles
from instahide_fl.data.sources.base import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    StoredPictures,
)
from instahide_fl.data.sources.class_folders import label_by_folders
from instahide_fl.data.sources.folder_layout import FolderLayout, find_layout
from instahide_fl.data.sources.label_names import (
    alike_names_warnings,
    clean_value,
)
from instahide_fl.data.sources.label_tables import (
    TABLE_SUFFIXES,
    LabelTable,
    read_label_table,
)
from instahide_fl.data.sources.labelled_names import (
    LabelledNames,
    LabelledPart,
    label_by_tables,
    merge_labels,
    without_minus_one,
)
from instahide_fl.data.sources.picture_names import PictureNames
from instahide_fl.data.sources.picture_tree import PictureTree, base_name, parent
from instahide_fl.data.sources.table_rows import UnusableTable
from instahide_fl.errors import DataError
from instahide_fl.terminal import printable

MAX_TABLES = 20  # that are looked into
FORM = "submission"  # in the name of a table whose labels are made up, to be replaced
MIN_LABELLED_SHARE = 0.9  # of the pictures that a table must label


def open_image_folder(path: str, config: DataConfig) -> DatasetSource:
    """Find pictures in class folders, or beside a table with their labels.

    Below a class, folders may be nested. Pictures are turned as their EXIF data say.

    Args:
        path: A folder, an archive of one, or a table in a folder.
        config: The table `[data]`.

    Raises:
        DataError: There is no such folder, archive or table, or part of it cannot be
            listed.
    """
    origin = Path(path).expanduser()
    table = ""
    if origin.is_file() and not is_archive(origin):
        if not origin.name.lower().endswith(TABLE_SUFFIXES):
            raise DataError(_no_folder(path))
        origin, table = origin.parent, origin.name
    elif not origin.exists():
        raise DataError(
            f"data.dataset: imagefolder:{printable(path)}: no such folder or file: "
            f"check the path"
        )
    elif not (origin.is_dir() or origin.is_file()):
        raise DataError(_no_folder(path))
    files = list_picture_files(origin)
    settings = (
        table,
        config.train_part,
        config.test_part,
        config.image_column,
        config.label_column,
        config.client_column,
    )
    return DatasetSource(
        f"imagefolder {settings} {files.identity}",
        lambda: _read(files, table, config),
    )


def _no_folder(path: str) -> str:
    hint = f", or hf:{path}" if path.endswith((".parquet", ".arrow")) else ""
    return (
        f"data.dataset: imagefolder:{printable(path)} is no folder: give a folder of "
        f"pictures, an archive of one (.zip, .tar, .tar.gz), or a table of files and "
        f"labels (.csv, .tsv, .jsonl){hint}"
    )


@dataclass(frozen=True)
class _Tables:
    """The tables beside the pictures.

    Attributes:
        usable: The tables that label pictures.
        problems: For each other table why it is not used, as a phrase.
    """

    usable: tuple[LabelTable, ...]
    problems: Mapping[str, str]

    def hint(self) -> str:
        """Return in words why no table could be used."""
        if not self.problems:
            return ""
        problems = [f"{printable(n)}: {text}" for n, text in self.problems.items()]
        return f"no labels from {'; '.join(problems[:MAX_EXAMPLES])}"


def _read(files: PictureFiles, table: str, config: DataConfig) -> DatasetContent:
    tree = PictureTree(files.names, files.folders)
    tables = _read_tables(files, table, config)
    labelled = _label(files, tree, tables, is_named=bool(table), config=config)
    parts = {
        name: _part(f"{files.origin.name} ({name})", files, part, labelled)
        for name, part in labelled.parts.items()
    }
    findings = labelled.findings
    alike = alike_names_warnings("classes", labelled.class_names)
    if config.client_column:
        name = "train" if "train" in parts else "all"
        ids, owners = _client_ids(labelled, labelled.parts[name], config.client_column)
        parts[name] = replace(parts[name], client_ids=ids)
        alike += alike_names_warnings("data.client-column", owners)
    findings = replace(
        findings,
        left_out=(*findings.left_out, *files.left_out(labelled.used_tables)),
        warnings=(*findings.warnings, *alike, *files.warnings()),
    )
    return DatasetContent(parts, list(labelled.class_names), findings)


def _read_tables(files: PictureFiles, table: str, config: DataConfig) -> _Tables:
    """Read the tables in the first two levels of folders, or only the one named."""
    candidates = [
        name
        for suffix in TABLE_SUFFIXES
        for name in files.others.get(suffix, ())
        if name == table or (not table and _is_near(files, name))
    ]
    candidates.sort(key=lambda name: (name.count("/"), name))
    pictures = PictureNames.of(files.names if candidates else ())
    usable, problems = [], {}
    for name in candidates[:MAX_TABLES]:
        if FORM in base_name(name).lower() and name != table:
            problems[name] = "it is a form to fill in, whose labels are made up"
            continue
        try:
            content = files.store.read_bytes(name)
            usable.append(read_label_table(name, content, pictures, config))
        except UnusableTable as problem:
            problems[name] = str(problem)
    usable = without_minus_one(usable)
    if problems and not usable and (table or _is_column_set(config)):
        raise DataError(
            f"data.dataset: {_Tables((), problems).hint()}: a table needs a column "
            f"with the names of the pictures and one with their classes"
        )
    return _Tables(tuple(usable), problems)


def _is_near(files: PictureFiles, name: str) -> bool:
    """Return whether a table lies where parts or classes lie, not deep in a class."""
    tree_depth = min((n.count("/") for n in files.names), default=0)
    return parent(name).count("/") <= max(1, tree_depth)


def _is_column_set(config: DataConfig) -> bool:
    return bool(config.image_column or config.label_column or config.client_column)


def _label(
    files: PictureFiles,
    tree: PictureTree,
    tables: _Tables,
    *,
    is_named: bool,
    config: DataConfig,
) -> LabelledNames:
    """Label pictures by tables, or by folders if these are classes."""
    root = _common_folder(files.names)
    if is_named or _is_column_set(config):
        if not tables.usable:
            raise DataError(
                f"data.dataset: there is no table of labels in "
                f"{printable(str(files.origin))}, so there are no columns: leave "
                f"data.image-column, data.label-column and data.client-column empty, "
                f"or add labels.csv"
            )
        return label_by_tables(tree, root, files.names, tables.usable, config)
    labels = merge_labels(tables.usable)
    try:
        layout = find_layout(
            tree,
            config.train_part,
            config.test_part,
            has_table=lambda folder: _share(files, folder, labels) > MIN_LABELLED_SHARE,
        )
    except DataError:
        if not labels:
            raise
        layout = None
    if labels and (layout is None or not _has_classes(tree, layout)):
        return label_by_tables(tree, root, files.names, tables.usable, config)
    assert layout is not None
    try:
        labelled = label_by_folders(files, layout, labels)
    except DataError as error:
        raise DataError(f"{error}{_hint(files, tree, layout, tables)}") from None
    _check_agreement(labelled, tables)
    return replace(labelled, used_tables=_tables_of(labelled, tables, layout))


def _common_folder(names: Sequence[str]) -> str:
    """Return the innermost folder that holds all pictures, but for a part's."""
    first, last = min(names, default=""), max(names, default="")
    folder = parent(first)
    while folder and not last.startswith(f"{folder}/"):
        folder = parent(folder)
    return folder


def _share(files: PictureFiles, folder: str, labels: Mapping[str, str]) -> float:
    inside = [name for name in files.names if name.startswith(f"{folder}/")]
    return sum(name in labels for name in inside) / max(1, len(inside))


def _has_classes(tree: PictureTree, layout: FolderLayout) -> bool:
    train = layout.parts["train"] if "train" in layout.parts else layout.parts["all"]
    return not tree.direct(train.folder) and len(train.classes) > 1


def _hint(
    files: PictureFiles, tree: PictureTree, layout: FolderLayout, tables: _Tables
) -> str:
    """Return what else the user may have meant."""
    if not files.names and any(s in files.others for s in (".parquet", ".arrow")):
        return f"; the folder holds Hugging Face files: give hf:{files.origin}"
    if _has_classes(tree, layout) or not tables.problems:
        return ""
    return f" ({tables.hint()})"


def _check_agreement(labelled: LabelledNames, tables: _Tables) -> None:
    """Refuse a table that divides the pictures of class folders otherwise."""
    for table in tables.usable:
        pairs: set[tuple[str, str]] = set()
        count = total = 0
        for part in labelled.parts.values():
            for name, folder_label in zip(part.names, part.labels, strict=True):
                total += 1
                if name in table.labels:
                    count += 1
                    pairs.add((folder_label, table.labels[name]))
        is_one_to_one = len({a for a, _ in pairs}) == len(pairs)
        is_one_to_one &= len({b for _, b in pairs}) == len(pairs)
        # 07 may be called cat, but not the folder dog.
        folder_labels = set(labelled.class_names)
        is_one_to_one &= all(a == b or b not in folder_labels for a, b in pairs)
        is_complete = count > MIN_LABELLED_SHARE * total
        if table.has_usual_label and is_complete and not is_one_to_one:
            label = table.columns["label"]
            raise DataError(
                f"data.label-column: {printable(table.name)} gives the pictures other "
                f"classes than their folders: set data.label-column = {label!r} to use "
                f"the table, or move it away to use the folders"
            )


def _tables_of(
    labelled: LabelledNames, tables: _Tables, layout: FolderLayout
) -> tuple[str, ...]:
    """Return the tables that label a flat test part."""
    test = layout.parts.get("test")
    if test is None or not labelled.parts["test"].names:
        return ()
    names = [n for n in labelled.parts["test"].names if parent(n) == test.folder]
    return tuple(
        table.name for table in tables.usable if names and names[0] in table.labels
    )


def _part(
    title: str, files: PictureFiles, part: LabelledPart, labelled: LabelledNames
) -> DatasetPart:
    numbers = {name: number for number, name in enumerate(labelled.class_names)}
    names = part.names
    prefix = f"{part.folder}/" if part.folder else ""
    pictures = StoredPictures(
        title=title,
        count=len(names),
        fetch=lambda start, stop: files.fetch(names[start:stop]),
        name=lambda number: printable(names[number].removeprefix(prefix)),
    )
    targets = np.array([numbers[label] for label in part.labels], dtype=np.int64)
    return DatasetPart(targets, pictures)


def _client_ids(
    labelled: LabelledNames, part: LabelledPart, column: str
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], list[str]]:
    """Number the owners of pictures in the order of their names."""
    if "client" not in labelled.findings.columns:
        raise DataError(
            f"data.client-column: the table of labels has no column {column!r}, only "
            f"{', '.join(labelled.findings.columns_unused)}"
        )
    owners = [clean_value(labelled.clients.get(name, "")) for name in part.names]
    missing = [n for n, o in zip(part.names, owners, strict=True) if o is None]
    if missing:
        raise DataError(
            f"data.client-column: {len(missing)} of {len(owners)} training pictures "
            f"have no {column!r}, the first is {printable(missing[0])}: fill them in, "
            f"or remove these rows"
        )
    names = sorted(set(owners))
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[owner] for owner in owners], dtype=np.int64), names
