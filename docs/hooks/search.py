"""Lets the search work on pages opened from a disk, without the network.

The theme would load a script from a server; a script of this site takes its place.
"""

from __future__ import annotations

from typing import Any

from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

THEME_SCRIPT = "https://unpkg.com/iframe-worker/shim"
OWN_SCRIPT = "search_worker.js"


def on_post_page(output: str, page: Page, config: Any) -> str:
    """Replace the script in a page."""
    return output.replace(THEME_SCRIPT, get_relative_url(OWN_SCRIPT, page.url))


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """Replace the script in the page of wrong addresses, at any depth."""
    return output.replace(THEME_SCRIPT, f"/{OWN_SCRIPT}")
