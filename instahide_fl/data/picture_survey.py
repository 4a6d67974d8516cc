"""Looks at all pictures of a data set and decides what they are decoded to.

Headers tell size, colour and depth. Values are read here only of pictures deeper than
8 bits, and of all where `data.value-range` is to be applied to 8-bit pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import numpy as np

from instahide_fl.config import DataConfig
from instahide_fl.config.data import parse_value_range
from instahide_fl.data.data_report import DataWarning, PixelFindings, examples
from instahide_fl.data.picture_decoding import (
    PixelFormat,
    convert_to_8_bits,
    map_pictures,
)
from instahide_fl.data.picture_sizes import PictureSizes
from instahide_fl.data.sources.base import (
    DatasetPart,
    ImageBlocks,
    StoredPicture,
    StoredPictures,
)
from instahide_fl.data.stored_pictures import (
    PictureHeader,
    PictureKind,
    read_header,
    read_picture,
)
from instahide_fl.data.value_range import (
    EIGHT_BITS,
    ValueSummary,
    choose_range,
    format_range,
)
from instahide_fl.errors import DataError
from instahide_fl.terminal import counted

MAX_SHARE_CLIPPED = 0.01  # of the values, without a warning


@dataclass
class HeaderSurvey:
    """What the headers of a part's pictures say.

    Attributes:
        title: The name of the part, for messages.
        kinds: The number of pictures of each kind.
        sizes: Their sizes.
        num_sequences: The number of files with further frames or pages.
        is_deep: bool[N], whether each picture is deeper than 8 bits.
    """

    title: str
    kinds: Counter[PictureKind] = field(default_factory=Counter)
    sizes: PictureSizes = field(default_factory=PictureSizes)
    num_sequences: int = 0
    is_deep: np.ndarray[Any, np.dtype[np.bool_]] | None = None


def survey_pictures(
    parts: Sequence[DatasetPart], config: DataConfig
) -> tuple[PixelFormat, PixelFindings]:
    """Look at the pictures of all parts and decide what they are decoded to.

    Args:
        parts: All parts of the data set.
        config: The table `[data]`.

    Returns:
        The format, and what was found.

    Raises:
        DataError: The pictures and the settings allow no certain reading.
    """
    surveys = [_survey_headers(part.pictures) for part in parts]
    kinds = sum((survey.kinds for survey in surveys), Counter[PictureKind]())
    channels, channels_reason = _choose_channels(kinds, config)
    mapping = _choose_mapping(parts, surveys, config, channels)
    sizes = reduce(PictureSizes.joined, (survey.sizes for survey in surveys))
    num_sequences = sum(survey.num_sequences for survey in surveys)
    warnings = [*mapping.warnings, *sizes.warnings(config.image_size)]
    if num_sequences:
        warnings.append(
            DataWarning(
                f"{counted(num_sequences, 'file holds', 'files hold')} several frames "
                f"or pages, of which only the first is used",
                "save the others as files of their own if they are needed",
            )
        )
    findings = PixelFindings(
        channels=channels,
        channels_reason=channels_reason,
        stored_as={kind.name: count for kind, count in kinds.most_common()},
        value_range=mapping.value_range,
        value_range_reason=mapping.reason,
        num_deep=sum(count for kind, count in kinds.items() if kind.is_deep),
        stored_extremes=mapping.extremes,
        clipped_share=mapping.clipped_share,
        sizes=sizes.describe(config.image_size),
        warnings=tuple(warnings),
    )
    pixel_format = PixelFormat(
        channels=channels,
        image_size=config.image_size,
        value_range=mapping.value_range,
        maps_8_bits=mapping.maps_8_bits,
    )
    return pixel_format, findings


def _survey_headers(pictures: StoredPictures | ImageBlocks) -> HeaderSurvey:
    survey = HeaderSurvey(pictures.title)
    if isinstance(pictures, ImageBlocks):
        is_coloured = pictures.channels == 3
        name = "8-bit colour" if is_coloured else "8-bit grey"
        survey.kinds[PictureKind(name, is_coloured, "8-bit")] = pictures.count
        height, width = next(pictures.blocks()).shape[2:]
        survey.sizes.add(width, height, pictures.count)
        return survey
    survey.is_deep = np.zeros(pictures.count, dtype=bool)
    for number, header in map_pictures(pictures, read_header, "looking at"):
        # Damaged files are reported when pixels are decoded, all at once.
        if isinstance(header, PictureHeader):
            survey.kinds[header.kind] += 1
            survey.sizes.add(header.width, header.height)
            survey.num_sequences += header.has_frames
            survey.is_deep[number] = header.kind.is_deep
    return survey


def _choose_channels(
    kinds: Counter[PictureKind], config: DataConfig
) -> tuple[int, str]:
    total = kinds.total()
    coloured = sum(count for kind, count in kinds.items() if kind.is_coloured)
    share = f"{coloured:,} of {total:,} pictures are coloured"
    if config.channels != "auto":
        return config.channels, f"data.channels = {config.channels}, {share}"
    return (3 if coloured else 1), share


@dataclass(frozen=True)
class _Mapping:
    """How stored values become 8 bits, with what is reported of it."""

    value_range: tuple[float, float] = EIGHT_BITS
    reason: str = "8 bits as stored"
    maps_8_bits: bool = False
    extremes: tuple[float, float] | None = None
    clipped_share: float = 0.0
    warnings: tuple[DataWarning, ...] = ()


def _choose_mapping(
    parts: Sequence[DatasetPart],
    surveys: Sequence[HeaderSurvey],
    config: DataConfig,
    channels: int,
) -> _Mapping:
    kinds = sum((survey.kinds for survey in surveys), Counter[PictureKind]())
    is_deep = any(kind.is_deep for kind in kinds)
    if config.value_range != "auto":
        return _explicit_mapping(parts, surveys, config, channels)
    if not is_deep:
        return _Mapping()
    summaries = [
        _summarise_deep(part.pictures, survey)
        for part, survey in zip(parts, surveys, strict=True)
    ]
    joined = reduce(ValueSummary.joined, summaries)
    if not joined.num_values:
        return _Mapping()  # none can be read, which decoding reports
    is_float = any(kind.depth == "float" for kind in kinds)
    try:
        value_range, reason = choose_range(joined.low, joined.high, is_float=is_float)
    except ValueError as error:
        raise DataError(
            f"data.value-range: no range can be chosen for {_list_kinds(kinds)}, "
            f"because {error}: set data.value-range = LOW:HIGH"
        ) from None
    _refuse_mixed_depths(kinds, value_range)
    return _Mapping(
        value_range=value_range,
        reason=reason,
        extremes=(joined.low, joined.high),
        warnings=tuple(_uneven_parts(surveys, summaries, is_float=is_float)),
    )


def _explicit_mapping(
    parts: Sequence[DatasetPart],
    surveys: Sequence[HeaderSurvey],
    config: DataConfig,
    channels: int,
) -> _Mapping:
    value_range = parse_value_range(config.value_range)
    kinds = sum((survey.kinds for survey in surveys), Counter[PictureKind]())
    is_deep = any(kind.is_deep for kind in kinds)
    if is_deep:
        summaries = [
            _summarise_deep(part.pictures, survey, value_range)
            for part, survey in zip(parts, surveys, strict=True)
        ]
    else:
        summaries = [
            _summarise_8_bits(part.pictures, value_range, channels) for part in parts
        ]
    joined = reduce(ValueSummary.joined, summaries)
    reason = f"data.value-range = {config.value_range}"
    if is_deep and any(not kind.is_deep for kind in kinds):
        reason += ", for the pictures deeper than 8 bits; the others as stored"
    clipped_share = joined.num_outside / max(1, joined.num_values)
    warnings: list[DataWarning] = []
    extremes = (joined.low, joined.high)
    if clipped_share > MAX_SHARE_CLIPPED:
        warnings.append(
            DataWarning(
                f"{clipped_share:.1%} of the stored values lie outside "
                f"data.value-range = {config.value_range} and are clipped",
                f"the pictures' own values are {format_range(extremes)}",
            )
        )
    return _Mapping(
        value_range=value_range,
        reason=reason,
        maps_8_bits=not is_deep,
        extremes=extremes,
        clipped_share=clipped_share,
        warnings=tuple(warnings),
    )


def _summarise_deep(
    pictures: StoredPictures | ImageBlocks,
    survey: HeaderSurvey,
    value_range: tuple[float, float] | None = None,
) -> ValueSummary:
    """Summarise the values of the pictures deeper than 8 bits.

    Raises:
        DataError: Some values are NaN or infinite.
    """
    if isinstance(pictures, ImageBlocks) or survey.is_deep is None:
        return ValueSummary()
    summarise = partial(_summarise_picture, value_range=value_range)
    summary, bad_numbers = ValueSummary(), []
    for number, outcome in map_pictures(
        pictures, summarise, "measuring", is_selected=survey.is_deep
    ):
        if isinstance(outcome, ValueSummary):
            summary = summary.joined(outcome)
            if outcome.num_not_finite:
                bad_numbers.append(number)
    if bad_numbers:
        names = [pictures.name(number) for number in bad_numbers]
        raise DataError(
            f"data.dataset: {len(bad_numbers)} of {pictures.count} images of "
            f"{pictures.title} hold {summary.num_not_finite:,} values that are NaN or "
            f"infinite: {examples(names)}: replace them with numbers, or remove the "
            f"images"
        )
    return summary


def _summarise_picture(
    stored: StoredPicture, value_range: tuple[float, float] | None
) -> ValueSummary:
    values = np.asarray(read_picture(stored))
    if values.ndim == 3:
        values = values[..., :3]  # without opacity
    return ValueSummary.of(values, value_range)


def _summarise_8_bits(
    pictures: StoredPictures | ImageBlocks,
    value_range: tuple[float, float],
    channels: int,
) -> ValueSummary:
    if isinstance(pictures, ImageBlocks):
        blocks = (ValueSummary.of(block, value_range) for block in pictures.blocks())
        return reduce(ValueSummary.joined, blocks)

    def summarise(stored: StoredPicture) -> ValueSummary:
        picture = read_picture(stored)
        if not isinstance(picture, np.ndarray):
            picture = convert_to_8_bits(picture, grey=channels == 1)
        return ValueSummary.of(np.asarray(picture), value_range)

    outcomes = map_pictures(pictures, summarise, "measuring")
    summaries = (value for _, value in outcomes if isinstance(value, ValueSummary))
    return reduce(ValueSummary.joined, summaries, ValueSummary())


def _list_kinds(kinds: Counter[PictureKind]) -> str:
    return ", ".join(f"{count:,} {kind.name}" for kind, count in kinds.most_common())


def _refuse_mixed_depths(
    kinds: Counter[PictureKind], value_range: tuple[float, float]
) -> None:
    depths = {kind.depth for kind in kinds}
    if len(depths) == 1 or (value_range == EIGHT_BITS and "float" not in depths):
        return
    raise DataError(
        f"data.value-range: the data set holds pictures of different depths "
        f"({_list_kinds(kinds)}), so no range is certain: set data.value-range = "
        f"LOW:HIGH for those deeper than 8 bits, for instance "
        f"{format_range(value_range)}"
    )


def _uneven_parts(
    surveys: Sequence[HeaderSurvey],
    summaries: Sequence[ValueSummary],
    *,
    is_float: bool,
) -> Iterator[DataWarning]:
    """Warn where the parts alone would be mapped by different ranges."""
    ranges: dict[str, str] = {}
    for survey, summary in zip(surveys, summaries, strict=True):
        if summary.num_values:
            try:
                value_range, _ = choose_range(
                    summary.low, summary.high, is_float=is_float
                )
            except ValueError:
                continue
            ranges[survey.title] = format_range(value_range)
    if len(set(ranges.values())) > 1:
        listed = ", ".join(f"{title} {text}" for title, text in ranges.items())
        yield DataWarning(
            f"the parts have values of different ranges ({listed}) and are "
            f"mapped alike",
            "check that they were exported alike",
        )
