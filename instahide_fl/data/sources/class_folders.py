"""Labels pictures by the folder that they lie in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from instahide_fl.data.data_report import (
    DataWarning,
    LeftOut,
    SourceFindings,
    examples,
)
from instahide_fl.data.picture_listing import PictureFiles
from instahide_fl.data.picture_types import unreadable_kind
from instahide_fl.data.sources.folder_layout import FolderLayout, PartFolder
from instahide_fl.data.sources.label_names import common_form, quoted
from instahide_fl.data.sources.labelled_names import LabelledNames, LabelledPart
from instahide_fl.data.sources.picture_tree import base_name, join, parent
from instahide_fl.errors import DataError
from instahide_fl.terminal import counted, printable

# Folders of pictures and of what is drawn on them, which are no classes.
_PICTURE_NAMES = frozenset({"image", "images", "img", "imgs", "photos", "pictures"})
_DRAWING_NAMES = frozenset(
    {
        "annotation",
        "annotations",
        "groundtruth",
        "ground_truth",
        "gt",
        "label",
        "labels",
        "mask",
        "masks",
        "segmentations",
    }
)


def label_by_folders(
    files: PictureFiles, layout: FolderLayout, labels: Mapping[str, str]
) -> LabelledNames:
    """Label pictures by their class folders, and a flat test part by tables.

    Args:
        files: All files.
        layout: The folders of the parts.
        labels: The labels that tables give, by the picture's name.

    Raises:
        DataError: Pictures of the training part have no label, there are fewer than
            two classes, a class has no images, or the test part has other classes.
    """
    train_part = "train" if "train" in layout.parts else "all"
    train_folder = layout.parts[train_part]
    class_names = _class_names(files, train_folder)
    parts = {train_part: _by_class(files, train_folder, class_names)}
    _check_complete(files, train_folder, class_names, parts[train_part])
    loose: list[str] = []
    if "test" in layout.parts:
        test_folder = layout.parts["test"]
        loose = _loose(files, test_folder.folder)
        is_flat = bool(loose) and not set(test_folder.classes) & set(class_names)
        if is_flat:
            parts["test"], loose = _by_labels(files, test_folder.folder, labels)
        else:
            parts["test"] = _by_class(files, test_folder, class_names)
        _check_test(files, layout, parts["test"], class_names, is_flat=is_flat)
    reason = "pictures of the test part that have no label"
    entry = LeftOut.of(reason, loose)
    findings = SourceFindings(
        parts_from={
            part: _described(layout.parts[part], labelled, class_names)
            for part, labelled in parts.items()
        },
        parts_unused=layout.unused,
        left_out=(entry,) if loose else (),
        warnings=(*layout.warnings, *_drawing_warnings(class_names)),
    )
    return LabelledNames(parts, class_names, findings)


def _class_names(files: PictureFiles, part: PartFolder) -> tuple[str, ...]:
    loose = _loose(files, part.folder)
    where = _path(files, part.folder)
    if loose:
        names = examples([base_name(name) for name in loose])
        verbs = ("has", "it lies") if len(loose) == 1 else ("have", "they lie")
        raise DataError(
            f"data.dataset: {counted(len(loose), 'image')} in {where} {verbs[0]} no "
            f"label, because {verbs[1]} in no class's folder ({names}): put each "
            f"into a folder with its class's name, or give a table with their names "
            f"and labels"
        )
    if len(part.classes) < 2:
        existing = f"only {examples(part.classes)}" if part.classes else "none"
        raise DataError(
            f"data.dataset: imagefolder needs a folder for each of at least two "
            f"classes in {where}, there is {existing}"
        )
    _check_text(files, part)
    return part.classes


def _drawing_warnings(class_names: Sequence[str]) -> tuple[DataWarning, ...]:
    """Warn about a data set of pictures and masks that is read as two classes."""
    lower = {name.lower() for name in class_names}
    if not (lower & _PICTURE_NAMES and lower & _DRAWING_NAMES):
        return ()
    problem = (
        f"{examples(class_names)} are taken for classes, although they are named like "
        f"pictures and their masks"
    )
    return (DataWarning(problem, "give a folder with a folder per class"),)


def _check_text(files: PictureFiles, part: PartFolder) -> None:
    for name in part.classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"data.dataset: the name of the folder {printable(name)} in "
                f"{_path(files, part.folder)} is not UTF-8: rename it, for instance "
                f"with convmv -f latin1 -t utf8 -r --notest"
            ) from None


def _by_class(
    files: PictureFiles, part: PartFolder, class_names: Sequence[str]
) -> LabelledPart:
    """Return the pictures in class folders: by class, folder and name."""
    prefix = f"{part.folder}/" if part.folder else ""
    by_class: dict[str, list[str]] = {name: [] for name in class_names}
    for name in files.names:
        if name.startswith(prefix):
            folder, slash, _ = name[len(prefix) :].partition("/")
            if slash and folder in by_class:
                by_class[folder].append(name)
    names, labels = [], []
    for label, inside in by_class.items():
        names += sorted(inside, key=lambda name: (parent(name), name))
        labels += [label] * len(inside)
    return LabelledPart(tuple(names), tuple(labels), part.folder)


def _by_labels(
    files: PictureFiles, folder: str, labels: Mapping[str, str]
) -> tuple[LabelledPart, list[str]]:
    """Return the pictures that a table labels, and those that it does not."""
    inside = [name for name in files.names if name.startswith(f"{folder}/")]
    names = tuple(name for name in inside if name in labels)
    part = LabelledPart(names, tuple(labels[name] for name in names), folder)
    return part, [name for name in inside if name not in labels]


def _check_complete(
    files: PictureFiles,
    folder: PartFolder,
    class_names: Sequence[str],
    part: LabelledPart,
) -> None:
    labels = set(part.labels)
    empty = [name for name in class_names if name not in labels]
    if empty:
        hint = _unreadable_in(files, [join(folder.folder, name) for name in empty])
        raise DataError(
            f"data.dataset: no images in {_path(files, folder.folder)} for "
            f"{len(empty)} of {len(class_names)} classes: {examples(empty)}"
            f"{hint or ': add pictures, or take the folders away'}"
        )


def _check_test(
    files: PictureFiles,
    layout: FolderLayout,
    part: LabelledPart,
    class_names: Sequence[str],
    *,
    is_flat: bool,
) -> None:
    folder = layout.parts["test"]
    offered = set(part.labels) if is_flat else set(folder.classes)
    unknown = sorted(offered - set(class_names))
    where = _path(files, folder.folder)
    if unknown:
        train = base_name(layout.parts["train"].folder) or "the training part"
        raise DataError(
            f"data.dataset: {where} has classes that {train}/ has not: "
            f"{examples(unknown)}: {_alike_hint(unknown, class_names)}remove them, or "
            f"set data.test-part to another folder"
        )
    if not part.names:
        hint = _unreadable_in(files, [folder.folder])
        raise DataError(
            f"data.dataset: no images in {where} for {len(class_names)} of "
            f"{len(class_names)} classes: {examples(class_names)}{hint}"
        )


def _alike_hint(unknown: Sequence[str], class_names: Sequence[str]) -> str:
    """Return a remedy if the parts write a class in two ways."""
    by_form = {common_form(name): name for name in class_names}
    for name in unknown:
        other = by_form.get(common_form(name))
        if other is not None:
            return f"write {quoted(name)} like {quoted(other)} if they are the same, "
    return ""


def _unreadable_in(files: PictureFiles, folders: Sequence[str]) -> str:
    """Return in words which pictures of folders were left out, with a remedy."""
    prefixes = tuple(f"{folder}/" for folder in folders)
    for suffix, names in sorted(files.others.items()):
        kind = unreadable_kind(suffix)
        count = sum(name.startswith(prefixes) for name in names)
        if kind and count:
            unread = counted(count, f"{suffix} file", f"{suffix} files")
            return f" ({unread} there not read: {kind.remedy})"
    return ""


def _loose(files: PictureFiles, folder: str) -> list[str]:
    return [name for name in files.names if parent(name) == folder]


def _path(files: PictureFiles, folder: str) -> str:
    path = files.origin / folder if folder else files.origin
    return printable(str(path))


def _described(
    part: PartFolder, labelled: LabelledPart, class_names: Sequence[str]
) -> str:
    folder = f"folder {printable(part.folder)}" if part.folder else "the whole folder"
    counts = Counter(labelled.labels)
    if len(counts) == len(class_names):
        return folder
    return f"{folder} ({len(counts)} of {len(class_names)} classes)"
