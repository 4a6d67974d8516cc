"""Brings pages from outside docs/ into the site, and makes all links right there.

Pages are written so that their links work in a checkout. The site has the same pages in
another tree; files of the code are not part of it, and their links become plain text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Pages and pictures outside docs/: by their path in the checkout, that in the site.
OUTSIDE = {
    "README.md": "index.md",
    "SECURITY.md": "SECURITY.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "experiments/README.md": "experiments/README.md",
    "examples/README.md": "examples/README.md",
    **{
        path.relative_to(ROOT).as_posix(): path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "experiments" / "results").rglob("*.png"))
    },
}
_LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside docs/."""
    for source, target in OUTSIDE.items():
        content = (ROOT / source).read_bytes()
        files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Rewrite a page's links for the site."""
    here = page.file.src_uri
    return _LINK.sub(lambda link: _rewritten(link, here, files), markdown)


def _rewritten(link: re.Match[str], here: str, files: Files) -> str:
    text, target = link["text"], link["target"]
    path, mark, anchor = target.partition("#")
    if not path or "://" in target or target.startswith("mailto:"):
        return link[0]
    place = PurePosixPath(_in_checkout(here)).parent / path
    found = _in_site(os.path.normpath(place))
    if files.get_file_from_path(found) is None:
        return text.removeprefix("!")[1:-1]
    relative = os.path.relpath(found, PurePosixPath(here).parent)
    return f"{text}({relative}{mark}{anchor})"


def _in_checkout(site_path: str) -> str:
    """Return where a page of the site is in the checkout."""
    outside = {target: source for source, target in OUTSIDE.items()}
    return outside.get(site_path, f"docs/{site_path}")


def _in_site(path: str) -> str:
    """Return where a file of the checkout is in the site."""
    found = OUTSIDE.get(path, path.removeprefix("docs/"))
    return found.removesuffix(".ipynb") + ".md" if found.endswith(".ipynb") else found
