"""Put measured results into the pages that show them."""

from __future__ import annotations

from pathlib import Path

from instahide_fl.files import write_text


def write_section(page: Path, text: str, name: str = "results") -> None:
    """Replace what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

    Args:
        page: The Markdown file.
        text: The new content, without a line break at its end.
        name: The name in the two markers.

    Raises:
        ValueError: the page lacks a marker.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    content = page.read_text(encoding="utf-8")
    start = content.index(begin) + len(begin)
    stop = content.index(end, start)
    write_text(page, content[:start] + text + "\n" + content[stop:])
