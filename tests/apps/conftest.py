"""Images of a small federation of deployed clients."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.apps.hospital import CLASSES, CLIENTS, EACH, labels
from tests.library.pictures import write_parquet


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory, images):
    """Each client's images in folders, and all of them in one data set."""
    root = tmp_path_factory.mktemp("hospital")
    for number, name in enumerate(CLIENTS):
        own = images[number * EACH : (number + 1) * EACH]
        for row, (pixels, label) in enumerate(zip(own, labels(EACH), strict=True)):
            file = root / "clients" / name / "images" / CLASSES[label] / f"{row:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    owners = [name for name in CLIENTS for _ in range(EACH)]
    for part, pixels, classes, clients in (
        ("train", images[: len(owners)], len(CLIENTS) * labels(EACH), owners),
        ("test", images[-4:], labels(4), ["nobody"] * 4),
    ):
        path = root / "all/data" / f"{part}-00000-of-00001.parquet"
        write_parquet(path, pixels, classes, CLASSES, client=clients)
    return root
