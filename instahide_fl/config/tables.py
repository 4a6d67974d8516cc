"""The tables of settings: type, range, default and meaning of every one.

The same names serve three places: TOML tables (`[instahide] num-mixed = 4`), the
command line (`--set instahide.num-mixed=4`) and Flower's flat run config
(`-c 'instahide.num-mixed=4'`).
"""

from __future__ import annotations

import math
import os
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from instahide_fl.config.table import Table

Count: TypeAlias = Annotated[int, Field(ge=1)]
CountOrZero: TypeAlias = Annotated[int, Field(ge=0)]


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


class ModelConfig(Table):
    """The network that is trained."""

    section = "model"

    name: Literal[
        "small-cnn",
        "lenet",
        "cnn-dropout",
        "resnet-18",
        "resnet-50",
        "preact-resnet-18",
        "densenet-121",
    ] = "small-cnn"
    """`small-cnn`: two 3x3 convolutions with pooling, two linear layers. `lenet`:
    LeNet-5. `cnn-dropout`: the network of federated benchmarks, 1.6 million parameters
    on CIFAR-10. `resnet-18` (11.2 million), `resnet-50` (23.5 million) and
    `densenet-121` (7.0 million), torchvision's, with the stem for small images below
    64 pixels. `preact-resnet-18`: the one that InstaHide's authors trained."""
    width: Count = 16
    """Channels of the first convolution of small-cnn; the second has twice as many."""
    normalization: Literal["none", "group", "batch", "local-batch"] = "none"
    """Normalisation of the network. `group`: GroupNorm. `batch`: BatchNorm, whose
    running statistics (of encodings) clients send and the server averages.
    `local-batch`: BatchNorm by the statistics of the batch at hand, in training and in
    evaluation; none are kept, none are sent. `lenet` and `cnn-dropout` have none."""
    initial_weights: str = ""
    """A run folder or a .safetensors file to start from; empty starts at random. The
    last layer may have another number of classes there: it then starts at random."""


