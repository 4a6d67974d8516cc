"""Tables of settings: data, encoding, what is recorded, resources, output.

`training_tables` has model, training and server. The same names serve three places:
TOML tables (`[instahide] num-mixed = 4`), the command line
(`--set instahide.num-mixed=4`) and Flower's flat run config
(`-c 'instahide.num-mixed=4'`).
"""

from __future__ import annotations

import math
import os
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from instahide_fl.config.table import Count, CountOrZero, Table


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


class EncoderConfig(Table):
    """How images are encoded (Huang et al., ICML 2020, arXiv:2010.02772)."""

    section = "instahide"

    method: Literal["none", "mixup", "instahide"] = "instahide"
    """`instahide` mixes and flips signs, `mixup` only mixes, `none` does neither."""
    scope: Literal["inside", "cross"] = "cross"
    """`inside` mixes private images only; `cross` adds images of the public pool."""
    num_mixed: Count = 4
    """k: images in one encoding."""
    num_private: Count | Literal["auto"] = "auto"
    """Private images among the k. `auto`: 2 in cross, all k in inside."""
    max_coefficient: Annotated[float, Field(gt=0, le=1)] = 0.65
    """c1: bound on every coefficient. It does not apply to k = 1."""
    min_private_weight: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """c2: least sum of the private coefficients (cross)."""
    coefficient_law: Literal["abs-normal", "dirichlet"] = "abs-normal"
    """`abs-normal`: |N(0,1)| divided by their sum, as the authors' code draws them.
    `dirichlet`: Dirichlet(3, 1, ..., 1), as GradAttack draws them."""
    refresh: Literal["epoch"] | Count = "epoch"
    """`epoch` draws fresh keys every time an image is used; a number T reuses T fixed
    encodings of each image."""
    keys: Literal["seeded", "secure"] = "seeded"
    """In a simulation: `seeded` keys and batches repeat with the run's seed, and
    whoever finds the seed has them all; `secure` ones come from the operating system,
    and no run repeats. Those of real clients are always secure."""
    max_exposures: CountOrZero = 0
    """Distinct encodings that a private image may take part in, over all rounds and as
    partner of others too; 0 for no limit. See `exposure_action`."""
    exposure_action: Literal["warn", "stop"] = "warn"
    """What follows when an image reaches `max_exposures`: `warn` reports how many are
    beyond it; `stop` leaves the image out from the next round on, and a client that
    has too few left takes no further part."""

    @field_validator("refresh", mode="before")
    @classmethod
    def _number_in_text(cls, value: object) -> object:
        # A Flower run config that lists the default "epoch" hands numbers on as text.
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.private_count > self.num_mixed:
            raise ValueError(
                f"num-private must be in 1..{self.num_mixed} (num-mixed), got "
                f"{self.num_private}"
            )
        if self.scope == "inside" and self.private_count != self.num_mixed:
            raise ValueError(
                f"scope inside mixes private images only, so num-private must equal "
                f"num-mixed ({self.num_mixed}), got {self.num_private}: set "
                f'num-private = "auto" or scope = "cross"'
            )
        if (
            self.max_exposures
            and self.exposure_action == "stop"
            and (self.refresh != "epoch")
        ):
            raise ValueError(
                f'exposure-action = "stop" leaves images out of fresh encodings, and '
                f"refresh = {self.refresh} makes no more of them: set refresh = "
                f'"epoch" or exposure-action = "warn"'
            )
        if self.method != "none":
            _check_feasible(
                self.num_mixed,
                self.private_count,
                self.max_coefficient,
                self.min_private_weight,
            )
        return self

    @property
    def private_count(self) -> int:
        """Private images in one encoding: p."""
        if self.num_private != "auto":
            return self.num_private
        return self.num_mixed if self.scope == "inside" else min(2, self.num_mixed)

    @property
    def public_count(self) -> int:
        """Images of the pool in one encoding: k - p."""
        return self.num_mixed - self.private_count

    @property
    def uses_pool(self) -> bool:
        """Whether encodings contain public images."""
        return self.method != "none" and self.public_count > 0


