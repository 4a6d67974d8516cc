"""What runs on a client is the app that was checked, whatever the server names."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

import pytest
import tomli_w
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.supernode.runtime import run_clientapp

from instahide_fl.deployment.app_hash import app_hash_of_archive
from instahide_fl.deployment.launcher import REPLACED, guard
from instahide_fl.errors import EngineError
from instahide_fl.wire.refusals import RefusedError

APP = """
from pathlib import Path
from flwr.clientapp import ClientApp

Path({marker!r}).write_text("ran")
app = ClientApp()
"""


def flower_app(root, version, marker):
    """Return an app's archive, whose client code writes a file when it is loaded."""
    package = root / "clients"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "app.py").write_text(APP.format(marker=str(marker)))
    project = {
        "project": {"name": "instahide-fl", "version": version, "dependencies": []},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "instahide",
                    "components": {
                        "clientapp": "clients.app:app",
                        "serverapp": "clients.app:app",
                    },
                }
            }
        },
    }
    (root / "pyproject.toml").write_text(tomli_w.dumps(project))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's use of pathspec
        return build_fab_from_disk(root)


def forget_clients():
    for name in [name for name in sys.modules if name.startswith("clients")]:
        del sys.modules[name]


@pytest.fixture
def flower(tmp_path, monkeypatch):
    """What unpacks and loads in Flower, with a home of its own."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    kept = dict(sys.modules)
    forget_clients()  # the project's own, which other tests import
    yield SimpleNamespace(**{name: getattr(run_clientapp, name) for name in REPLACED})
    forget_clients()
    sys.modules.update(kept)  # the launcher forgets this library's


def client(tmp_path, code_hash):
    folder = tmp_path / "client"
    folder.mkdir()
    table = {"name": "north", "server": "localhost:9443", "data": "imagefolder:images"}
    (folder / "client.toml").write_text(tomli_w.dumps(table | {"code-hash": code_hash}))
    return folder


def test_the_pinned_app_is_loaded_also_where_the_server_names_another(tmp_path, flower):
    old, new = tmp_path / "old-ran", tmp_path / "new-ran"
    former = flower_app(tmp_path / "old", "1.0.0", old)
    pinned = flower_app(tmp_path / "new", "2.0.0", new)
    # An app that ran here before lies in Flower's folder still.
    left = flower.install_from_fab(former, skip_prompt=True)
    guard(flower, client(tmp_path, app_hash_of_archive(pinned)))
    flower.install_from_fab(pinned, skip_prompt=True)
    load = flower.get_load_client_app_fn(
        default_app_ref="", app_path=None, multi_app=True
    )
    with pytest.raises(Exception, match="mismatch"):
        load("instahide/instahide-fl", "1.0.0", left.name.rpartition(".")[2])
    assert not old.exists()
    app = load("instahide/instahide-fl", "2.0.0", "whatever the server says")
    assert isinstance(app, ClientApp)
    assert new.exists()


def test_another_app_is_not_even_unpacked(tmp_path, flower):
    marker = tmp_path / "ran"
    other = flower_app(tmp_path / "other", "2.0.0", marker)
    guard(flower, client(tmp_path, "0" * 64))
    with pytest.raises(RefusedError, match="client north refuses, code other-code"):
        flower.install_from_fab(other, skip_prompt=True)
    assert not marker.exists()
    assert not list((tmp_path / "home").rglob("app.py"))


def test_a_launcher_that_fails_tells_the_server_no_path(tmp_path, flower, capsys):
    folder = client(tmp_path, "")
    guard(flower, folder)
    (folder / "client.toml").unlink()
    with pytest.raises(RefusedError) as failed:
        flower.install_from_fab(b"", skip_prompt=True)
    assert "code settings" in str(failed.value)
    assert str(tmp_path) not in str(failed.value)
    assert str(folder) in capsys.readouterr().err


def test_a_flower_without_these_functions_is_refused(tmp_path):
    with pytest.raises(EngineError, match="no install_from_fab and no get_load_client"):
        guard(SimpleNamespace(), tmp_path)
