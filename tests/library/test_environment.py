from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from instahide_fl import private_folder as folders
from instahide_fl.environment import proxy_exceptions, safe_imports
from instahide_fl.errors import OutputError
from instahide_fl.files import CACHE_VARIABLE, cache_folder
from instahide_fl.private_folder import folder_for_sockets, private_folder

SOCKET = "ray/session_2030-12-31_23-59-59_999999_4194304/sockets/plasma_store.1"


@pytest.fixture
def temporary(monkeypatch):
    """Set what Python takes for the folder of temporary files, as TMPDIR does."""
    return lambda folder: monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.mark.parametrize("name", ["long" * 20, "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_folder_that_no_socket_can_lie_in_is_passed_over(tmp_path, temporary, name):
    (tmp_path / name).mkdir()
    temporary(tmp_path / name)
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.is_relative_to(tmp_path)
        assert str(folder).isascii()
        assert len(str(folder / SOCKET)) <= folders.MAX_SOCKET_PATH
    assert not folder.exists()


def test_a_short_folder_is_taken_as_it_is(temporary):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        temporary(folder)
        assert folder_for_sockets() == folder
    finally:
        folder.rmdir()


def test_where_there_is_no_short_folder_the_error_names_tmpdir(
    tmp_path, temporary, monkeypatch
):
    temporary(tmp_path / ("long" * 20))
    monkeypatch.setattr(folders, "SHORT_FOLDERS", ("/nowhere",))
    with pytest.raises(OutputError, match="set TMPDIR to a folder"):
        folder_for_sockets()


@pytest.mark.parametrize(
    ("mode", "owner", "is_taken"),
    [
        (0o755, 0, True),
        (0o1777, 0, True),
        (0o777, 0, False),
        (0o775, 0, False),
        (0o1777, 65534, False),
    ],
)
def test_a_folder_in_which_others_can_rename_is_passed_over(
    temporary, mode, owner, is_taken
):
    if owner and os.geteuid():
        pytest.skip("giving a folder to another user needs root")
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        place.chmod(mode)
        if owner:
            os.chown(place, owner, owner)
        temporary(place)
        assert (folder_for_sockets() == place) is is_taken
    finally:
        place.rmdir()


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch):
    def find_nobody(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", find_nobody)
    for name in ("HOME", "XDG_CACHE_HOME", CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OutputError, match=f"HOME.*set {CACHE_VARIABLE}"):
        cache_folder()


LOOPBACK = "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK}),
        (
            {"NO_PROXY": "example.org, localhost"},
            dict.fromkeys(
                ("no_proxy", "NO_PROXY"), "example.org,localhost,127.0.0.1,::1"
            ),
        ),
        ({"no_proxy": "*"}, {"no_proxy": "*", "NO_PROXY": "*"}),
        (
            {"no_grpc_proxy": "10.0.0.1"},
            {
                "no_proxy": LOOPBACK,
                "NO_PROXY": LOOPBACK,
                "no_grpc_proxy": f"10.0.0.1,{LOOPBACK}",
            },
        ),
    ],
)
def test_loopback_is_added_to_what_no_proxy_is_used_for(environment, expected):
    assert proxy_exceptions(environment) == expected


@pytest.mark.parametrize("before", [None, "", "1"])
def test_safe_imports_leave_the_environment_as_it_was(monkeypatch, before):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONSAFEPATH", before)
    with safe_imports():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ.get("PYTHONSAFEPATH") == before
