"""The tables `[data]`, `[partition]` and `[pool]`: which images, and whose."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from instahide_fl.config.base import Count, CountOrZero, Table


class DataConfig(Table):
    """Which images the clients hold."""

    section = "data"

    dataset: str = "mnist-5k"
    """`mnist-5k` (ships with a dependency, no network); `mnist`, `fashion-mnist`,
    `cifar10`, `cifar100` (torchvision's files, see `root` and `download`);
    `imagefolder:PATH` (a folder per class, or train/ and test/ with a folder per class
    each); `hf:PATH-OR-NAME` (a Hugging Face image data set: a local folder, or a name
    on the hub); or `noise:NxCxHxW` (N random training images of 10 classes, to measure
    speed)."""
    root: str = ""
    """Folder with the files of a torchvision data set, in torchvision's layout, or the
    four idx files of an MNIST-like set, packed (.gz) or not; empty takes `torchvision`
    in the cache folder."""
    download: bool = False
    """Whether a torchvision data set whose files are missing may be downloaded."""
    train_rows: str = ""
    """`START:STOP` keeps only these training images, counted from 0 in the order of
    the files (or, where the seed divides training from test images, in the order it
    gives them); empty keeps all. Test images always stay, and so do the constants that
    images are normalised with: mean and spread of the whole training set."""
    client_column: str = ""
    """Column of an `hf:` data set that names whose image each one is (a writer, a
    patient), for partition.scheme natural-id."""
    image_size: CountOrZero = 0
    """Side in pixels that images are resized to on load; 0 keeps their own size."""
    augment: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    """Augmentation of private images before mixing: random crop after padding by an
    eighth of the side, and mirroring. `auto`: crop-flip for colour, none for grey."""


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
    """`iid`: equal random shares. `dirichlet`: by class over clients, each class is
    divided over the clients by a draw from Dirichlet(alpha) (Yurochkin et al. 2019;
    NIID-Bench; sizes differ). `inner-dirichlet`: by client over classes, each client
    draws its class proportions from Dirichlet(alpha) (Hsu et al. 2019; equal sizes).
    `shards`: images sorted by class, cut into shards, some for each client (McMahan et
    al. 2017). `classes`: each client holds a fixed number of classes. `linear`,
    `square`, `exponential`: quantity skew, client i holds a share that grows with i,
    i squared or e to the i. `natural-id`: by data.client-column."""
    num_clients: CountOrZero = 10
    """Clients in the federation. 0 (only under `flwr run`) takes the number of
    SuperNodes."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """Concentration of the Dirichlet draws; smaller is more uneven."""
    shards_per_client: Count = 2
    """Shards that a client receives (scheme shards)."""
    classes_per_client: Count = 2
    """Classes that a client holds (scheme classes)."""
    min_size: Count = 10
    """Fewest images a client may receive, in every scheme but iid."""


class PoolConfig(Table):
    """The public images that cross-dataset mixing draws from."""

    section = "pool"

    source: str = "photos"
    """`photos` (patches of photographs that ship with dependencies) or the folder of a
    built pool."""
