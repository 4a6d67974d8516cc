"""Brings pages from outside docs/ into the site, and rewrites all links for it.

Pages are written so that their links work in a checkout. The site has the same pages in
another tree. Files of the code are not part of it, and links to them become plain text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Pages and pictures outside docs/: their paths in the site by those in the checkout.
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
    """Add the pages and pictures that lie outside docs/."""
    for source, target in OUTSIDE.items():
        content = (ROOT / source).read_bytes()
        files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Rewrite a page's links for the site."""
    source = page.file.src_uri
    return _LINK.sub(lambda link: _rewritten(link, source, files), markdown)


def _rewritten(link: re.Match[str], source: str, files: Files) -> str:
    """Return a link of the page `source` of the site; plain text if it leads out."""
    text, target = link["text"], link["target"]
    path, mark, anchor = target.partition("#")
    if not path or "://" in target or target.startswith("mailto:"):
        return link[0]
    in_checkout = PurePosixPath(_in_checkout(source)).parent / path
    in_site = _in_site(os.path.normpath(in_checkout))
    if files.get_file_from_path(in_site) is None:
        return text.removeprefix("!")[1:-1]
    relative = os.path.relpath(in_site, PurePosixPath(source).parent)
    return f"{text}({relative}{mark}{anchor})"


def _in_checkout(site_path: str) -> str:
    """Return the path in the checkout of a page of the site."""
    outside = {target: source for source, target in OUTSIDE.items()}
    return outside.get(site_path, f"docs/{site_path}")


def _in_site(path: str) -> str:
    """Return the path in the site of a file of the checkout."""
    page = OUTSIDE.get(path, path.removeprefix("docs/"))
    return page.removesuffix(".ipynb") + ".md" if page.endswith(".ipynb") else page
