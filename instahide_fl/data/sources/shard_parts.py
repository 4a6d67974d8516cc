"""The samples of one part of a WebDataset, each with its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from instahide_fl.data.data_report import LeftOut, examples
from instahide_fl.data.sources.part_names import part_role
from instahide_fl.data.sources.shard_files import CLASS_NAME_FILES, ShardFiles
from instahide_fl.data.sources.tar_samples import (
    MemberSpan,
    Sample,
    is_picture_column,
    read_shard,
)
from instahide_fl.errors import DataError

# Prefixes of the picture itself, where there are others beside it (`mask.png`).
USUAL_PREFIXES = ("", "image", "img", "input", "picture", "rgb")


@dataclass(frozen=True)
class PartSamples:
    """The samples of a part that have a picture.

    Attributes:
        name: The name of the part.
        num_shards: The number of its shards.
        samples: The samples, in the order of the shards.
        image_columns: The column of each sample's picture.
        class_names: The member with the names of classes; None if there is none.
        left_out: What is not read.
    """

    name: str
    num_shards: int
    samples: list[Sample]
    image_columns: list[str]
    class_names: MemberSpan | None
    left_out: tuple[LeftOut, ...]

    def columns(self) -> set[str]:
        """Return all columns of the samples."""
        return {column for sample in self.samples for column in sample.columns}


def read_part(
    files: ShardFiles, name: str, shard_numbers: Sequence[int], image_column: str
) -> PartSamples:
    """Read which samples a part has.

    Args:
        files: The shards of the data set.
        name: The name of the part.
        shard_numbers: The numbers of its shards.
        image_column: The value of `data.image-column`; empty takes the only picture of
            a sample, or the one with a usual name.

    Raises:
        DataError: A shard is damaged, there are no samples with a picture, a sample has
            several, or the shards hold several parts.
    """
    contents = [read_shard(files.shards[number], number) for number in shard_numbers]
    samples = [sample for content in contents for sample in content.samples]
    names_members = [sample for sample in samples if _holds_class_names(sample)]
    samples = [sample for sample in samples if not _holds_class_names(sample)]
    pictures = [_pictures(sample, image_column) for sample in samples]
    _refuse_several(name, samples, pictures)
    usable = [number for number, columns in enumerate(pictures) if columns]
    if not usable:
        raise DataError(
            f"data.dataset: part {name} has no sample with a picture"
            f"{f' in column {image_column}' if image_column else ''}: its columns are "
            f"{', '.join(_all_columns(samples)) or 'none'}"
        )
    without = [
        sample.key
        for sample, columns in zip(samples, pictures, strict=True)
        if not columns
    ]
    reasons = {
        "samples without a picture": without,
        "hidden files": [file for content in contents for file in content.hidden],
        "links and devices": [
            file for content in contents for file in content.irregular
        ],
    }
    part = PartSamples(
        name=name,
        num_shards=len(shard_numbers),
        samples=[samples[number] for number in usable],
        image_columns=[pictures[number][0] for number in usable],
        class_names=names_members[0].columns["txt"] if names_members else None,
        left_out=tuple(
            LeftOut.of(why, names) for why, names in reasons.items() if names
        ),
    )
    _refuse_inner_parts(part)
    return part


def _holds_class_names(sample: Sample) -> bool:
    name = f"{PurePosixPath(sample.key).name}.txt"
    return name in CLASS_NAME_FILES and list(sample.columns) == ["txt"]


def _pictures(sample: Sample, image_column: str) -> list[str]:
    """Return the columns that may be the sample's picture."""
    if image_column:
        return [
            column
            for column in sample.columns
            if image_column in (column, column.rpartition(".")[0])
        ]
    pictures = [column for column in sample.columns if is_picture_column(column)]
    usual = [
        column for column in pictures if column.rpartition(".")[0] in USUAL_PREFIXES
    ]
    return usual if len(usual) == 1 else pictures


def _refuse_several(
    name: str, samples: Sequence[Sample], pictures: Sequence[Sequence[str]]
) -> None:
    several = [number for number, columns in enumerate(pictures) if len(columns) > 1]
    if several:
        first = several[0]
        raise DataError(
            f"data.image-column: {len(several)} of {len(samples)} samples of part "
            f"{name} have several pictures ({samples[first].key}: "
            f"{', '.join(pictures[first])}): set it to the column to use (the key of a "
            f"sample ends at the first dot of a file's name)"
        )


def _refuse_inner_parts(part: PartSamples) -> None:
    folders = {sample.key.partition("/")[0] for sample in part.samples}
    inner = sorted(folder for folder in folders if part_role(folder))
    if len({part_role(folder) for folder in inner}) > 1:
        raise DataError(
            f"data.dataset: the samples of {part.name} lie in the folders "
            f"{examples(inner)} inside of its shards: write shards for "
            f"each part, for instance train-0000.tar and test-0000.tar"
        )


def _all_columns(samples: Sequence[Sample]) -> list[str]:
    return sorted({column for sample in samples for column in sample.columns})
