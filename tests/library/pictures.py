"""Pictures and data sets written for tests."""

from __future__ import annotations

import numpy as np
from PIL import Image


def write_pictures(folder, names, mode="RGB", size=(8, 8)):
    """Save a picture of one colour of its own for each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, number).convert(mode).save(path)


def write_parquet(path, pixels, labels, classes, image_column="image", **words):
    """Save images in a file as on the Hugging Face hub, with columns of words."""
    import datasets  # takes seconds: only where it is needed

    features = {
        image_column: datasets.Image(),
        "label": datasets.ClassLabel(names=list(classes)),
        **{name: datasets.Value("string") for name in words},
    }
    rows = {image_column: list(map(Image.fromarray, pixels)), "label": labels, **words}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)


def write_hugging_face_folder(
    folder, count=12, size=(8, 8), mode="RGB", classes=("cat", "dog"), **words
):
    """Save a data set in the layout of the hub; returns the pixels of its images."""
    rng = np.random.default_rng(0)
    shape = (*size, 3) if mode == "RGB" else size
    pixels = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = [i % len(classes) for i in range(count)]
    for part in ("train", "test"):
        path = folder / "data" / f"{part}-00000-of-00001.parquet"
        write_parquet(path, pixels, labels, classes, image_column="img", **words)
    return pixels


def write_noise_pictures(folder, count, start=0):
    """Save pictures of noise, numbered from `start` on; a number has its own pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
