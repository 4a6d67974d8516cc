"""The classes and owners of WebDataset samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instahide_fl.data.data_report import examples
from instahide_fl.data.sources.tar_samples import Sample, fetch_members
from instahide_fl.errors import DataError

LABEL_FIELDS = ("label", "class", "cls", "target")  # of .json members
BATCH_SAMPLES = 1024  # whose .json members are in memory at a time
MIN_CAPTIONS = 20  # different texts that may be captions

SampleValue = int | str | None
"""A class or an owner: a number, a name without spaces around it, or missing."""


@dataclass(frozen=True)
class LabelSource:
    """Where the samples' classes are.

    Attributes:
        column: The column of the members.
        field: The field of a .json member; None for the whole content.
    """

    column: str
    field: str | None = None

    def __str__(self) -> str:
        return f"{self.field} (json)" if self.field else self.column


def find_label_source(
    shards: Sequence[Path], samples: Sequence[Sample], label_column: str
) -> LabelSource:
    """Decide by all samples where their classes are.

    Args:
        shards: The shards, by their numbers.
        samples: The samples.
        label_column: The value of `data.label-column`: a column or a field of the .json
            members; empty takes `cls`, else a usual field, else `txt`.

    Raises:
        DataError: There is no such column, or several usual fields.
    """
    columns = {column for sample in samples for column in sample.columns}
    if label_column in columns and label_column != "json":
        return LabelSource(label_column)
    if not label_column and "cls" in columns:
        return LabelSource("cls")
    fields = _json_fields(shards, samples) if "json" in columns else set()
    usual = [name for name in LABEL_FIELDS if name in fields]
    if label_column in fields:
        return LabelSource("json", label_column)
    if not label_column and len(usual) == 1:
        return LabelSource("json", usual[0])
    if not label_column and not usual and "txt" in columns:
        return LabelSource("txt")
    choices = ", ".join([*sorted(columns), *sorted(map(str, fields))])
    problem = f"no {label_column!r}" if label_column else "no class"
    if len(usual) > 1 and not label_column:
        problem = f"more than one class ({', '.join(usual)})"
    raise DataError(
        f"data.label-column: the samples have {problem}: set it to the column or the "
        f"field of the .json members that holds the class, of {choices}"
    )


def find_owner_source(
    shards: Sequence[Path], samples: Sequence[Sample], client_column: str
) -> LabelSource:
    """Return where the samples' owners are.

    Args:
        shards: The shards, by their numbers.
        samples: The samples.
        client_column: The value of `data.client-column`: a column or a field of the
            .json members.

    Raises:
        DataError: There is no such column.
    """
    columns = {column for sample in samples for column in sample.columns}
    if client_column in columns:
        return LabelSource(client_column)
    fields = _json_fields(shards, samples) if "json" in columns else set()
    if client_column not in fields:
        raise DataError(
            f"data.client-column: the samples have no {client_column!r}, only "
            f"{', '.join([*sorted(columns), *sorted(fields)])}"
        )
    return LabelSource("json", client_column)


def read_values(
    shards: Sequence[Path], samples: Sequence[Sample], source: LabelSource
) -> list[SampleValue]:
    """Read one value of each sample.

    Args:
        shards: The shards, by their numbers.
        samples: The samples.
        source: Where the values are.

    Raises:
        DataError: Some content is no text, or a .json field is neither a name nor a
            whole number.
    """
    values: list[SampleValue] = []
    for batch in _batches(samples):
        spans = [s.columns[source.column] for s in batch if source.column in s.columns]
        contents = iter(fetch_members(shards, spans))
        for sample in batch:
            if source.column not in sample.columns:
                values.append(None)
            elif source.field is None:
                values.append(_from_text(sample, next(contents), source.column))
            else:
                fields = _parse_json(sample, next(contents))
                values.append(_from_json(sample, source.field, fields))
    return values


def unify_values(parts: Sequence[list[SampleValue]]) -> list[list[SampleValue]]:
    """Turn texts into numbers if all of all parts are numbers, else numbers into texts.

    A negative number is no class, but what some tools write for a missing one.

    Args:
        parts: The values of each part's samples.
    """
    try:
        return [[_number(value) for value in values] for values in parts]
    except ValueError:
        return [
            [None if value is None else str(value) for value in values]
            for values in parts
        ]


def number_classes(
    values: Sequence[SampleValue], names: Sequence[str] | None
) -> tuple[list[str], dict[SampleValue, int]]:
    """Give each class a number.

    Args:
        values: The classes of all training samples.
        names: Names of the classes 0, 1, ..., where the data set gives them.

    Returns:
        The names of the K classes, and the number of each value. Without given names,
        numbers stand in their order, and names in that of the alphabet.
    """
    distinct = {value for value in values if value is not None}
    if names is None:
        ordered: list[Any] = sorted(distinct, key=_in_order)
        return [str(value) for value in ordered], {
            value: number for number, value in enumerate(ordered)
        }
    numbers: dict[SampleValue, int] = {n: n for n in range(len(names))}
    # Where some samples have names and others numbers, all are texts.
    numbers |= {str(number): number for number in range(len(names))}
    numbers |= {name: number for number, name in enumerate(names)}
    unknown = sorted(str(value) for value in distinct if value not in numbers)
    if unknown:
        raise DataError(
            f"data.dataset: the data set names {len(names)} classes, and its samples "
            f"have {len(unknown)} others ({examples(unknown)}): mend "
            f"the file with the names, one class a line, or remove it"
        )
    return list(names), numbers


def refuse_captions(
    values: Sequence[SampleValue], source: LabelSource, label_column: str
) -> None:
    """Refuse texts of which most are different, unless the user asked for them.

    Args:
        values: The classes of all training samples.
        source: Where the values are.
        label_column: The value of `data.label-column`.

    Raises:
        DataError: The texts are probably captions.
    """
    num_distinct = len(set(values))
    if not label_column and num_distinct > max(MIN_CAPTIONS, len(values) / 2):
        raise DataError(
            f"data.label-column: {source} has {num_distinct:,} different values in "
            f"{len(values):,} samples, which are captions rather than classes: set "
            f"data.label-column to what holds the class"
        )


def number_owners(
    values: Sequence[SampleValue], samples: Sequence[Sample], column: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Number the owners of samples in the order of their names.

    Args:
        values: The owner of each sample.
        samples: The samples, for messages.
        column: The value of `data.client-column`.

    Raises:
        DataError: Some samples have no owner.
    """
    missing = [
        sample.key
        for sample, value in zip(samples, values, strict=True)
        if value is None
    ]
    if missing:
        raise DataError(
            f"data.client-column: {len(missing)} of {len(samples)} training samples "
            f"have no {column!r} ({examples(missing)}): give each one"
        )
    _, numbers = np.unique(np.asarray(values), return_inverse=True)
    return numbers.astype(np.int64)


