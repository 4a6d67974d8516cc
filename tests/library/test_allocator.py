from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

# Prints how many pages the system hands out while the same memory is used again.
PROGRAM = """
import resource, sys
from instahide_fl.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def fill():
    return len([b"x" * (5 * 2**20) for _ in range(8)])
fill(), fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_the_systems_help():
    pages = {
        mode: int(subprocess.check_output([sys.executable, "-c", PROGRAM, mode]))
        for mode in ("keep", "as it is")
    }
    # Few where the system hands out huge pages, but more than none.
    assert pages["keep"] < pages["as it is"]
    assert pages["keep"] < 8 * 5 * 2**20 / resource.getpagesize() / 10
