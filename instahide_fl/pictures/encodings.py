"""A picture of encodings: the images that are mixed, the mixtures, the encodings."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from instahide_fl.encoding.encoder import MixingEncoder
from instahide_fl.files import atomic_file
from instahide_fl.types import EncodingKey, PrivateSplit


def save_encoding_picture(
    path: Path, encoder: MixingEncoder, key: EncodingKey, split: PrivateSplit
) -> None:
    """Draw some encodings, one a column, with all that went into them.

    The rows are each private image, each public one, the mixture, and the encoding.
    The last two leave [0, 1], so each is stretched to its own range.

    Args:
        path: The PNG file.
        encoder: The encoder that drew the key.
        key: The key of the encodings to draw.
        split: The private images that the key's rows refer to.

    Raises:
        OutputError: the file cannot be written.
    """
    # The key's indices are [E,k]; transposed, [k,E], they give the rows of the picture.
    private = [
        split.images[rows] / 255 for rows in split.image_rows(key.private_index).T
    ]
    public = (
        [encoder.pool.images[rows] / 255 for rows in key.public_index.T]
        if encoder.pool is not None
        else []
    )
    encoding = encoder.apply_key(key, split).images
    rows = [("private", private[0])]
    rows += [("private partner", images) for images in private[1:]]
    rows += [("public", images) for images in public]
    # Signs are their own inverse, so the encoding and its key give the mixture back.
    rows += [("mixed", _stretched(encoding * key.signs))]
    rows += [("encoding", _stretched(encoding))]
    _draw(path, rows)


def _stretched(images: Tensor) -> Tensor:
    """Return each image of f32[B,C,H,W] stretched to [0, 1]."""
    low = images.amin(dim=(1, 2, 3), keepdim=True)  # [B,1,1,1]
    high = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-6)


def _draw(path: Path, rows: list[tuple[str, Tensor]]) -> None:
    columns = len(rows[0][1])
    figure = Figure(figsize=(0.95 * columns + 1.4, 0.95 * len(rows)), dpi=120)
    cells = figure.subplots(len(rows), columns, squeeze=False)
    for line, (title, images) in zip(cells, rows, strict=True):
        for cell, image in zip(line, images, strict=True):
            # [3,H,W] -> [H,W,3]; one channel [1,H,W] -> [H,W]
            pixels = image.permute(1, 2, 0) if len(image) == 3 else image[0]
            cell.imshow(torch.clamp(pixels, 0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
            cell.set_axis_off()
        line[0].text(
            -0.15,
            0.5,
            title,
            transform=line[0].transAxes,
            ha="right",
            va="center",
            fontsize=9,
        )
    figure.subplots_adjust(
        left=1.3 / figure.get_size_inches()[0],
        bottom=0.01,
        right=0.99,
        top=0.99,
        wspace=0.06,
        hspace=0.06,
    )
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