def _check_feasible(
    mixed: int, private: int, max_coefficient: float, min_private_weight: float
) -> None:
    if mixed == 1:
        return
    if max_coefficient * mixed <= 1:
        raise ValueError(
            f"max-coefficient (c1) must exceed 1/num-mixed = {1 / mixed:.4g}, got "
            f"{max_coefficient}: {mixed} coefficients that sum to 1 cannot all stay "
            f"below it"
        )
    reachable = 1.0 if private == mixed else min(1.0, private * max_coefficient)
    if private < mixed and min_private_weight >= reachable:
        raise ValueError(
            f"min-private-weight (c2) must be below {reachable:.4g}, the most that "
            f"{private} private coefficients of at most {max_coefficient} "
            f"(max-coefficient) can sum to, got {min_private_weight}"
        )


class RecordConfig(Table):
    """What is kept of a run for attacks on it (`instahide-fl attack`)."""

    section = "record"

    rounds: str = ""
    """Rounds whose transcript the server keeps, the parameters sent and every update as
    received: "1, 5-10", or `all`; empty keeps none."""
    truth: bool = False
    """Simulation only: clients write the images, encodings and keys of those rounds
    into the run's `truth/`, so that attacks can be scored. A real client refuses."""
    crafted: Literal["none", "imprint"] = "none"
    """Simulation only: in those rounds the server sends crafted parameters instead of
    the global ones, and drops what comes back. `imprint` (Fowl et al., ICLR 2022): a
    first layer that makes clients send single images."""

    @field_validator("rounds", mode="before")
    @classmethod
    def _one_round(cls, value: object) -> object:
        return str(value) if type(value) is int else value

    @field_validator("rounds", mode="after")
    @classmethod
    def _rounds_in_text(cls, value: str) -> str:
        parse_rounds(value)
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if not self.rounds.strip() and (self.truth or self.crafted != "none"):
            name = "truth" if self.truth else "crafted"
            raise ValueError(f'{name} needs rounds to record: set rounds = "1"')
        return self

    def wants(self, round_number: int) -> bool:
        """Tell whether a round (1, 2, ...) is recorded."""
        ranges = parse_rounds(self.rounds)
        return any(first <= round_number <= last for first, last in ranges)


def parse_rounds(text: str) -> list[tuple[int, float]]:
    """Return the ranges in a text such as "1, 5-10"; `all` is everything.

    Raises:
        ValueError: the text is something else.
    """
    if text.strip() == "all":
        return [(1, math.inf)]
    ranges: list[tuple[int, float]] = []
    for part in text.replace(",", " ").split():
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(one.isdecimal() and int(one) > 0 for one in ends) or (
            int(ends[0]) > int(ends[1])
        ):
            raise ValueError('rounds and ranges of rounds, for instance "1, 5-10"')
        ranges.append((int(ends[0]), int(ends[1])))
    return ranges


class ResourcesConfig(Table):
    """What a simulation may use of the machine, or of a Ray cluster."""

    section = "resources"

    workers: CountOrZero = 0
    """Processes that run clients side by side; 0 takes as many as fit."""
    cpus_per_client: Count = 1
    """CPUs reserved for a running client, that is for a worker."""
    gpus_per_client: Annotated[float, Field(ge=0)] = 0.0
    """GPU share reserved for a running client; 0 trains on the CPU."""
    ray_address: str = ""
    """HOST:PORT of a Ray cluster to use (engine ray), or `auto` for the one that runs
    on this machine; empty starts a private one."""

    @field_validator("ray_address")
    @classmethod
    def _no_ray_client(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                "must be HOST:PORT of a node of the cluster this machine belongs to, "
                "or auto; an address with :// is for Ray's remote client"
            )
        return value

    @property
    def local_workers(self) -> int:
        """Workers on this machine's CPUs alone."""
        return self.workers or max(1, (os.cpu_count() or 1) // self.cpus_per_client)


class OutputConfig(Table):
    """Where the server writes; no part of an experiment, and not in its config.toml."""

    section = "output"

    folder: str = ""
    """The run folder; empty: `runs/<name>` below the server's working directory."""
    resume: bool = False
    """Continue from the checkpoint in the folder."""
    tensorboard: bool = False
    """Write event files into the run folder, for `tensorboard --logdir runs`."""
    mlflow: str = ""
    """Log to MLflow: the file of a database (`mlflow.db`) or the address of a tracking
    server (`http://HOST:PORT`); empty for none."""

    @field_validator("mlflow")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if "://" in value and "@" in value:
            raise ValueError(
                "must hold no password, because it is written into run folders: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return value
