"""The app hash: the same for a checkout, an installation and an archive of Flower."""

from __future__ import annotations

import io
import warnings
import zipfile

import pytest
from flwr.cli.build import build_fab_from_disk

from instahide_fl.deployment.app_hash import (
    app_hash_of_archive,
    app_hash_of_files,
    app_hash_of_folder,
)
from instahide_fl.deployment.policy import (
    check_code,
)
from instahide_fl.errors import PolicyError, ProtocolError
from instahide_fl.flower.app_bundle import stage_app
from instahide_fl.flower.app_files import app_root
from tests.library.test_client_policy import policy


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    app = stage_app(tmp_path_factory.mktemp("app") / "app")
    with warnings.catch_warnings():  # Flower's use of pathspec is deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        return build_fab_from_disk(app)


def changed(archive, names):
    """The archive with other contents for some files, or with further ones."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(result, "w") as new,
    ):
        for entry in old.infolist():
            if entry.filename not in names:
                new.writestr(entry, old.read(entry))
        for name, content in names.items():
            new.writestr(name, content)
    return result.getvalue()


def test_an_installation_and_what_flower_sends_have_one_hash(archive):
    assert app_hash_of_archive(archive) == app_hash_of_folder(app_root())
    repacked = changed(archive, {".info/CONTENT": "anything"})
    assert app_hash_of_archive(repacked) == app_hash_of_archive(archive)


@pytest.mark.parametrize(
    "name", ["clients/app.py", "torch.py", "pyproject.toml", "clients/data.json"]
)
def test_another_or_one_more_file_is_other_code(archive, name):
    content = b'[project]\nname = "x"\n' if name == "pyproject.toml" else b"pass\n"
    other = app_hash_of_archive(changed(archive, {name: content}))
    assert other != app_hash_of_archive(archive)
    pinned = policy(code_hash=app_hash_of_archive(archive))
    check_code(pinned, app_hash_of_archive(archive))
    with pytest.raises(PolicyError, match=f"sent the code {other[:12]}, it allows"):
        check_code(pinned, other)


def test_a_file_by_another_name_is_other_code():
    project = b'[project]\nname = "x"\n'
    first = app_hash_of_files({"pyproject.toml": project, "a.py": b"1", "b.py": b"2"})
    assert first != app_hash_of_files(
        {"pyproject.toml": project, "a.py": b"2", "b.py": b"1"}
    )
    with pytest.raises(ProtocolError, match="no Flower app"):
        app_hash_of_files({"a.py": b"1"})


def test_what_is_no_archive_is_refused(archive):
    for broken in (b"", b"PK\3\4 nothing", archive[: len(archive) // 2]):
        with pytest.raises(ProtocolError, match="cannot be unpacked"):
            app_hash_of_archive(broken)
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as packed:
        packed.writestr("pyproject.toml", "")
        with pytest.warns(UserWarning, match="Duplicate name"):
            packed.writestr("pyproject.toml", "")
    with pytest.raises(ProtocolError, match="names a file twice"):
        app_hash_of_archive(twice.getvalue())
