"""What a check says: a line that is ok, or what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from instahide_fl.errors import InstaHideError


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a doctor's report.

    Attributes:
        subject: what was looked at, for instance "server certificate".
        ok: whether it is as it should be.
        text: what was found; if it is not ok, also what to do.
    """

    subject: str
    ok: bool
    text: str


def good(subject: str, text: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(subject, True, text)


def bad(subject: str, text: str) -> Finding:
    """Return a finding that says what to do."""
    return Finding(subject, False, text)


Check = Callable[[], Iterable[Finding]]


def examine(subject: str, check: Check) -> Iterator[Finding]:
    """Yield what a check finds; an error that it ends in is a finding too.

    Args:
        subject: named if the check ends in an error.
        check: looks at one thing.
    """
    try:
        yield from check()
    except InstaHideError as error:
        yield bad(subject, str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        yield bad(subject, f"{place}{error.strerror or error}")
