"""Tables of settings: the network, training, and what the server does."""

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
        "densenet-121",
        "mlp",
        "strided-cnn",
        "strided-lenet",
    ] = "small-cnn"
    """`small-cnn`: two 3x3 convolutions with pooling, two linear layers. `lenet`:
    LeNet-5. `cnn-dropout`: the network of federated benchmarks, 1.6 million parameters
    on CIFAR-10. `resnet-18` (11.2 million), `resnet-50` (23.5 million) and
    `densenet-121` (7.0 million), torchvision's, with the stem for small images below
    64 pixels. `preact-resnet-18`: the one that InstaHide's authors trained.
    `mlp` (one hidden layer), `strided-cnn` (three 3x3 convolutions of stride 2) and
    `strided-lenet` (of Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019, there
    with activation sigmoid) are what attacks on gradients are measured on."""
    width: Count = 16
    """Channels of the first convolution of small-cnn and strided-cnn, each later one
    has twice as many; mlp has 32 hidden units for each."""
    activation: Literal["relu", "sigmoid", "softplus"] = "relu"
    """Activation of small-cnn, lenet, mlp, strided-cnn and strided-lenet. Attacks that
    match gradients work best on smooth ones."""
    normalization: Literal["none", "group", "batch", "local-batch"] = "none"
    """Normalisation of the network. `group`: GroupNorm. `batch`: BatchNorm, whose
    running statistics (of encodings) clients send and the server averages.
    `local-batch`: BatchNorm by the statistics of the batch at hand, in training and in
    evaluation; none are kept, none are sent. `lenet`, `cnn-dropout`, `mlp` and
    `strided-lenet` have none."""
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


class SecureAggregationConfig(Table):
    """Whether the server sees single updates, or only their sum."""

    section = "secure-aggregation"

    enabled: bool = False
    """Clients mask their updates so that only the sum of a round can be read (Bonawitz
    et al., CCS 2017). It hides who sent what, not what the sum itself gives away."""
    threshold: Annotated[float, Field(gt=0.5, le=1)] = 0.67
    """Share of a cohort that has to stay to the end of a round; with fewer, nobody can
    read the sum. As many clients together could unmask the others."""
    largest_value: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    """Absolute value that an entry of an update may have. Updates travel as integers of
    32 bits: among n clients their resolution is n * largest-value / 2^31."""
