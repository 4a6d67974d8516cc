"""Every setting of a run: type, range, default and meaning.

The same names serve three places: TOML tables (`[instahide] num-mixed = 4`), the
command line (`--set instahide.num-mixed=4`) and Flower's flat run config
(`-c 'instahide.num-mixed=4'`).
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from instahide_fl.errors import ConfigError

Scalar: TypeAlias = bool | int | float | str
Count: TypeAlias = Annotated[int, Field(ge=1)]
CountOrZero: TypeAlias = Annotated[int, Field(ge=0)]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Table(BaseModel):
    """A TOML table: immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=_kebab,
        populate_by_name=True,
        protected_namespaces=(),
    )

    section: ClassVar[str] = ""
    """Name of the table in a settings file; empty for the file itself."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None


class DataConfig(Table):
    """Which images the clients hold."""

    section = "data"

    dataset: str = "mnist-5k"
    """`mnist-5k` (ships with a dependency, no network), `hf:PATH-OR-NAME` (a Hugging
    Face image data set: a local folder, or a name on the hub), or `noise:NxCxHxW` (N
    random training images of 10 classes, to measure speed)."""
    image_size: CountOrZero = 0
    """Side in pixels that images are resized to on load; 0 keeps their own size."""
    augment: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    """Augmentation of private images before mixing: random crop after padding by an
    eighth of the side, and mirroring. `auto`: crop-flip for colour, none for grey."""


class PartitionConfig(Table):
    """How the training images are divided among clients."""

    section = "partition"

    scheme: Literal["iid", "dirichlet"] = "iid"
    """`iid`: equal random shares. `dirichlet`: each class is divided over the clients
    by a draw from Dirichlet(alpha)."""
    num_clients: CountOrZero = 10
    """Clients in the federation. 0 (only under `flwr run`) takes the number of
    SuperNodes."""
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Concentration of the Dirichlet draw; smaller is more uneven."""
    min_size: Count = 10
    """Fewest images a client may receive from the Dirichlet scheme."""


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

    name: Literal["small-cnn", "cnn-dropout", "resnet-18"] = "small-cnn"
    """`small-cnn`: two 3x3 convolutions with pooling, two linear layers.
    `cnn-dropout`: the network of federated benchmarks, 1.6 million parameters on
    CIFAR-10. `resnet-18`: for small images, 11.2 million."""
    width: Count = 16
    """Channels of the first convolution of small-cnn; the second has twice as many."""
    normalization: Literal["none", "group"] = "none"
    """Normalisation layers after the convolutions."""


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

    @property
    def update_kind(self) -> Literal["gradient", "delta"]:
        """What a client sends in this mode."""
        return "gradient" if self.mode == "gradient" else "delta"


class ServerConfig(Table):
    """What the server does with a round's updates."""

    section = "server"

    aggregation: Literal["weighted-mean", "mean"] = "weighted-mean"
    """`weighted-mean` weighs a client by its images, `mean` weighs all alike."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer that applies the aggregate to the global parameters."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """`auto`: for sgd 0.1 in mode gradient and 1.0 in mode update, for adam 0.001."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Of sgd. `auto`: 0.9 in mode gradient, 0 in mode update."""


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


