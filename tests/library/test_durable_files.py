"""Damage to a run's files, as after a power failure, and who may read them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

import pytest
import torch

from instahide_fl.config import Config
from instahide_fl.errors import ConfigError, OutputError
from instahide_fl.files import atomic_file, atomic_folder
from instahide_fl.run_folder import (
    CHECKPOINT,
    CONFIG,
    PREVIOUS_CHECKPOINT,
    SUMMARY,
    RunFolder,
)
from instahide_fl.tensor_files import save_tensors


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", Config())


def state(number):
    return {
        "global/weight": torch.full((3, 2), float(number)),
        "global/half": torch.tensor(number, dtype=torch.bfloat16),
        "empty": torch.zeros(0),
    }


def train(folder, rounds):
    for number in range(1, rounds + 1):
        folder.append_metrics({"round": number})
        folder.save_checkpoint(number, state(number))


def flip_every_bit(path):
    """Yield after each change of one bit, in every byte of the tensors."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content)):
        content[place] ^= 1
        path.write_bytes(content)
        yield
        content[place] ^= 1


def test_a_changed_bit_in_a_checkpoint_falls_back_to_the_one_before(folder, caplog):
    train(folder, 3)
    newest = (folder.path / CHECKPOINT).read_bytes()
    before = (folder.path / PREVIOUS_CHECKPOINT).read_bytes()
    changes = 0
    for _ in flip_every_bit(folder.path / CHECKPOINT):
        (folder.path / PREVIOUS_CHECKPOINT).write_bytes(before)
        number, tensors = folder.load_checkpoint()
        assert number == 2
        assert torch.equal(tensors["global/weight"], state(2)["global/weight"])
        assert "continued from that of round 2" in caplog.text
        changes += 1
    assert changes == 26
    assert (folder.path / CHECKPOINT).read_bytes() == before != newest
    assert [row["round"] for row in folder.metrics()] == [1, 2]


@pytest.mark.parametrize("content", [b"", b"\0" * 500])
def test_a_checkpoint_of_nothing_falls_back_and_the_run_goes_on(folder, content):
    train(folder, 2)
    (folder.path / CHECKPOINT).write_bytes(content)
    assert folder.load_checkpoint()[0] == 1
    folder.append_metrics({"round": 2})
    folder.save_checkpoint(2, state(2))
    assert folder.load_checkpoint()[0] == 2
    (folder.path / CHECKPOINT).write_bytes(content)
    assert folder.load_checkpoint()[0] == 1


def test_two_damaged_checkpoints_are_both_named(folder):
    train(folder, 2)
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        (folder.path / name).write_bytes(b"x" * 100)
    with pytest.raises(OutputError, match=r"state\.safe.*previous\.safe"):
        folder.load_checkpoint()


def test_a_checkpoint_of_an_earlier_version_has_no_checksum(folder):
    folder.append_metrics({"round": 1})
    save_tensors(folder.path / CHECKPOINT, state(1), {"round": "1"})
    assert folder.load_checkpoint()[0] == 1
    save_tensors(folder.path / CHECKPOINT, state(1), {"round": "1", "sha257": ""})
    with pytest.raises(OutputError, match="no checksum"):
        folder.load_checkpoint()


@pytest.mark.parametrize("content", ["", "{}", "[]", "{", "null"])
def test_a_summary_of_nothing_is_damage(folder, content):
    (folder.path / SUMMARY).write_text(content)
    with pytest.raises(OutputError, match=r"summary\.json is damaged"):
        folder.summary()


def test_settings_that_end_early_are_damage_and_no_defaults(folder):
    path = folder.path / CONFIG
    lines = path.read_text().rstrip("\n").splitlines(keepends=True)
    for count in range(len(lines)):
        path.write_text("".join(lines[:count]))
        with pytest.raises(ConfigError, match=r"config\.toml"):
            folder.config()
    path.write_text("".join(lines))
    assert folder.config() == Config()


def test_content_is_on_the_disk_before_a_file_or_a_folder_has_its_name(
    tmp_path, monkeypatch
):
    synced = []
    fsync = os.fsync

    def record(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert synced == [str(temporary), str(tmp_path)]
    synced.clear()
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "below").mkdir()
        (temporary / "below" / "file").write_text("x")
    inside = [temporary, temporary / "below" / "file", temporary / "below"]
    assert sorted(synced) == sorted(map(str, [*inside, tmp_path]))
    assert synced[-1] == str(tmp_path)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_is_written_to(
    tmp_path, monkeypatch, code
):
    def refuse_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse_folders)
    is_broken = code == errno.EIO
    expected = pytest.raises(OutputError) if is_broken else contextlib.nullcontext()
    with expected, atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("x")
    with expected, atomic_folder(tmp_path / "folder"):
        pass


def test_what_is_private_is_for_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        path = tmp_path / "truth" / "round" / "client"
        with atomic_file(path, private=True) as temporary:
            temporary.touch()
        with atomic_file(tmp_path / "public" / "file") as temporary:
            temporary.touch()
    finally:
        os.umask(before)

    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(path) == 0o600
    assert {mode(path.parent), mode(path.parents[1])} == {0o700}
    assert mode(tmp_path / "public") == 0o777
