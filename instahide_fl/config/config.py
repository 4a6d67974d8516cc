"""All settings of a run together: read, checked as a whole, and written."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias

import tomli_w
from pydantic import model_validator

from instahide_fl.config.base import CountOrZero, Table
from instahide_fl.config.data import DataConfig, PartitionConfig, PoolConfig
from instahide_fl.config.defense import DefenseConfig, check_defense
from instahide_fl.config.encoding import EncoderConfig
from instahide_fl.config.output import OutputConfig, RecordConfig, ResourcesConfig
from instahide_fl.config.training import (
    ModelConfig,
    SecureAggregationConfig,
    ServerConfig,
    TrainConfig,
)
from instahide_fl.errors import ConfigError

Scalar: TypeAlias = bool | int | float | str


class Config(Table):
    """All settings of a run.

    Example:
        >>> from instahide_fl import Config
        >>> config = Config().with_values({"instahide.num-mixed": 6, "seed": 3})
        >>> config.instahide.num_mixed, config.seed
        (6, 3)
    """

    seed: CountOrZero = 0
    """Seed of a simulation: it repeats partition, initial model, cohorts, batches and
    keys. Real clients draw their keys from the operating system instead."""
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    pool: PoolConfig = PoolConfig()
    instahide: EncoderConfig = EncoderConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    server: ServerConfig = ServerConfig()
    secure_aggregation: SecureAggregationConfig = SecureAggregationConfig()
    defense: DefenseConfig = DefenseConfig()
    record: RecordConfig = RecordConfig()
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
        if cohort or clients:
            self._check_robust(cohort or clients)
            self._check_secure(cohort or clients)
        return self

    def _check_secure(self, cohort: int) -> None:
        if not self.secure_aggregation.enabled:
            return
        rule = self.server.aggregation
        if rule not in ("weighted-mean", "mean"):
            raise ValueError(
                f"secure-aggregation.enabled hides single updates, which "
                f'server.aggregation = "{rule}" compares: set it to "weighted-mean" or '
                f'"mean"'
            )
        if self.server.max_update_norm:
            raise ValueError(
                f"secure-aggregation.enabled hides single updates, whose norm "
                f"server.max-update-norm = {self.server.max_update_norm:g} bounds: set "
                f"it to 0; secure-aggregation.largest-value bounds each entry"
            )
        if cohort < 3:
            raise ValueError(
                f"secure-aggregation.enabled needs at least 3 clients in a round, got "
                f"{cohort}: of two, each would know the other's update"
            )

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        holdout, validation = self.record.holdout_share, self.data.validation_share
        if holdout + validation >= 1:
            raise ValueError(
                f"record.holdout-share = {holdout:g} and data.validation-share = "
                f"{validation:g} leave the clients no images: their sum must be below 1"
            )
        return self

    @model_validator(mode="after")
    def _check_defense(self) -> Self:
        check_defense(self.defense, self.model, self.train, self.server)
        return self

    @model_validator(mode="after")
    def _check_server(self) -> Self:
        if self.server.ema and self.train.control_variates:
            raise ValueError(
                f"server.ema averages models, and train.control-variates belong to the "
                f"last one: set server.ema = 0, got {self.server.ema}"
            )
        if self.server.optimizer == "adamw" and self.train.mode == "update":
            raise ValueError(
                'server.optimizer = "adamw" decays weights, which in mode update the '
                'clients do: set server.optimizer = "adam", and train.optimizer = '
                '"adamw" for the clients'
            )
        return self

    @model_validator(mode="after")
    def _check_evaluation(self) -> Self:
        encoder = self.instahide
        if not (self.evaluated_encodings and encoder.uses_pool):
            return self
        limit = encoder.max_coefficient if encoder.num_mixed > 1 else 1.0
        if encoder.min_private_weight >= limit:
            raise ValueError(
                f"train.evaluate-encodings encodes a test image as the only private "
                f"one, whose coefficient lies below {limit:g} "
                f"(instahide.max-coefficient) and cannot reach "
                f"instahide.min-private-weight = {encoder.min_private_weight:g}: set "
                f"train.evaluate-encodings = 0, or instahide-fl evaluate --encodings "
                f"with an --own-coefficient after the run"
            )
        return self

    def _check_robust(self, cohort: int) -> None:
        rule, bad = self.server.aggregation, self.server.malicious_clients
        if rule == "krum" and cohort < 2 * bad + 3:
            raise ValueError(
                f"server.malicious-clients: krum withstands at most "
                f"{max(0, (cohort - 3) // 2)} bad updates in a cohort of {cohort}, got "
                f"{bad}" + (": it needs at least 3 clients" if cohort < 3 else "")
            )
        if self.train.control_variates and rule not in ("weighted-mean", "mean"):
            raise ValueError(
                f"train.control-variates are means over clients: set "
                f'server.aggregation = "mean" or "weighted-mean", got "{rule}"'
            )

    @property
    def server_learning_rate(self) -> float:
        """The server optimizer's step size, with `auto` resolved."""
        if self.server.learning_rate != "auto":
            return self.server.learning_rate
        gradient, update = {
            "sgd": (0.1, 1.0),
            "adam": (0.001, 0.01),
            "adamw": (0.001, 0.01),
            "yogi": (0.001, 0.01),
            "adagrad": (0.01, 0.1),
        }[self.server.optimizer]
        return gradient if self.train.mode == "gradient" else update

    @property
    def server_momentum(self) -> float:
        """The server optimizer's momentum, with `auto` resolved."""
        if self.server.momentum != "auto":
            return self.server.momentum
        return 0.9 if self.train.mode == "gradient" else 0.0

    @property
    def server_epsilon(self) -> float:
        """The server optimizer's epsilon, with `auto` resolved."""
        if self.server.epsilon != "auto":
            return self.server.epsilon
        return 1e-8 if self.train.mode == "gradient" else 1e-3

    @property
    def sign_invariant(self) -> bool:
        """Whether the network sees absolute values only, with `auto` resolved."""
        if self.model.sign_invariant == "auto":
            return self.instahide.method == "instahide"
        return self.model.sign_invariant

    @property
    def evaluated_encodings(self) -> int:
        """The encodings of each test image in an evaluation; 0 in runs without any."""
        return 0 if self.instahide.method == "none" else self.train.evaluate_encodings

    @property
    def network(self) -> ModelConfig:
        """The table `[model]` with `sign-invariant` resolved to true or false.

        All sides build their network from it: clients, server and attacks.
        """
        return self.model.model_copy(update={"sign_invariant": self.sign_invariant})

    @property
    def step_size(self) -> str:
        """The setting that scales the gradient steps, with its value, for messages."""
        if self.train.mode == "gradient":
            return f"server.learning-rate (now {self.server_learning_rate:g})"
        return f"train.learning-rate (now {self.train.learning_rate:g})"

    def resolved(self) -> Config:
        """Return the same settings with every `auto` replaced by its value."""
        return self.with_values(
            {
                "instahide.num-private": self.instahide.private_count,
                "model.sign-invariant": self.sign_invariant,
                "server.learning-rate": self.server_learning_rate,
                "server.momentum": self.server_momentum,
                "server.epsilon": self.server_epsilon,
            }
        )

    def with_absolute_paths(self, folder: Path) -> Config:
        """Return the same settings with absolute paths.

        The processes of an engine may work in another folder than the user.

        Args:
            folder: The folder that relative paths start from.
        """
        changes: dict[str, Scalar] = {}
        for name in ("data.root", "pool.source", "model.initial-weights"):
            value = str(self.to_run_config()[name])
            if value and (name, value) != ("pool.source", "photos"):
                changes[name] = _absolute(value, folder)
        kind, _, path = self.data.dataset.partition(":")
        is_local = kind in ("imagefolder", "webdataset") or (
            kind == "hf" and (folder / Path(path).expanduser()).exists()
        )
        if path and is_local:
            changes["data.dataset"] = f"{kind}:{_absolute(path, folder)}"
        changes["output.mlflow"] = _absolute_store(self.output.mlflow, folder)
        return self.with_values(changes)

    def with_values(self, changes: Mapping[str, Scalar]) -> Config:
        """Return a copy with other values for some keys.

        Args:
            changes: New values by dotted name, for instance `{"train.rounds": 5}`.

        Raises:
            ConfigError: a key is unknown or a value is not valid.
        """
        return Config.from_run_config({**self.to_run_config(), **_hyphenated(changes)})

    def to_run_config(self) -> dict[str, Scalar]:
        """Return the settings as Flower's flat run config."""
        return flatten_tables(self.model_dump(by_alias=True))

    def to_toml(self) -> str:
        """Return the settings as TOML text, without the table `[output]`."""
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
        cls,
        path: Path,
        changes: Mapping[str, Scalar] | None = None,
        absent: Mapping[str, Scalar] | None = None,
        required: str = "",
    ) -> Config:
        """Read a TOML file.

        Args:
            path: The TOML file.
            changes: Values by dotted name that replace the file's. The file is checked
                only together with them.
            absent: Values by dotted name of settings that the file does not hold; the
                others have their defaults.
            required: The dotted name of the last setting of the file, without which
                the file has lost its end; empty for a file that people write.

        Raises:
            ConfigError: the file is missing, incomplete, not TOML, or holds a bad
                setting.
        """
        try:
            with path.open("rb") as file:
                values = flatten_tables(tomllib.load(file))
            if required and required not in values:
                raise ConfigError(
                    f"the file is damaged: it ends before {required}; put it back, or "
                    f"start the run anew"
                )
            all_values = {**(absent or {}), **values, **_hyphenated(changes or {})}
            return cls.from_run_config(all_values)
        except OSError as error:
            raise ConfigError(
                f"cannot read the settings file {path}: {error.strerror}"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def parse_assignment(text: str) -> tuple[str, Scalar]:
    """Read one `--set KEY=VALUE`, where a value that is not TOML is taken as a string.

    Returns:
        The dotted name of the setting, and its value.

    Raises:
        ConfigError: there is no `=`, or the value is a list or a table.
    """
    key, equals_sign, value = text.partition("=")
    if not equals_sign or not key.strip():
        raise ConfigError(f"--set takes KEY=VALUE, got {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if not isinstance(parsed, bool | int | float | str):
        raise ConfigError(f"--set {key}: expected one value, got {value!r}")
    return key.strip(), parsed


def _hyphenated(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Write names as settings files do, where a user wrote them as Python does."""
    return {name.replace("_", "-"): value for name, value in values.items()}


def _absolute(value: str, folder: Path) -> str:
    return os.path.normpath(folder / Path(value).expanduser())


def _absolute_store(address: str, folder: Path) -> str:
    """Return MLflow's address of a database file; leave the address of a server."""
    path = address.removeprefix("sqlite:///")
    if not path or "://" in path:
        return address
    return f"sqlite:///{_absolute(path, folder)}"


def flatten_tables(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in nested TOML tables by dotted name."""
    return dict(_flatten(tables))


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
