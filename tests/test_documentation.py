"""README and docs: links lead somewhere, commands exist, examples and the site work."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from pydantic import BaseModel

from instahide_fl.cli import app
from instahide_fl.config import Config, parse_assignment

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "experiments").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
    ]
)
EXAMPLES = [
    pytest.param(path, marks=[] if path.stem == "custom_attack" else pytest.mark.long)
    for path in sorted((ROOT / "examples").glob("*.py"))
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Words of a page that stand for something of the reader's.
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_-]+$|\.\.\.|[\[\]|]")


def named(page):
    return page.relative_to(ROOT).as_posix()


def anchors(page):
    """Return what the headings of a page are linked by."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    plain = [re.sub(r"[^\w\- ]", "", one.lower()) for one in headings]
    return {one.strip().replace(" ", "-") for one in plain}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if named(page) == "docs/reference/api.md" or "reference/" in path:
            continue  # written by the site's own hooks
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), target


def commands(page):
    """Yield the arguments of each `instahide-fl` line of a page's code."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?: {4,}|\t)\s*(instahide-fl .*)$", text, flags=re.M):
        told = re.split(r"\s{2,}(?=[^-\s])", line.partition(" #")[0].strip())[0]
        yield shlex.split(told.split(" > ")[0])[1:]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if list(commands(page))], ids=named
)
def test_commands_exist_with_their_options_and_settings(page):
    for arguments in commands(page):
        group, words = typer.main.get_command(app), list(arguments)
        context = click.Context(group, info_name="instahide-fl")
        while hasattr(group, "commands"):
            if not words or words[0].startswith("-") or PLACEHOLDER.search(words[0]):
                break
            assert words[0] in group.commands, arguments
            group = group.commands[words.pop(0)]
            context = click.Context(group, parent=context)
        known = {name for one in group.params for name in one.opts + one.secondary_opts}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in {*known, "--help"}, arguments
        if group.name in ("run", "encode", "data"):
            check_settings(words, arguments)


def check_settings(words, arguments):
    """Hold each --set NAME=VALUE against the settings."""
    for before, assignment in itertools.pairwise(words):
        if before == "--set" and not PLACEHOLDER.search(assignment):
            name, _ = parse_assignment(assignment)
            table, _, key = name.rpartition(".")
            place = Config.model_fields[table.replace("-", "_")].annotation
            assert issubclass(place, BaseModel)
            assert key.replace("-", "_") in place.model_fields, arguments


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run_as_they_stand(example, tmp_path):
    ended = subprocess.run(
        [sys.executable, example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout
    if example.name == "plain_pytorch.py":
        assert float(ended.stdout.split()[-1].rstrip("%")) > 85
    if example.name == "custom_attack.py":
        assert "encodings: SSIM 1.00" in ended.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with its notebook executed."""
    folder = tmp_path_factory.mktemp("site") / "site"
    build = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict"]
    ended = subprocess.run(
        [*build, "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.long
@pytest.mark.slow
def test_the_site_lists_every_setting_and_command(site):
    settings = (site / "reference" / "settings.html").read_text()
    for name in Config().to_run_config():
        assert f"<code>{name.rpartition('.')[2]}</code>" in settings
    told = (site / "reference" / "commands.html").read_text()
    assert "instahide-fl deploy remove" in told


@pytest.mark.long
@pytest.mark.slow
def test_the_notebook_was_executed(site):
    page = (site / "notebooks" / "compare.html").read_text()
    assert page.count('class="dataframe"') == 2
    [picture] = re.findall(r'<img[^>]* src="(compare-[^"]*\.png)"', page)
    assert (site / "notebooks" / picture).stat().st_size > 5_000


@pytest.mark.long
@pytest.mark.slow
def test_the_site_needs_no_network(site):
    loads = re.compile(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]*"')
    styles = re.compile(r'<link[^>]*stylesheet[^>]*href="(?:https?:)?//[^"]*"')
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not loads.findall(text) + styles.findall(text), page


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_the_search_works_on_pages_from_a_disk(site, tmp_path):
    seen = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--disable-background-networking", "--no-first-run"),
            *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"),
            *("--dump-dom", f"{(site / 'index.html').as_uri()}?q=whitened"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.search(r"[1-9]\d* matching document", seen.stdout)
