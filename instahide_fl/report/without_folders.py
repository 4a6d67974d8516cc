"""Texts of a report without the folders of the machine that it was made on.

Reports and their tables are published; a path holds names of users, projects and
machines. The last part of a path says which data or run it is.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_PART = r"[^\s/'\"`,;:|<>()\[\]{}]+"
# Two slashes behind a colon begin the address of a server.
_START = r"(?:~\w*)?(?:(?<!:)/+|/(?!/))"
# In quotes a path may have spaces. A slash behind a letter, a digit or another slash
# begins none: and/or, 1/2, http://host.
_PATH = re.compile(
    rf"(?P<quote>['\"`])(?P<before>(?:[^\s/'\"`]*[=:])?)"
    rf"(?P<quoted>{_START}[^'\"`]+)(?P=quote)"
    rf"|(?<![\w/.~)\]}}-])(?:file://)?{_START}(?:{_PART}/+)*{_PART}/*"
)
# The address of a server is none.
_ONE_PATH = re.compile(r"(?P<kind>(?!https?:)\w+:)?(?P<path>(?:~\w*)?/.*)", re.DOTALL)


def without_folders(text: str) -> str:
    """Replace each absolute path in a text by its last part."""
    return _PATH.sub(_last_part, text)


def setting_without_folders(value: str) -> str:
    """Replace the value of a setting, if it is an absolute path, by its last part.

    Args:
        value: A value such as hf:/data/cifar10, with spaces or without.
    """
    match = _ONE_PATH.fullmatch(value)
    if match is None:
        return without_folders(value)
    return f"{match['kind'] or ''}{PurePosixPath(match['path']).name}"


def _last_part(match: re.Match[str]) -> str:
    quote = match["quote"] or ""
    path = match["quoted"] or match[0]
    return f"{quote}{match['before'] or ''}{PurePosixPath(path).name}{quote}"
