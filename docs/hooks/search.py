"""Lets the search work on pages opened from a disk, without the network.

For that the theme loads a script from a server; ours takes its place.
"""

from __future__ import annotations

from typing import Any

from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

THEMES = "https://unpkg.com/iframe-worker/shim"
OURS = "search_worker.js"


def on_post_page(output: str, page: Page, config: Any) -> str:
    """Replace the address of the script, where the theme has put it."""
    return output.replace(THEMES, get_relative_url(OURS, page.url))


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """Replace it in the page for wrong addresses, which may lie at any depth."""
    return output.replace(THEMES, f"/{OURS}")