class Config(Table):
    """All settings of a run."""

    seed: CountOrZero = 0
    """Seed of the simulation: partition, model, cohorts, batches and keys. Real clients
    draw their keys from the operating system instead."""
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    pool: PoolConfig = PoolConfig()
    instahide: EncoderConfig = EncoderConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    server: ServerConfig = ServerConfig()
    resources: ResourcesConfig = ResourcesConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _check_cohort(self) -> Self:
        clients, cohort = self.partition.num_clients, self.train.clients_per_round
        if 0 < clients < cohort:
            raise ValueError(
                f"train.clients-per-round must be at most {clients} "
                f"(partition.num-clients), got {cohort}"
            )
        if (cohort or clients) and self.train.min_updates > (cohort or clients):
            raise ValueError(
                f"train.min-updates must be at most {cohort or clients}, the size of a "
                f"cohort, got {self.train.min_updates}"
            )
        return self

    @property
    def server_learning_rate(self) -> float:
        """The server optimizer's step size, with `auto` resolved."""
        if self.server.learning_rate != "auto":
            return self.server.learning_rate
        if self.server.optimizer == "adam":
            return 0.001
        return 0.1 if self.train.mode == "gradient" else 1.0

    @property
    def server_momentum(self) -> float:
        """The server optimizer's momentum, with `auto` resolved."""
        if self.server.momentum != "auto":
            return self.server.momentum
        return 0.9 if self.train.mode == "gradient" else 0.0

    def resolved(self) -> Config:
        """Return the same settings with every `auto` replaced by its value."""
        return self.with_values(
            {
                "instahide.num-private": self.instahide.private_count,
                "server.learning-rate": self.server_learning_rate,
                "server.momentum": self.server_momentum,
            }
        )

    def with_values(self, changes: Mapping[str, Scalar]) -> Config:
        """Return a copy with other values for some keys.

        Args:
            changes: by dotted name, for instance `{"train.rounds": 5}`.

        Raises:
            ConfigError: a key is unknown or a value is not valid.
        """
        return Config.from_run_config({**self.to_run_config(), **changes})

    def to_run_config(self) -> dict[str, Scalar]:
        """Return the settings as Flower's flat run config."""
        return dict(_flatten(self.model_dump(by_alias=True)))

    def to_toml(self) -> str:
        """Return the settings as TOML text, without `output`."""
        return tomli_w.dumps(self.model_dump(by_alias=True, exclude={"output"}))

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> Config:
        """Read Flower's flat run config.

        Raises:
            ConfigError: a key is unknown or a value is not valid.
        """
        nested: dict[str, Any] = {}
        for name, value in run_config.items():
            *tables, key = name.split(".")
            table = nested
            for part in tables:
                table = table.setdefault(part, {})
                if not isinstance(table, dict):
                    raise ConfigError(f"{name} is set twice, as a table and as a value")
            table[key] = value
        return cls(**nested)

    @classmethod
    def from_toml(
        cls, path: Path, changes: Mapping[str, Scalar] | None = None
    ) -> Config:
        """Read a TOML file.

        Args:
            path: of the file.
            changes: values that replace the file's, by dotted name. Only the two
                together are checked.

        Raises:
            ConfigError: the file is missing, is not TOML, or holds a bad setting.
        """
        try:
            with path.open("rb") as file:
                given = dict(_flatten(tomllib.load(file)))
            return cls.from_run_config({**given, **(changes or {})})
        except OSError as error:
            raise ConfigError(
                f"cannot read the settings file {path}: {error.strerror}"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def parse_assignment(text: str) -> tuple[str, Scalar]:
    """Read one `--set KEY=VALUE`: a TOML value, or a bare word as a string.

    Raises:
        ConfigError: there is no `=`, or the value is a list or a table.
    """
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise ConfigError(f"--set takes KEY=VALUE, got {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if not isinstance(parsed, bool | int | float | str):
        raise ConfigError(f"--set {key}: expected one value, got {value!r}")
    return key.strip(), parsed


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _explain(error: ValidationError, table: type[Table]) -> str:
    """Put the first problem into one sentence: setting, value, what is valid."""
    problem = error.errors()[0]
    if isinstance(cause := problem.get("ctx", {}).get("error"), ConfigError):
        return str(cause)  # of a table inside this one, already explained
    prefix = f"{table.section}." if table.section else ""
    if not problem["loc"]:
        return prefix + str(problem["ctx"]["error"])
    # What follows the key in the location is the branch of a union that was tried.
    key = _kebab(str(problem["loc"][0]))
    if problem["type"] == "extra_forbidden":
        return _unknown(prefix, key, [_kebab(field) for field in table.model_fields])
    rules = [
        other["msg"].removeprefix("Input should be ")
        for other in error.errors()
        if other["loc"][0] == problem["loc"][0]
    ]
    if problem["type"] == "model_type":
        rules = ["a table"]
    return f"{prefix}{key} must be {' or '.join(rules)}, got {problem['input']!r}"


def _unknown(prefix: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {prefix}{close[0]}? " if close else ""
    return f"unknown setting {prefix}{key}: {hint}known: {', '.join(known)}"
