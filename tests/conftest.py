from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide_fl.data.pool import MixingPool
from instahide_fl.types import PrivateSplit


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
