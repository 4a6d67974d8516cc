"""Pictures written for tests."""

from __future__ import annotations

from PIL import Image


def write_pictures(folder, names, mode="RGB", size=(8, 8)):
    """Save a picture of one colour of its own for each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, number).convert(mode).save(path)
