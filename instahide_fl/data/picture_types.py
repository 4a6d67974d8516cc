"""Which files are pictures, which only look like it, and which no user put there."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache

HEADER_BYTES = 264  # enough to tell every kind of file that is told by its bytes

# Pillow lists them, but draws vectors, needs other programs, or reads no pixels.
_NO_PICTURE_FORMATS = frozenset(
    {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
)
_FORMATS_WITHOUT_SUFFIX = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "PPM")

_LEFTOVERS = frozenset(
    {
        "$recycle.bin",
        "#recycle",
        "#snapshot",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "recycler",
        "system volume information",
        "thumbs.db",
    }
)


@dataclass(frozen=True)
class UnreadableKind:
    """A kind of file that holds pictures, which Pillow does not read.

    Attributes:
        title: The name of the kind, for messages.
        suffixes: The suffixes of its files, in lower case.
        remedy: What to do with such files.
    """

    title: str
    suffixes: tuple[str, ...]
    remedy: str


UNREADABLE_KINDS = (
    UnreadableKind(
        "HEIF",
        (".heic", ".heif", ".hif"),
        "install pillow-heif, or convert them to JPEG or PNG",
    ),
    UnreadableKind(
        "AVIF", (".avif",), "install a Pillow with AVIF, or convert them to PNG"
    ),
    UnreadableKind(
        "DICOM",
        (".dcm", ".dicom", ".ima"),
        "convert them to 16-bit PNG or TIFF, for instance with pydicom",
    ),
    UnreadableKind(
        "NIfTI",
        (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"),
        "save their slices as TIFF, for instance with nibabel",
    ),
    UnreadableKind(
        "camera raw",
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
        "convert them to TIFF or JPEG, for instance with rawpy",
    ),
    UnreadableKind(
        "vector or document",
        (".eps", ".pdf", ".svg", ".svgz"),
        "render them to PNG",
    ),
    UnreadableKind(
        "JPEG XL or high dynamic range",
        (".exr", ".hdr", ".jxl"),
        "convert them to PNG or TIFF",
    ),
    UnreadableKind(
        "array",
        (".mat", ".npy", ".npz"),
        "save each picture as a PNG or TIFF file",
    ),
    UnreadableKind(
        "video", (".avi", ".mkv", ".mov", ".mp4"), "save frames as PNG or JPEG"
    ),
)


@lru_cache(maxsize=1)
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the files that Pillow reads as pictures.

    HEIF files are among them where pillow-heif is installed.
    """
    from PIL import Image

    register_heif()
    suffixes = Image.registered_extensions()  # loads all of Pillow's formats
    readable = {
        suffix
        for suffix, name in suffixes.items()
        if name in Image.OPEN and name not in _NO_PICTURE_FORMATS
    }
    return frozenset(readable | {".mpo"})  # JPEG's decoder reads them


def register_heif() -> None:
    """Let Pillow read HEIF files in this process, where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()


def is_leftover(name: str) -> bool:
    """Return whether a file or folder is hidden, or was left by a program.

    Args:
        name: The name without its path: `.ipynb_checkpoints`, `@eaDir`, `Thumbs.db`.
    """
    return name.startswith(".") or name.lower() in _LEFTOVERS


def file_suffix(name: str) -> str:
    """Return the suffix of a file in lower case; empty if it does not tell its type.

    Args:
        name: The name of the file, with or without its path.
    """
    # String methods, because PurePosixPath takes most of the time of a long listing.
    stem, _, ending = name.rpartition("/")[2].rpartition(".")
    ending = ending.lower()
    # Numbers after a full stop are part of a name: scanners write IM.0001.
    if not stem or not ending or ending.isdigit():
        return ""
    if ending == "gz" and (inner := file_suffix(stem)):
        return f"{inner}.gz"
    return f".{ending}"


def suffix_by_header(header: bytes) -> str:
    """Return the suffix that a file without one would have; empty if unknown.

    Args:
        header: The first `HEADER_BYTES` bytes of the file.
    """
    from PIL import Image

    readable_suffixes()
    for name in _FORMATS_WITHOUT_SUFFIX:
        if name in Image.OPEN:
            accept = Image.OPEN[name][1]
            if accept is not None and accept(header[:16]) is True:
                return f".{name.lower()}"
    if header[128:132] == b"DICM":
        return ".dcm"
    if header[4:8] == b"ftyp" and header[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        return ".heic"
    return ""


def unreadable_kind(suffix: str) -> UnreadableKind | None:
    """Return the kind of picture that a suffix stands for, if Pillow does not read it.

    Args:
        suffix: The suffix in lower case.
    """
    for kind in UNREADABLE_KINDS:
        if suffix in kind.suffixes:
            return kind
    return None
