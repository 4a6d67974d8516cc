"""The tables `[data]`, `[partition]` and `[pool]`: which images, and whose."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from instahide_fl.config.base import Count, CountOrZero, Table

MAX_IMAGE_SIZE = 4096  # a colour image of this side has 50 MB


def _check_value_range(text: str) -> str:
    if text != "auto":
        parse_value_range(text)
    return text


def parse_value_range(text: str) -> tuple[float, float]:
    """Return the two numbers of `LOW:HIGH`.

    Raises:
        ValueError: The text is written otherwise, or not LOW < HIGH.
    """
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError('must be "auto" or LOW:HIGH with LOW < HIGH, as in -1000:3000')
    return low, high


class DataConfig(Table):
    """Which images the clients hold."""

    section = "data"

    dataset: str = "mnist-5k"
    """The data set: `mnist-5k` (5,000 digits that ship with a dependency, no network);
    `mnist`, `fashion-mnist`, `cifar10`, `cifar100` (torchvision's files, see `root` and
    `download`); `imagefolder:PATH` (a folder per class, or train/ and test/ with a
    folder per class each; an archive of such a folder, .zip or .tar; or a table of
    files and labels, .csv or .jsonl, beside the pictures); `hf:PATH-OR-NAME` (a
    Hugging Face image data set: a local folder or table file, or a name on the hub);
    `webdataset:PATH` (tar archives: one file, a folder, or a pattern such as
    `train-{0000..0009}.tar`); or `noise:NxCxHxW` (N random training images of 10
    classes, to measure speed)."""
    root: str = ""
    """Folder with the files of a torchvision data set: in torchvision's layout, or the
    four idx files of an MNIST-like set, compressed (.gz) or not. If empty, the folder
    `torchvision` in the cache."""
    download: bool = False
    """Whether a torchvision data set whose files are missing may be downloaded."""
    train_rows: str = ""
    """Training images to keep, as `START:STOP`, counted from 0 in the order of the
    files (or, where the seed divides training from test images, in the order that it
    gives them); empty keeps all. Test images are always kept, and images are always
    normalised with the mean and standard deviation of the whole training set."""
    train_part: str = ""
    """Folder, or part of a Hugging Face set, to train on; empty recognises it by name
    (train, training, in any case and with a prefix or suffix). Of picture folders, "."
    takes the whole folder, whose folders are then classes."""
    test_part: str = ""
    """Folder, or part of a Hugging Face set, to test on; empty recognises it by name
    (test, testing, or else val, valid, validation, dev, eval)."""
    image_column: str = ""
    """Column with the pictures, where a data set has columns; empty takes the only
    one, or the one with a usual name (image, img, picture, pixel_values...)."""
    label_column: str = ""
    """Column with the classes, where a data set has columns; empty takes the only one,
    or the one with a usual name (label, labels, fine_label, class, target...)."""
    config: str = ""
    """Configuration of a Hugging Face set that has several; empty takes the only
    one, or the one called default."""
    client_column: str = ""
    """Column that names the owner of each image (a writer, a patient), where a data set
    has columns, for partition.scheme natural-id."""
    image_size: Annotated[int, Field(ge=0, le=MAX_IMAGE_SIZE)] = 0
    """Side in pixels that images are resized to when loaded, at most 4096; 0 keeps
    their own size."""
    channels: Literal["auto", 1, 3] = "auto"
    """Channels of the decoded images: 1 (grey) or 3 (colour). `auto`: 3 if any picture
    of any part is coloured."""
    value_range: Annotated[str, AfterValidator(_check_value_range)] = "auto"
    """Stored pixel values that become 0 and 255, as `LOW:HIGH`, for pictures deeper
    than 8 bits (medical, depth, float); values outside are clipped. `auto`: 8-bit
    pictures as they are, others by the range of the whole data set. A deployment with
    deeper pictures needs LOW:HIGH, because every client must map alike."""
    drop_duplicates: bool = False
    """Whether to drop training images whose pixels equal those of a test image or of
    an earlier training image. Otherwise they are counted in the data report."""
    validation_share: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Share of the training images that no client receives, drawn from every class. The
    server evaluates on them as it does on test images, so that settings can be chosen
    without looking at those. 0 holds out none. In a deployment it concerns the server's
    own data set; clients keep all of their images."""
    augment: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    """Augmentation of private images before mixing. `crop`: a random crop after padding
    by an eighth of the side. `crop-flip`: the crop, and mirroring of half of the
    images. `auto`: crop-flip for colour images, none for grey ones."""


class PartitionConfig(Table):
    """How the training images are divided among clients."""

    section = "partition"

    scheme: Literal[
        "iid",
        "dirichlet",
        "inner-dirichlet",
        "shards",
        "classes",
        "linear",
        "square",
        "exponential",
        "natural-id",
    ] = "iid"
    """How images are assigned to clients. `iid`: equal random shares. `dirichlet`: each
    class is divided over the clients by a draw from Dirichlet(alpha) (Yurochkin et al.
    2019; NIID-Bench), so the sizes of clients differ. `inner-dirichlet`: each client
    draws the proportions of its classes from Dirichlet(alpha) (Hsu et al. 2019), all of
    the same size. `shards`: images are sorted by class and cut into shards, and each
    client receives some of them (McMahan et al. 2017). `classes`: each client holds a
    fixed number of classes. `linear`, `square`, `exponential`: sizes differ, client i
    holds a share that grows with i, i squared or e to the i. `natural-id`: each client
    holds the images of one owner, named by data.client-column."""
    num_clients: CountOrZero = 10
    """Number of clients in the federation. 0 (only under `flwr run`) takes the number
    of SuperNodes."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """Concentration of the Dirichlet draws (schemes dirichlet and inner-dirichlet);
    smaller is more uneven."""
    shards_per_client: Count = 2
    """Number of shards that each client receives (scheme shards)."""
    classes_per_client: Count = 2
    """Number of classes that each client holds (scheme classes)."""
    min_size: Count = 10
    """Smallest number of images that a client may receive, in every scheme but iid."""


class PoolConfig(Table):
    """The public images that cross-dataset mixing draws from."""

    section = "pool"

    source: str = "photos"
    """The pool: `photos` (patches of photographs that ship with dependencies), or the
    folder of a pool that `instahide-fl pool build` made."""
