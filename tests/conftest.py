from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pytest
import torch

from instahide_fl import cli
from instahide_fl.data.pool import MixingPool
from instahide_fl.types import PrivateSplit

# Two tests at a time share two cores, images are small, and processes that tests start
# (as all of ours) need no second thread either: threads would wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A shell starts what it puts in the background with Ctrl-C ignored, and every process
# that a test starts would inherit that, deaf to the Ctrl-C that the test sends.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def split(rng):
    images = rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
    targets = rng.integers(0, 5, 20)
    return PrivateSplit(torch.from_numpy(images), torch.from_numpy(targets), 5)


@pytest.fixture
def pool(rng):
    images = rng.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    return MixingPool.from_images(torch.from_numpy(images))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The command line as a user types it: exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["instahide-fl", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        signal.signal(signal.SIGINT, handler)
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture
def data_folder(tmp_path):
    """An empty folder for a data set, with nothing else of the test in it."""
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of this test's own, which nobody has filled."""
    monkeypatch.setenv("INSTAHIDE_FL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path / "cache"
