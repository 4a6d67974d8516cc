from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile

import pytest
from PIL import Image

from instahide_fl.data.picture_files import list_picture_files
from instahide_fl.data.picture_listing import (
    BROKEN_LINKS,
    LEFTOVERS,
    NO_REGULAR_FILES,
    OUTSIDE_NAMES,
    REPEATED_LINKS,
)
from instahide_fl.data.pool_source import open_pool_source
from instahide_fl.errors import DataError, PoolError
from instahide_fl.terminal import printable
from tests.library.pictures import write_pictures

ARCHIVES = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")
JUNK = (
    ".ipynb_checkpoints/1-checkpoint.png",
    ".Trash-1000/files/1.png",
    "._1.png",
    "@eaDir/1.png/SYNOPHOTO_THUMB_M.png",
    "__MACOSX/1.png",
    "lost+found/1.png",
    "#recycle/1.png",
    "$RECYCLE.BIN/1.png",
    "System Volume Information/1.png",
    "Thumbs.db",
    "desktop.ini",
)


def counts(files):
    return {entry.reason: entry.count for entry in files.left_out()}


def archive_of(folder, path):
    """Pack a folder as `zip` or `tar` do, with the folder's name before all others."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder.parent))
    else:
        mode = "w:" + path.suffix[1:].replace("tar", "")
        with tarfile.open(path, mode) as archive:
            archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize("depth", ["", "cat/", "cat/deep/"])
def test_what_programs_leave_behind_is_left_out_at_every_depth(tmp_path, depth):
    write_pictures(tmp_path, ["cat/1.png", "dog/1.png", "cat/deep/2.png"])
    for name in JUNK:
        path = tmp_path / depth / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path, "PNG")
    files = list_picture_files(tmp_path)
    assert files.names == ("cat/1.png", "cat/deep/2.png", "dog/1.png")
    assert files.folders == ("cat", "cat/deep", "dog")
    assert counts(files) == {LEFTOVERS: len(JUNK)}
    assert len(files.left_out()[0].examples) == 3


def test_links_never_bring_a_folder_in_twice(tmp_path):
    top, outside = tmp_path / "set", tmp_path / "outside"
    write_pictures(top, ["cat/1.png", "cat/inner/2.png", "dog/3.png"])
    write_pictures(outside, ["4.png", "deep/5.png"])
    (top / "cat" / "all").symlink_to("..")
    (top / "cat" / "more").symlink_to("../dog")
    (top / "dog" / "above").symlink_to(tmp_path)
    (top / "dog" / "itself").symlink_to(top / "dog" / "itself")
    (top / "dog" / "x").symlink_to(outside)
    (top / "emu").symlink_to(outside / "deep")
    (outside / "back").symlink_to(top / "cat")
    (outside / "loop").symlink_to(outside)
    (top / "dog" / "6.png").symlink_to(outside / "4.png")
    files = list_picture_files(top)
    assert files.names == (
        "cat/1.png",
        "cat/inner/2.png",
        "dog/3.png",
        "dog/6.png",
        "dog/x/4.png",
        "dog/x/deep/5.png",
    )
    # all, more, above, emu, back and loop
    assert counts(files) == {REPEATED_LINKS: 6, BROKEN_LINKS: 1}


def test_only_regular_files_are_opened_and_broken_links_are_named(tmp_path):
    write_pictures(tmp_path, ["cat/1.png", "dog/1.png"])
    os.mkfifo(tmp_path / "cat" / "2.png")
    os.mkfifo(tmp_path / "cat" / "no-suffix")
    (tmp_path / "dog" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    files = list_picture_files(tmp_path)
    assert files.names == ("cat/1.png", "dog/1.png")
    assert counts(files) == {NO_REGULAR_FILES: 3, BROKEN_LINKS: 1}
    assert [str(warning) for warning in files.warnings()] == [
        "1 link leads nowhere (dog/gone.png): restore what they lead to, or remove them"
    ]
    assert (
        "dog/gone.png" in open_pool_source(tmp_path).names
    )  # a pool counts it as unreadable


def test_types_are_told_by_suffix_or_by_the_first_bytes(tmp_path):
    for suffix, name in (
        (".gif", "GIF"),
        (".jfif", "JPEG"),
        (".JPG", "JPEG"),
        (".avif", "AVIF"),
        (".webp", "WEBP"),
        (".jp2", "JPEG2000"),
        ("", "PNG"),
        (".0001", "JPEG"),
    ):
        Image.new("RGB", (8, 8)).save(tmp_path / f"x{suffix}", name)
    (tmp_path / "scan").write_bytes(bytes(128) + b"DICM" + bytes(200))
    (tmp_path / "README").write_text("PNG files")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("a.txt", "b.TXT", "c.csv", "d.heic", "e.nii.gz", "f.pdf", "g.mpg"):
        (tmp_path / name).write_text("x")
    files = list_picture_files(tmp_path)
    assert sorted(files.names) == sorted(
        ["x", "x.0001", "x.JPG", "x.avif", "x.gif", "x.jfif", "x.jp2", "x.webp"]
    )
    expected = dict.fromkeys((".csv", ".dcm", ".heic", ".mpg", ".nii.gz", ".pdf"), 1)
    expected |= {".txt": 2, "without suffix": 2}
    assert counts(files) == {f"file type {name}": n for name, n in expected.items()}
    warnings = "\n".join(map(str, files.warnings()))
    for remedy in ("pydicom", "pillow-heif", "nibabel", "render"):
        assert remedy in warnings
    used = files.left_out(used=["c.csv"])
    assert "file type .csv" not in {entry.reason for entry in used}


def test_names_that_are_no_text_are_escaped_where_they_are_shown(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9\n"
    os.mkdir(folder)
    write_pictures(tmp_path, ["a.png"])
    os.rename(os.fsencode(tmp_path) + b"/a.png", folder + b"/a.png")
    with open(folder + b"/a.txt", "w"):
        pass
    files = list_picture_files(tmp_path)
    assert printable(files.folders[0]) == r"caf\udce9\n"
    assert files.left_out()[0].examples == (r"caf\udce9\n/a.txt",)
    assert len(files.identity) < 500
    assert os.path.exists(files.fetch(files.names)[0])


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_an_archive_lists_and_gives_what_its_folder_does(tmp_path, own_cache, suffix):
    folder = tmp_path / "set"
    write_pictures(folder, ["cat/1.png", "cat/__MACOSX/2.png", "dog/3.png"])
    (folder / "empty").mkdir()
    (folder / "dog" / "notes.txt").write_text("note")
    files = list_picture_files(archive_of(folder, tmp_path / f"x.{suffix}"))
    assert files.names == ("set/cat/1.png", "set/dog/3.png")
    assert files.folders == ("set", "set/cat", "set/dog", "set/empty")
    assert counts(files) == {LEFTOVERS: 1, "file type .txt": 1}
    contents = [(tmp_path / name).read_bytes() for name in files.names]
    assert files.fetch(files.names) == contents
    assert files.store.read_bytes("set/dog/notes.txt") == b"note"
    copy = pickle.loads(pickle.dumps(files))  # for a worker process
    assert copy.fetch(files.names[1:]) == contents[1:]
    del files, copy
    assert not list(own_cache.rglob("*.tar"))


def test_members_of_archives_are_never_trusted(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 9).save(buffer, "PNG")
    content = buffer.getvalue()
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:

        def add(name, kind=tarfile.REGTYPE, target=""):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))

        add("./cat/1.png")
        add("/dog/2.png")
        add("../../outside.png")
        add("cat/hard.png", tarfile.LNKTYPE, "cat/1.png")
        add("cat/soft.png", tarfile.SYMTYPE, "../dog/2.png")
        add("cat/away.png", tarfile.SYMTYPE, "/etc/passwd")
        add("cat/pipe.png", tarfile.FIFOTYPE)
    files = list_picture_files(path)
    expected = ("cat/1.png", "cat/hard.png", "cat/soft.png", "dog/2.png")
    assert files.names == expected
    assert files.fetch(files.names) == [content] * 4
    assert counts(files) == {NO_REGULAR_FILES: 1, OUTSIDE_NAMES: 1, BROKEN_LINKS: 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["cat/1.png", "./cat/1.png"])
def test_the_last_member_of_a_name_counts(tmp_path, again):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("cat/1.png", b"old")
        archive.writestr("dog/2.png", b"2")
        archive.writestr(again, b"new")
    files = list_picture_files(tmp_path / "x.zip")
    assert files.names == ("cat/1.png", "dog/2.png")
    assert files.fetch(files.names) == [b"new", b"2"]


def test_a_tar_with_holes_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        # The content stands for a file of 9 zeros, then 4 bytes.
        member = tarfile.TarInfo("cat/1.png")
        member.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": "13",
        }
        content = b"1\n9\n4\n".ljust(512, b"\0") + b"data"
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"cat/1\.png is stored with holes.*unpack it"):
        list_picture_files(path)


def test_archives_that_cannot_be_read(tmp_path, own_cache):
    def refused(path, match):
        with pytest.raises(DataError, match=match):
            list_picture_files(path)

    write_pictures(tmp_path / "set", [f"cat/{i}.png" for i in range(40)])
    for suffix in ARCHIVES:
        path = archive_of(tmp_path / "set", tmp_path / f"x.{suffix}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused(path, r"cannot read .*x\..* \(.*damaged")
    path = archive_of(tmp_path / "set", tmp_path / "secret.zip")
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2")
    content[start + 8] |= 1  # the flag of an encrypted member
    path.write_bytes(content)
    refused(path, r"secret\.zip is encrypted \(1 of its files")
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", r"neither a folder nor an archive .*\.tar\.gz")
    refused(tmp_path / "missing", "no such folder or archive")
    assert not list(own_cache.rglob("*.tar"))


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    write_pictures(tmp_path, ["cat/1.png", "dog/1.png"])
    scandir = os.scandir

    def refuse(path):  # tests may run as root, who may read everything
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read .*dog: Permission denied"):
        list_picture_files(tmp_path)
    with pytest.raises(PoolError, match=r"cannot read .*dog: Permission denied"):
        open_pool_source(tmp_path)


def test_very_deep_trees_are_read(tmp_path):
    write_pictures(tmp_path, ["1.png"])
    path = str(tmp_path)
    for _ in range(1500):  # Path.mkdir would recurse
        path += "/d"
        os.mkdir(path)
    os.rename(tmp_path / "1.png", f"{path}/1.png")
    files = list_picture_files(tmp_path)
    os.remove(f"{path}/1.png")
    os.removedirs(path)  # pytest's own removal would recurse
    assert files.names == ("d/" * 1500 + "1.png",)


def test_the_identity_changes_with_any_file(tmp_path):
    write_pictures(tmp_path, ["cat/1.png", "dog/1.png"])
    (tmp_path / "labels.csv").write_text("x")
    identities = [list_picture_files(tmp_path).identity]
    os.utime(tmp_path / "cat" / "1.png", ns=(1, 1))
    identities.append(list_picture_files(tmp_path).identity)
    (tmp_path / "labels.csv").write_text("xy")
    identities.append(list_picture_files(tmp_path).identity)
    (tmp_path / "emu").mkdir()
    identities.append(list_picture_files(tmp_path).identity)
    assert len(set(identities)) == 4
    assert list_picture_files(tmp_path).identity == identities[-1]