class TrainConfig(Table):
    """Rounds, and what a client does in one."""

    section = "train"

    rounds: Count = 300
    """Rounds of federated training."""
    clients_per_round: CountOrZero = 0
    """Size of a round's cohort; 0 takes every client."""
    mode: Literal["gradient", "update"] = "gradient"
    """`gradient` (FedSGD): a client sends the gradient of its loss. `update` (FedAvg):
    it trains locally and sends the difference of its parameters."""
    batch_size: Count = 64
    """Images in one local batch."""
    local_batches: Count = 1
    """Batches that a gradient is averaged over (mode gradient)."""
    local_epochs: CountOrZero = 1
    """Passes over the client's images in a round (mode update). 0 trains nothing, to
    measure an engine without its clients' work."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Of the client's SGD (mode update)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the client's SGD (mode update)."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """How the learning rate of whoever takes gradient steps (the server in mode
    gradient, the clients in mode update) falls over the rounds. `step`: times
    decay-factor after each of the milestones. `cosine`: to 0 at the end."""
    milestones: str = ""
    """Rounds after which `step` lowers the rate, for instance "100, 150"."""
    decay_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What `step` multiplies the rate with."""
    warmup_rounds: CountOrZero = 0
    """First rounds in which the rate rises linearly to its value."""
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    """FedProx (Li et al., MLSys 2020): weight of the proximal term mu/2 |w - w0|^2 in
    a client's loss (mode update); 0 leaves it out."""
    control_variates: bool = False
    """SCAFFOLD (Karimireddy et al., ICML 2020): correct clients' steps by control
    variates, which double what is sent (mode update, momentum 0)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: forward and backward pass in mixed precision; parameters and updates
    stay float32."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty on the parameters, added to the gradient by whoever steps: the server
    in mode gradient, the client in mode update."""
    min_updates: CountOrZero = 0
    """Fewest valid updates for a round to count; fewer end the run with an error. 0:
    every client of the cohort must answer."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds the server waits for a round's updates. Engine ray, whose clients take
    turns: seconds that one client may take."""
    evaluate_every: Count = 5
    """Rounds between two evaluations; the last round is always evaluated."""
    checkpoint_every: Count = 10
    """Rounds between two checkpoints."""

    @field_validator("milestones", mode="after")
    @classmethod
    def _rounds_in_text(cls, value: str) -> str:
        rounds = value.replace(",", " ").split()
        if not all(one.isdecimal() and int(one) > 0 for one in rounds):
            raise ValueError('rounds separated by commas, for instance "100, 150"')
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.mode == "gradient" and (self.proximal_mu or self.control_variates):
            name = "control-variates" if self.control_variates else "proximal-mu"
            raise ValueError(
                f"{name} corrects local steps, of which mode gradient has none: set "
                f'mode = "update"'
            )
        if self.control_variates and self.momentum:
            raise ValueError(
                f"control-variates are defined for plain SGD: set momentum = 0, got "
                f"{self.momentum}"
            )
        if (self.schedule == "step") != bool(self.milestones.strip()):
            raise ValueError(
                f'milestones and schedule = "step" need each other, got schedule = '
                f'"{self.schedule}" and milestones = "{self.milestones}"'
            )
        return self

    def learning_rate_factor(self, round_number: int) -> float:
        """Return what the schedule multiplies the learning rate with in a round.

        Args:
            round_number: 1, 2, ..., `rounds`.
        """
        if round_number <= self.warmup_rounds:
            return round_number / (self.warmup_rounds + 1)
        if self.schedule == "cosine":
            whole = max(1, self.rounds - self.warmup_rounds)
            done = round_number - self.warmup_rounds - 1
            return 0.5 * (1 + math.cos(math.pi * done / whole))
        if self.schedule == "step":
            passed = self.milestones.replace(",", " ").split()
            drops = sum(round_number > int(one) for one in passed)
            return float(self.decay_factor**drops)
        return 1.0

    @property
    def update_kind(self) -> Literal["gradient", "delta"]:
        """What a client sends in this mode."""
        return "gradient" if self.mode == "gradient" else "delta"


class ServerConfig(Table):
    """What the server does with a round's updates."""

    section = "server"

    aggregation: Literal["weighted-mean", "mean", "median", "trimmed-mean", "krum"] = (
        "weighted-mean"
    )
    """`weighted-mean` weighs a client by its images, `mean` weighs all alike. Robust
    rules: `median` and `trimmed-mean` of every coordinate (Yin et al., ICML 2018),
    `krum` takes the one update closest to the others (Blanchard et al., NeurIPS
    2017)."""
    trim_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the values that trimmed-mean drops at each end."""
    malicious_clients: CountOrZero = 0
    """Bad updates in a round that krum must withstand; a cohort of at least three more
    than twice as many is needed."""
    optimizer: Literal["sgd", "adam", "yogi", "adagrad"] = "sgd"
    """Optimizer that applies the aggregate to the global parameters. In mode update:
    sgd with momentum is FedAvgM (Hsu et al. 2019), adam, yogi and adagrad are FedAdam,
    FedYogi and FedAdagrad (Reddi et al., ICLR 2021)."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """`auto`: for sgd 0.1 in mode gradient and 1.0 in mode update; for adam and yogi
    0.001 and 0.01; for adagrad 0.01 and 0.1."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Of sgd. `auto`: 0.9 in mode gradient, 0 in mode update."""
    epsilon: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Added to the denominator of adam, yogi and adagrad (tau of Reddi et al.).
    `auto`: 1e-8 in mode gradient, 1e-3 in mode update."""


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
    """Where the server writes; set by `instahide-fl run`, no part of an experiment."""

    section = "output"

    folder: str = ""
    """The run folder; empty: `runs/<name>` below the server's working directory."""
    resume: bool = False
    """Continue from the checkpoint in the folder."""
