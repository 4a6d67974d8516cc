"""A data report in words: all facts, a summary of a few lines, and the warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from instahide_fl.data.data_report import DataReport, LeftOut
from instahide_fl.terminal import counted, printable

Fact: TypeAlias = tuple[str, str]
"""A term and its text."""

MAX_NAMES = 10  # columns, folders or parts that a line names


def data_facts(report: DataReport) -> list[Fact]:
    """Return all facts of a report but its classes and warnings, in reading order.

    Args:
        report: The report.

    Returns:
        Terms and texts, safe to print; a term is empty where a text continues the one
        before it.
    """
    facts = [
        *_part_facts(report),
        *_column_facts(report),
        ("image", f"{_shape(report)} (C x H x W), uint8"),
        *_pixel_facts(report),
        *_left_out_facts(report.source.left_out),
        ("duplicates", _duplicates(report) or "none"),
        ("one colour", _one_colour(report) or "none"),
    ]
    return [(term, printable(text)) for term, text in facts]


def data_summary(report: DataReport) -> list[str]:
    """Return the facts that a run begins with: one to four lines.

    What is as expected has no line: a set that ships with the package has one.

    Args:
        report: The report.
    """
    stored = f", {_stored(report)}" if report.pixels.stored_as else ""
    counts = (
        f"{report.dataset}: {_counts(report)} images of {_classes(report)}, "
        f"{_shape(report)}{stored}"
    )
    lines = [counts, *_origin(report), *_losses(report)]
    return [printable(line) for line in lines]


def held_out_lines(sizes: Mapping[str, int]) -> list[str]:
    """Say in one line which training images no client receives; no line for none.

    Args:
        sizes: The number of images of each held-out share, by name.
    """
    shares = [f"{count:,} for {name}" for name, count in sizes.items()]
    return [f"  held out of the training images: {', '.join(shares)}"] if shares else []


def warning_lines(report: DataReport) -> list[str]:
    """Return each warning as a sentence with its remedy, safe to print."""
    return [printable(f"warning: {warning}") for warning in report.warnings]


def class_facts(names: Sequence[str], counts: Sequence[int]) -> list[Fact]:
    """Sum up classes: how many there are, and how many images they have.

    Args:
        names: The names of all classes, at least one.
        counts: The number of images of each class.
    """
    fewest, most = min(counts), max(counts)
    few, many = names[counts.index(fewest)], names[counts.index(most)]
    listed = ", ".join(names)
    if len(names) > MAX_NAMES:
        listed = f"{', '.join(names[:3])}, ..., {names[-1]}"
    mean = sum(counts) / len(counts)
    spread = f"{fewest:,} ({few}) to {most:,} ({many}), mean {mean:,.1f}"
    facts = [
        ("classes", f"{len(names):,}: {listed}"),
        ("images a class", f"{most:,} each" if fewest == most else spread),
    ]
    return [(term, printable(text)) for term, text in facts]


def _part_facts(report: DataReport) -> Iterator[Fact]:
    for part, term in (("train", "training images"), ("test", "test images")):
        if part in report.parts:
            yield term, f"{report.parts[part]:,}{_part_origin(report, part)}"
    if report.source.parts_unused:
        yield "parts not used", _named(report.source.parts_unused)


def _part_origin(report: DataReport, part: str) -> str:
    origins = report.source.parts_from
    return f" ({origins[part]})" if part in origins else ""


def _column_facts(report: DataReport) -> Iterator[Fact]:
    source = report.source
    if source.columns:
        yield "columns", _columns(source.columns)
    if source.columns_unused:
        yield "columns not used", _named(source.columns_unused)


def _columns(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{use} from {name}" for use, name in columns.items())


def _pixel_facts(report: DataReport) -> Iterator[Fact]:
    pixels = report.pixels
    yield "channels", f"{pixels.channels}: {pixels.channels_reason}"
    if pixels.stored_as:
        yield "stored as", _stored(report)
    low, high = (f"{value:.10g}" for value in pixels.value_range)
    mapping = f"{low} becomes 0, {high} becomes 255: {pixels.value_range_reason}"
    if pixels.clipped_share:
        mapping += f"; {pixels.clipped_share:.2%} of the values lie outside"
    yield "value range", mapping
    yield "levels", f"{report.levels} distinct values in a sample, of at most 256"
    if pixels.sizes:
        yield "sizes", pixels.sizes


def _stored(report: DataReport) -> str:
    """Name the kinds of stored pictures, with their numbers where there are several."""
    kinds = report.pixels.stored_as
    if len(kinds) == 1:
        return next(iter(kinds))
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())


def _left_out_facts(entries: Sequence[LeftOut]) -> Iterator[Fact]:
    if not entries:
        yield "left out", "nothing"
    for number, entry in enumerate(entries):
        names = ", ".join(entry.examples)
        further = ", ..." if entry.count > len(entry.examples) else ""
        examples = f" ({names}{further})" if names else ""
        yield (
            "" if number else "left out",
            f"{entry.count:,}: {entry.reason}{examples}",
        )


def _duplicates(report: DataReport) -> str:
    if not report.duplicates:
        return ""
    equal = counted(report.duplicates, "image equals", "images equal")
    text = f"{equal} an earlier one"
    if across := report.duplicates_across_parts:
        also = counted(
            across,
            "of the test images is a training image",
            "of the test images are training images",
        )
        text += f"; {also} too"
    return text


def _one_colour(report: DataReport) -> str:
    count = report.one_colour
    return f"{counted(count, 'image')} of a single colour" if count else ""


def _classes(report: DataReport) -> str:
    return counted(len(report.classes), "class", "classes")


def _counts(report: DataReport) -> str:
    terms = {"train": "training", "test": "test"}
    return " and ".join(f"{n:,} {terms[part]}" for part, n in report.parts.items())


def _shape(report: DataReport) -> str:
    return f"{report.channels}x{report.height}x{report.width}"


def _origin(report: DataReport) -> Iterator[str]:
    """Say in one line which parts and columns of the user's own data were taken."""
    if ":" not in report.dataset:
        return
    source = report.source
    origins = [f"{part}: {place}" for part, place in source.parts_from.items()]
    if source.columns:
        origins.append(_columns(source.columns))
    if origins:
        yield f"  {', '.join(origins)}"


def _losses(report: DataReport) -> Iterator[str]:
    """Say in one line each what is left out, and which images repeat others."""
    reasons = [f"{entry.reason} ({entry.count:,})" for entry in report.source.left_out]
    if reasons:
        yield f"  left out: {', '.join(reasons)}"
    if equal := [text for text in (_duplicates(report), _one_colour(report)) if text]:
        yield f"  {'; '.join(equal)}"


def _named(names: Sequence[str]) -> str:
    further = f", ... ({len(names):,})" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + further
