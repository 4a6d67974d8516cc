"""What goes to a terminal: bars of progress, names safe to print, counts in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")

# Control characters (a terminal obeys some), marks that reverse the direction of the
# text, and surrogates, which stand for bytes of a file name that are not UTF-8.
MAX_EXAMPLE_LENGTH = 100  # characters of a name or value in a message

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Write characters that cannot be shown, or act on a terminal, as escapes.

    Args:
        text: The text of one line.

    Returns:
        The text with `\x1b` (four characters) in the place of an escape character, and
        other escapes as Python writes them.
    """
    return _UNSAFE.sub(lambda match: repr(match.group())[1:-1], text)


def shortened(text: str) -> str:
    """Write a name or value so that it is safe to print and short.

    Args:
        text: The text of one line, of any length.

    Returns:
        At most `MAX_EXAMPLE_LENGTH` characters, before escapes: of a longer text the
        beginning, "...", and the end, where the name of a file stands.
    """
    if len(text) > MAX_EXAMPLE_LENGTH:
        text = f"{text[:60]}...{text[-(MAX_EXAMPLE_LENGTH - 63) :]}"
    return printable(text)


def counted(number: int, singular: str, plural: str = "") -> str:
    """Write a number with what it counts: "1 image", "2,000 images".

    Args:
        number: The number.
        singular: The words that follow 1.
        plural: The words that follow other numbers; empty for `singular` with an s.
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def show_steps(steps: Sequence[T], description: str) -> Iterable[T]:
    """Yield steps under a bar on standard error, which only a terminal shows.

    Standard output stays free for results.

    Args:
        steps: The steps of the work.
        description: The work, in a word or two.
    """
    console = Console(stderr=True)
    return track(
        steps,
        description,
        console=console,
        transient=True,
        update_period=0.5,
        disable=not console.is_terminal,
    )
