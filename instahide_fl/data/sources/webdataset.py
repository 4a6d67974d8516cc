"""WebDataset: pictures with their classes in the members of tar archives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from instahide_fl.config import DataConfig
from instahide_fl.data.data_report import (
    DataWarning,
    SourceFindings,
    examples,
)
from instahide_fl.data.sources.base import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    StoredPictures,
    file_listing,
)
from instahide_fl.data.sources.label_names import alike_names_warnings
from instahide_fl.data.sources.part_names import choose_parts
from instahide_fl.data.sources.sample_labels import (
    LabelSource,
    SampleValue,
    find_label_source,
    find_owner_source,
    number_classes,
    number_owners,
    read_values,
    refuse_captions,
    unify_values,
)
from instahide_fl.data.sources.shard_files import (
    ShardFiles,
    find_shards,
    missing_numbers,
)
from instahide_fl.data.sources.shard_parts import PartSamples, read_part
from instahide_fl.data.sources.tar_samples import (
    MemberSpan,
    fetch_members,
    is_picture_column,
)
from instahide_fl.errors import DataError
from instahide_fl.terminal import counted

MAX_COLUMNS_LISTED = 20


@dataclass(frozen=True)
class _LabelledParts:
    """The parts that are used, and the class of each of their samples.

    Attributes:
        source: Where the classes are.
        parts: By `train` and `test`, or `all`.
        values: The classes, by the same names; None where a sample has none.
        unused: The names of other parts.
        warnings: What the user should look at.
    """

    source: LabelSource
    parts: dict[str, PartSamples]
    values: dict[str, list[SampleValue]]
    unused: tuple[str, ...]
    warnings: tuple[DataWarning, ...]


def open_webdataset(reference: str, config: DataConfig) -> DatasetSource:
    """Return the data set of WebDataset shards.

    Args:
        reference: A .tar file, a folder with .tar files, or a pattern of them.
        config: The table `[data]`.

    Raises:
        DataError: There are no such shards.
    """
    files = find_shards(reference)
    listed = [*files.shards, *filter(None, [files.class_names_file])]
    columns = (config.image_column, config.label_column, config.client_column)
    parts = (config.train_part, config.test_part)
    return DatasetSource(
        repr(("webdataset", columns, parts, file_listing(files.folder, listed))),
        lambda: _read(reference, files, config),
    )


def _read(reference: str, files: ShardFiles, config: DataConfig) -> DatasetContent:
    labelled = _read_labelled(reference, files, config)
    parts = labelled.parts
    values = dict(zip(parts, unify_values(list(labelled.values.values())), strict=True))
    training = next(iter(parts))
    class_names, numbers = number_classes(
        values[training], _given_class_names(files, parts)
    )
    content = {
        role: _dataset_part(files, part, _targets(part, values[role], numbers))
        for role, part in parts.items()
    }
    owners: list[SampleValue] = []
    if config.client_column:
        samples = parts[training].samples
        source = find_owner_source(files.shards, samples, config.client_column)
        [owners] = unify_values([read_values(files.shards, samples, source)])
        ids = number_owners(owners, samples, config.client_column)
        content[training] = replace(content[training], client_ids=ids)
    findings = _findings(files, labelled, config)
    alike = [
        *alike_names_warnings("data.label-column", class_names),
        *alike_names_warnings("data.client-column", set(owners)),
    ]
    findings = replace(findings, warnings=(*findings.warnings, *alike))
    return DatasetContent(content, class_names, findings)


def _read_labelled(
    reference: str, files: ShardFiles, config: DataConfig
) -> _LabelledParts:
    """Read the part to train on, and the first part to test on that has classes."""
    groups = files.groups()
    chosen = choose_parts(tuple(groups), config.train_part, config.test_part)
    train = read_part(files, chosen.train, groups[chosen.train], config.image_column)
    _refuse_archived_folder(reference, train)
    source = find_label_source(files.shards, train.samples, config.label_column)
    train_values = read_values(files.shards, train.samples, source)
    refuse_captions(train_values, source, config.label_column)
    warnings: list[DataWarning] = []
    while chosen.test is not None:
        test = read_part(files, chosen.test, groups[chosen.test], config.image_column)
        values = read_values(files.shards, test.samples, source)
        if config.test_part or any(value is not None for value in values):
            return _LabelledParts(
                source=source,
                parts={"train": train, "test": test},
                values={"train": train_values, "test": values},
                unused=chosen.unused,
                warnings=tuple(warnings),
            )
        warnings.append(_unlabelled(chosen.test))
        del groups[chosen.test]
        chosen = choose_parts(tuple(groups), chosen.train)
    return _LabelledParts(
        source=source,
        parts={"all": train},
        values={"all": train_values},
        unused=chosen.unused,
        warnings=tuple(warnings),
    )


def _unlabelled(part: str) -> DataWarning:
    return DataWarning(
        f"part {part} has no classes, so it is not used",
        "set data.test-part to a part that has some",
    )


def _refuse_archived_folder(reference: str, part: PartSamples) -> None:
    if all(map(is_picture_column, part.columns())):
        raise DataError(
            f"data.dataset: webdataset:{reference} has pictures without a file beside "
            f"them that holds the class (KEY.cls, KEY.json or KEY.txt): an archived "
            f"folder of pictures is imagefolder:{reference}"
        )


def _given_class_names(
    files: ShardFiles, parts: Mapping[str, PartSamples]
) -> list[str] | None:
    """Return the names of classes that a file or a member gives, one a line."""
    spans = [part.class_names for part in parts.values() if part.class_names]
    if files.class_names_file is not None:
        title, content = files.class_names_file, files.class_names_file.read_bytes()
    elif spans:
        title = files.shards[spans[0].shard]
        [content] = fetch_members(files.shards, spans[:1])
    else:
        return None
    names = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
    names = [name for name in names if name]
    if len(set(names)) < len(names):
        raise DataError(
            f"data.dataset: the names of classes in {title} are not distinct: write "
            f"one a line, or give a file that holds something else another name"
        )
    return names


def _targets(
    part: PartSamples,
    values: Sequence[SampleValue],
    numbers: Mapping[SampleValue, int],
) -> np.ndarray[Any, np.dtype[np.int64]]:
    unlabelled = [
        sample.key
        for sample, value in zip(part.samples, values, strict=True)
        if value is None
    ]
    if unlabelled:
        raise DataError(
            f"data.dataset: {len(unlabelled)} of {len(values)} samples of part "
            f"{part.name} have no class ({examples(unlabelled)}): give "
            f"each a class from 0 on, or remove them"
        )
    unknown = sorted({str(value) for value in values if value not in numbers})
    if unknown:
        raise DataError(
            f"data.dataset: part {part.name} has {len(unknown)} classes that the "
            f"training part has not: {examples(unknown)}"
        )
    return np.array([numbers[value] for value in values], dtype=np.int64)


def _dataset_part(
    files: ShardFiles, part: PartSamples, targets: np.ndarray[Any, np.dtype[np.int64]]
) -> DatasetPart:
    # Arrays, because a million tuples take ten times as much memory.
    spans = np.array(
        [
            sample.columns[column]
            for sample, column in zip(part.samples, part.image_columns, strict=True)
        ]
    )
    keys = [sample.key for sample in part.samples]

    def fetch(start: int, stop: int) -> list[bytes]:
        rows = spans[start:stop].tolist()
        return fetch_members(files.shards, [MemberSpan(*row) for row in rows])

    pictures = StoredPictures(
        title=f"{files.folder.name} ({part.name})",
        count=len(keys),
        fetch=fetch,
        name=lambda row: f"{files.name(files.shards[spans[row, 0]])}: {keys[row]}",
    )
    return DatasetPart(targets, pictures)


def _findings(
    files: ShardFiles, labelled: _LabelledParts, config: DataConfig
) -> SourceFindings:
    parts = labelled.parts
    image_columns = sorted(
        {column for part in parts.values() for column in part.image_columns}
    )
    columns = {"image": ", ".join(image_columns), "label": str(labelled.source)}
    if config.client_column:
        columns["client"] = config.client_column
    present = set[str]().union(*(part.columns() for part in parts.values()))
    unused = sorted(present - {*image_columns, labelled.source.column})
    return SourceFindings(
        parts_from={
            role: f"{counted(part.num_shards, 'shard')} of {part.name}"
            for role, part in parts.items()
        },
        parts_unused=labelled.unused,
        columns=columns,
        columns_unused=tuple(unused[:MAX_COLUMNS_LISTED]),
        left_out=(
            *files.left_out,
            *(entry for part in parts.values() for entry in part.left_out),
        ),
        warnings=(*labelled.warnings, *_missing_numbers(files)),
    )


def _missing_numbers(files: ShardFiles) -> list[DataWarning]:
    warnings = []
    for group, shard_numbers in files.groups().items():
        names = [files.name(files.shards[number]) for number in shard_numbers]
        if missing := missing_numbers(names):
            warnings.append(
                DataWarning(
                    f"shards of {group} seem to be missing, with the numbers "
                    f"{examples(list(map(str, missing)))} ({len(missing)} in all)",
                    "copy them beside the others if they belong to the data set",
                )
            )
    return warnings
