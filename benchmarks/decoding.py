"""Reading photographs: this library against torchvision's ImageFolder and DataLoader.

`python -m benchmarks.decoding FOLDER` takes a folder with a folder per class. Without
one it cuts pictures of ImageNet's usual size from photographs that scikit-image and
scikit-learn ship. Both list the folder, decode every picture, cut it to its middle
square and resize that to 64x64; ours also looks at every header first, to decide about
channels and value range for all pictures alike.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms  # type: ignore[import-untyped]
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

from benchmarks.pool import write_pictures
from benchmarks.reporting import alternate, run_and_save
from instahide_fl.config import DataConfig
from instahide_fl.data.picture_decoding import decode_part
from instahide_fl.data.picture_survey import survey_pictures
from instahide_fl.data.sources.find import find_source

IMAGE_SIZE = 64
BATCH_IMAGES = 128


def run(folder: Path | None = None, repeats: int = 3) -> dict[str, Any]:
    """Time both in turn.

    Args:
        folder: A folder with a folder per class; None makes pictures.
        repeats: Number of timed readings.
    """
    with tempfile.TemporaryDirectory() as name:
        source = folder or _two_classes(Path(name))
        images = len(ImageFolder(source))
        workers = os.cpu_count() or 1
        variants = {
            "torchvision, one process": partial(_read_torchvision, source, 0),
            f"torchvision, {workers} workers": partial(
                _read_torchvision, source, workers
            ),
            "instahide-fl": partial(_read, source),
        }
        seconds = alternate(variants, repeats)
    fastest = min(seconds[name] for name in variants if "torchvision" in name)
    rows = [
        {
            "reader": name,
            "images": images,
            "images_per_second": images / seconds[name],
            "ratio": fastest / seconds[name],
        }
        for name in variants
    ]
    return {"name": "decoding", "rows": rows}


def _two_classes(work: Path) -> Path:
    source = work / "pictures"
    for name in ("a", "b"):
        (source / name).mkdir(parents=True)
    for number, path in enumerate(sorted(write_pictures(work / "all").iterdir())):
        path.rename(source / "ab"[number % 2] / path.name)
    return source


def _read(source: Path) -> None:
    config = DataConfig(dataset=f"imagefolder:{source}", image_size=IMAGE_SIZE)
    parts = list(find_source(config).read().parts.values())
    pixel_format, _ = survey_pictures(parts, config)
    for part in parts:
        for _ in decode_part(part, pixel_format):
            pass


def _read_torchvision(source: Path, workers: int) -> None:
    transform = transforms.Compose(
        [_middle_square, transforms.Resize(IMAGE_SIZE), transforms.PILToTensor()]
    )
    dataset = ImageFolder(source, transform)
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset, BATCH_IMAGES, num_workers=workers
    )
    for _ in loader:
        pass


def _middle_square(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    x, y = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((x, y, x + side, y + side))


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    run_and_save(partial(run, chosen))