def _in_order(value: SampleValue) -> tuple[int, str]:
    return (value, "") if isinstance(value, int) else (-1, str(value))


def _batches(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), BATCH_SAMPLES):
        yield samples[start : start + BATCH_SAMPLES]


def _json_fields(shards: Sequence[Path], samples: Sequence[Sample]) -> set[str]:
    fields: set[str] = set()
    for batch in _batches([sample for sample in samples if "json" in sample.columns]):
        contents = fetch_members(shards, [sample.columns["json"] for sample in batch])
        for sample, content in zip(batch, contents, strict=True):
            fields.update(_parse_json(sample, content))
    return fields


def _parse_json(sample: Sample, content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise DataError(
            f"data.dataset: {sample.key}.json is no JSON ({error}): write it anew"
        ) from None
    # A number or a text alone is the class.
    return fields if isinstance(fields, dict) else {"label": fields}


def _from_json(sample: Sample, field: str, fields: dict[str, Any]) -> SampleValue:
    value = fields.get(field)
    if isinstance(value, float) and value != value:
        return None  # NaN: pandas writes it where there is nothing
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, int):
        return value
    raise DataError(
        f"data.dataset: {field} of {sample.key}.json is {str(value)[:40]}, neither a "
        f"name nor a whole number: choose another field"
    )


def _from_text(sample: Sample, content: bytes, column: str) -> SampleValue:
    try:
        return content.decode().strip() or None
    except UnicodeDecodeError:
        raise DataError(
            f"data.dataset: {sample.key}.{column} is no text (UTF-8): choose another "
            f"column"
        ) from None


def _number(value: SampleValue) -> int | None:
    number = None if value is None else int(value)
    return None if number is None or number < 0 else number
