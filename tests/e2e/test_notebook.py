"""The notebook in docs/ runs from beginning to end."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Jupyter's, on Python 3.11
def test_the_notebook_runs(tmp_path, monkeypatch):
    # The command of this checkout, whatever else is installed.
    script = tmp_path / "bin" / "instahide-fl"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nfrom instahide_fl.cli import main\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    script.chmod(stat.S_IRWXU)
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parents[1]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOKS / "compare.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    shown = [kind for out in outputs for kind in out.get("data", {})]
    assert "image/png" in shown
    assert shown.count("text/html") >= 2
