"""Reads where the members of a tar archive lie, and notices a damaged archive."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from instahide_fl.terminal import printable

BLOCK_BYTES = 2**20


def read_tar_headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a plain archive's members, in bounded memory.

    Args:
        path: The archive, without compression.

    Raises:
        tarfile.TarError: The file is no archive, or a member is stored with holes, so
            that its bytes do not follow one another.
        EOFError: It ends too early, or a header in it is damaged.
        OSError: It cannot be read.
    """
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            if member.issparse():
                raise tarfile.ReadError(
                    f"{printable(member.name)} is stored with holes, pack it without "
                    f"--sparse"
                )
            yield member
            # Otherwise it keeps a kilobyte for each, which a million pictures notice.
            archive.members = []  # type: ignore[attr-defined]
        # tarfile takes a damaged header, a file cut between members, or the end of the
        # first of several archives that were joined, for the end of all.
        file.seek(archive.offset)
        end = file.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE:
            raise EOFError("the archive ends too early")
        if end.count(0) < len(end):
            raise EOFError(f"a damaged header at byte {archive.offset}")
        while block := file.read(BLOCK_BYTES):
            if block.count(0) < len(block):
                raise EOFError(
                    "the archive goes on after its end, as if several were joined"
                )
