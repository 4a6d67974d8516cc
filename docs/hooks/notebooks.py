"""Runs the notebooks of docs/notebooks/ and makes pages of them and their output."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
MAX_SECONDS = 300  # for a cell


def on_files(files: Files, config: Any) -> Files:
    """Add a page and its pictures for each notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a notebook does not run.
    """
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(source, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            client = NotebookClient(notebook, timeout=MAX_SECONDS, resources=resources)
            client.execute(env=_environment(Path(folder)))
        page, parts = MarkdownExporter().from_notebook_node(notebook)
        name = f"notebooks/{source.stem}"
        for picture, content in parts["outputs"].items():
            page = page.replace(f"({picture})", f"({source.stem}-{picture})")
            target = f"{name}-{picture}"
            files.append(File.generated(config, target, content=content))
        files.append(File.generated(config, f"{name}.md", content=page))
    return files


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment with the `instahide-fl` of this checkout and Python."""
    script = folder / "bin" / "instahide-fl"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nfrom instahide_fl.cli import main\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    script.chmod(0o700)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(script.parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
