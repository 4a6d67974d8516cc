"""The tables `[model]`, `[train]`, `[server]` and `[secure-aggregation]`."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from instahide_fl.config.base import Count, CountOrZero, Table


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
        "resnet-9",
        "densenet-121",
        "mlp",
        "strided-cnn",
        "strided-lenet",
    ] = "small-cnn"
    """The network. `small-cnn`: two 3x3 convolutions with pooling, two linear layers.
    `lenet`: LeNet-5. `cnn-dropout`: the network of federated benchmarks, 1.6 million
    parameters on CIFAR-10. `resnet-18` (11.2 million), `resnet-50` (23.5 million) and
    `densenet-121` (7.0 million), torchvision's, with the stem for small images below 64
    pixels. `preact-resnet-18`: the one that InstaHide's authors trained. `resnet-9`:
    eight convolutions with two residual connections, for images of 32 pixels on CPUs.
    `mlp` (one hidden layer), `strided-cnn` (three 3x3 convolutions of stride 2) and
    `strided-lenet` (of Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019, there
    with activation sigmoid) are what attacks on gradients are measured on."""
    width: Count = 16
    """Number of channels of the first convolution of small-cnn, strided-cnn and
    resnet-9. Each later one has twice as many (in resnet-9 up to 8 times as many); mlp
    has 32 hidden units for each. resnet-9 is usually given 32 or 64."""
    activation: Literal["relu", "sigmoid", "softplus"] = "relu"
    """Activation function of small-cnn, lenet, mlp, strided-cnn and strided-lenet.
    Attacks that match gradients work best on smooth ones."""
    normalization: Literal["none", "group", "batch", "local-batch"] = "none"
    """Normalisation layers of the network. `group`: GroupNorm. `batch`: BatchNorm,
    whose running statistics (of encodings) clients send and the server averages.
    `local-batch`: BatchNorm by the statistics of the batch at hand, in training and in
    evaluation; no statistics are kept or sent. `lenet`, `cnn-dropout`, `mlp` and
    `strided-lenet` have no such layers."""
    sign_invariant: Literal["auto"] | bool = "auto"
    """Whether the network sees the absolute values of an image only, standardised in
    each image, in training and in evaluation. InstaHide's random signs tell nothing
    about an image, and a network need not learn to look past them. `auto`: true where
    instahide.method is instahide. `false` is the paper's network."""
    initial_weights: str = ""
    """Run folder or .safetensors file with the weights to start from; empty starts from
    random ones. A last layer for another number of classes starts from random weights
    too."""

    @field_validator("sign_invariant", mode="before")
    @classmethod
    def _boolean_in_text(cls, value: object) -> object:
        # A Flower run config that lists "auto" as the default hands values on as text.
        texts = {"true": True, "false": False}
        return texts.get(value, value) if isinstance(value, str) else value


