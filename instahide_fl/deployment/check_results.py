"""Results of checks: each is a line that is ok, or says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from instahide_fl.errors import InstaHideError


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of a doctor's report.

    Attributes:
        subject: The name of what was checked, for instance "server certificate".
        ok: Whether it is as it should be.
        text: A description of what is there; if it is not ok, also of what to do.
    """

    subject: str
    ok: bool
    text: str


def passed(subject: str, text: str) -> CheckResult:
    """Return the result that something is as it should be."""
    return CheckResult(subject, True, text)


def failed(subject: str, text: str) -> CheckResult:
    """Return the result that something is wrong, with what to do about it."""
    return CheckResult(subject, False, text)


Check = Callable[[], Iterable[CheckResult]]


def run_check(subject: str, check: Check) -> Iterator[CheckResult]:
    """Yield the results of a check; an error that ends the check is a result too.

    Args:
        subject: The subject of the result if the check ends in an error.
        check: A function that checks one thing.
    """
    try:
        yield from check()
    except InstaHideError as error:
        yield failed(subject, str(error))
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        yield failed(subject, f"{file}{error.strerror or error}")
