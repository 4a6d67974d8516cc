from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

# Prints how many pages the system handed out while memory was used a second time.
PROGRAM = """
import resource, sys
import torch
if sys.argv[1] == "keep":
    from instahide_fl.training.allocator import keep_freed_memory
    keep_freed_memory()
def fill():
    # 80 MiB: glibc as it is keeps at most twice its largest block, here 40.
    return len([torch.ones(5 * 2**20) for _ in range(4)])
fill()
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
    size = 80 * 2**20 // resource.getpagesize()
    assert pages["keep"] < size / 10 < size / 2 < pages["as it is"]