class TrainConfig(Table):
    """The rounds of training, and what a client does in one."""

    section = "train"

    rounds: Count = 300
    """Number of rounds of federated training."""
    clients_per_round: CountOrZero = 0
    """Number of clients in a round's cohort; 0 takes every client."""
    mode: Literal["gradient", "update"] = "gradient"
    """What a client sends. `gradient` (FedSGD): the gradient of its loss. `update`
    (FedAvg): the change of its parameters after local training."""
    batch_size: Count = 64
    """Number of images in one local batch."""
    local_batches: Count = 1
    """Number of batches that a gradient is averaged over (mode gradient)."""
    local_epochs: CountOrZero = 1
    """Number of passes over the client's images in a round (mode update). 0 trains
    nothing, to measure an engine without its clients' work."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Optimizer of the client's local steps (mode update); its moments start anew in
    each round. `adamw`: Adam with decoupled weight decay (Loshchilov and Hutter, ICLR
    2019)."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate of the client's optimizer (mode update); Adam needs a smaller one
    than SGD, such as 0.001."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the client's SGD (mode update)."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest L2 norm of the gradient of a step, over all parameters; a larger one is
    scaled down. It acts where gradient steps are taken: on each local step in mode
    update, on the aggregate in mode gradient. 0 leaves gradients as they are. This
    steadies training and protects nothing: defense.clip-norm bounds what is sent."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """How the learning rate of whoever takes gradient steps (the server in mode
    gradient, the clients in mode update) falls over the rounds. `step`: it is
    multiplied with decay-factor after each of the milestones. `cosine`: it falls to 0
    at the end."""
    milestones: str = ""
    """Rounds after which the schedule `step` lowers the learning rate, for instance
    "100, 150"."""
    decay_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor that the schedule `step` multiplies the learning rate with."""
    warmup_rounds: CountOrZero = 0
    """Number of first rounds in which the learning rate rises linearly to its value."""
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    """Weight mu of FedProx's proximal term mu/2 |w - w0|^2 in a client's loss (Li et
    al., MLSys 2020; mode update); 0 leaves it out."""
    control_variates: bool = False
    """Whether SCAFFOLD's control variates correct clients' steps (Karimireddy et al.,
    ICML 2020; mode update, momentum 0). They double what is sent."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of training. `bfloat16`: forward and backward pass in mixed
    precision; parameters and updates stay float32."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an L2 penalty on the parameters, which whoever takes gradient steps
    adds to the gradient: the server in mode gradient, the client in mode update. With
    adamw it is decoupled from the gradient: a step shrinks the parameters by this times
    the learning rate."""
    min_updates: CountOrZero = 0
    """Number of valid updates that a round needs; with fewer, the run ends with an
    error. 0: every client of the cohort must answer."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that the server waits for a round's updates; with engine ray, whose
    clients take turns, seconds that one client may take."""
    evaluate_every: Count = 5
    """Number of rounds from one evaluation to the next; the last round is always
    evaluated."""
    evaluate_encodings: CountOrZero = 0
    """K, the number of encodings of each test image whose average prediction every
    evaluation tests too, beside the clean image; 0 tests clean images only. It costs K
    times as much. Runs whose instahide.method is none have no encodings."""
    chance_check: CountOrZero = 100
    """Number of rounds after which the next evaluation warns if the network is still at
    chance: if accuracy on clean test images is not above the 99% interval around the
    share of the largest class. 0 leaves that warning to the end of the run."""
    checkpoint_every: Count = 10
    """Number of rounds from one checkpoint to the next."""

    @field_validator("milestones", mode="after")
    @classmethod
    def _rounds_in_text(cls, value: str) -> str:
        rounds = value.replace(",", " ").split()
        if not all(number.isdecimal() and int(number) > 0 for number in rounds):
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
        self._check_optimizer()
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

    def _check_optimizer(self) -> None:
        """Refuse a client's optimizer where nothing would become of it."""
        if self.optimizer == "sgd":
            return
        if self.mode == "gradient":
            raise ValueError(
                f'optimizer = "{self.optimizer}" is for local steps, of which mode '
                f'gradient has none: set server.optimizer, or mode = "update"'
            )
        if self.control_variates:
            raise ValueError(
                f"control-variates are defined for plain SGD: set optimizer = "
                f'"sgd", got "{self.optimizer}"'
            )
        if self.momentum:
            raise ValueError(
                f'momentum is that of optimizer = "sgd": set momentum = 0 beside '
                f'"{self.optimizer}", got {self.momentum}'
            )

    def learning_rate_factor(self, round_number: int) -> float:
        """Return the factor of the schedule on the learning rate in a round.

        Args:
            round_number: 1, 2, ..., `rounds`.
        """
        if round_number <= self.warmup_rounds:
            return round_number / (self.warmup_rounds + 1)
        if self.schedule == "cosine":
            total_rounds = max(1, self.rounds - self.warmup_rounds)
            past_rounds = round_number - self.warmup_rounds - 1
            return 0.5 * (1 + math.cos(math.pi * past_rounds / total_rounds))
        if self.schedule == "step":
            milestones = self.milestones.replace(",", " ").split()
            drops = sum(round_number > int(milestone) for milestone in milestones)
            return float(self.decay_factor**drops)
        return 1.0

    @property
    def update_kind(self) -> Literal["gradient", "delta"]:
        """The kind of update that a client sends in this mode."""
        return "gradient" if self.mode == "gradient" else "delta"


class ServerConfig(Table):
    """What the server does with a round's updates."""

    section = "server"

    aggregation: Literal["weighted-mean", "mean", "median", "trimmed-mean", "krum"] = (
        "weighted-mean"
    )
    """How updates are combined. `weighted-mean` weighs a client by its number of
    images, `mean` weighs all clients the same. Robust rules: `median` and
    `trimmed-mean` of every coordinate (Yin et al., ICML 2018), `krum` takes the one
    update closest to the others (Blanchard et al., NeurIPS 2017)."""
    trim_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the values that trimmed-mean drops at each end."""
    malicious_clients: CountOrZero = 0
    """Number of bad updates in a round that krum must withstand; it needs a cohort of
    at least twice as many clients plus three."""
    max_update_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Largest L2 norm of an update, over all parameters; 0 sets none. A client whose
    update is larger counts as failed in this round (`train.min-updates`)."""
    optimizer: Literal["sgd", "adam", "adamw", "yogi", "adagrad"] = "sgd"
    """Optimizer that applies the aggregate to the global parameters. In mode update,
    sgd with momentum is FedAvgM (Hsu et al. 2019), and adam, yogi and adagrad are
    FedAdam, FedYogi and FedAdagrad (Reddi et al., ICLR 2021). adamw, Adam with
    decoupled weight decay, is for mode gradient."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Learning rate of the server's optimizer. `auto`: for sgd 0.1 in mode gradient and
    1.0 in mode update; for adam, adamw and yogi 0.001 and 0.01; for adagrad 0.01 and
    0.1."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Momentum of the server's sgd. `auto`: 0.9 in mode gradient, 0 in mode update."""
    epsilon: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Constant added to the denominator of adam, adamw, yogi and adagrad (tau in Reddi
    et al.). `auto`: 1e-8 in mode gradient, 1e-3 in mode update."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the global model over rounds, such as
    0.99; 0 keeps none. The average is what is evaluated and saved; clients are sent the
    global model itself."""


class SecureAggregationConfig(Table):
    """Whether the server sees single updates, or only their sum."""

    section = "secure-aggregation"

    enabled: bool = False
    """Whether clients mask their updates, so that the server can read only the sum of a
    round (Bonawitz et al., CCS 2017). It hides who sent what, not what the sum itself
    gives away."""
    threshold: Annotated[float, Field(gt=0.5, le=1)] = 0.67
    """Share of a cohort that has to stay to the end of a round; with fewer clients,
    nobody can read the sum. As many clients together could unmask the others."""
    largest_value: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    """Largest absolute value that an entry of an update may have. Updates travel as
    32-bit integers: among n clients their resolution is n * largest-value / 2^31."""
