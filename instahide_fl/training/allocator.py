"""How this process's memory is handed out."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), and the largest threshold that glibc accepts.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
MAX_MMAP_THRESHOLD = 32 * 2**20
MAX_FREE_BYTES = 512 * 2**20


def keep_freed_memory() -> None:
    """Let the process keep memory that was freed, up to 512 MiB, to use it again.

    As it is, glibc gives activations and gradients of a few megabytes back to the
    system after each step, which hands them out again filled with zeros, page by page:
    in small batches that takes as long as a tenth of the step. No result changes. Does
    nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, MAX_FREE_BYTES)
