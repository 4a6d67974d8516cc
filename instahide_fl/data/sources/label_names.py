"""Names of classes and owners as people write them: cleaned, and compared."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

from instahide_fl.data.data_report import MAX_EXAMPLES, DataWarning


def clean_value(value: Any) -> Any:
    """Return a value without white space around it, None if it is empty or NaN.

    Programs write NaN as a text, too.
    """
    if isinstance(value, str):
        text = value.strip()
        return None if text.lower() in ("", "nan") else text
    is_nan = value != value  # nothing else is unequal to itself
    return None if is_nan else value


def common_form(name: str) -> str:
    """Return what names share that are probably the same.

    They may differ in case, white space, the form of letters, or the zeros before a
    number.

    Args:
        name: The name.
    """
    form = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    return form.lstrip("0") or "0" if form.isdecimal() else form


def quoted(name: str) -> str:
    """Return a name in quotes, with escapes where it would look like another name.

    Letters with accents may be stored as one character or as two, which look the same.

    Args:
        name: The name.
    """
    is_composed = unicodedata.is_normalized("NFC", name)
    return repr(name) if is_composed else ascii(name)


def alike_names_warnings(setting: str, names: Iterable[Any]) -> list[DataWarning]:
    """Warn about names that have the same common form.

    Args:
        setting: The setting of the column.
        names: Distinct names; numbers among them are passed over.
    """
    by_form: dict[str, list[str]] = {}
    for name in names:
        if isinstance(name, str):
            by_form.setdefault(common_form(name), []).append(name)
    alike = [sorted(group) for group in by_form.values() if len(group) > 1]
    if not alike:
        return []
    groups = [" and ".join(map(quoted, group)) for group in alike[:MAX_EXAMPLES]]
    further = ", ..." if len(alike) > MAX_EXAMPLES else ""
    return [
        DataWarning(
            f"{setting}: {', '.join(groups)}{further} are taken for different names",
            "write them alike if they are the same",
        )
    ]
