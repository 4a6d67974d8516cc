"""A client's settings: where its images are, and what it lets a run do with them.

`client.toml` lies in the client's folder and is the client's to edit. A run's settings
come from the server; those that would weaken the client's policy are refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from instahide_fl.config import Config
from instahide_fl.config.base import Count, CountOrZero, Table
from instahide_fl.errors import ConfigError, PolicyError

CLIENT_FILE = "client.toml"


class Limits(Table):
    """The limits to what a run may ask of this client."""

    section: ClassVar[str] = "limits"

    max_exposures: CountOrZero = 0
    """The distinct encodings that one image may take part in, over all rounds of all
    runs. A run has to keep to it itself (`instahide.max-exposures`, with
    exposure-action "stop"). 0 sets no limit."""
    methods: Annotated[
        list[Literal["none", "mixup", "instahide"]], Field(min_length=1)
    ] = Field(default=["instahide"])
    """The values of `instahide.method` that are allowed."""
    min_num_mixed: Count = 4
    """The smallest `instahide.num-mixed` (k) that is allowed."""
    max_coefficient: Annotated[float, Field(gt=0, le=1)] = 0.65
    """The largest `instahide.max-coefficient` (c1) that is allowed."""
    max_private_weight: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """The largest `instahide.min-private-weight` (c2) that is allowed."""
    allow_truth: bool = False
    """Whether a run may write originals, encodings and keys (`record.truth`), into this
    client's folder. For rehearsals with public images."""
    allow_seeded_keys: bool = False
    """Whether `seeded-client` may be set. For rehearsals with public images."""


class ClientPolicy(Table):
    """The content of client.toml."""

    name: str
    """The client's name in the federation."""
    server: str
    """HOST:PORT of the server."""
    data: Annotated[str, Field(min_length=1)]
    """The client's images, written as `data.dataset`. All of them are trained on, a
    test part excepted. Relative paths start in the client's folder."""
    train_rows: str = ""
    """The images to use, written as `data.train-rows`. Empty uses all."""
    train_part: str = ""
    """The folder, or part of a Hugging Face set, that the images are in, written as
    `data.train-part`. Empty recognises it by name."""
    image_column: str = ""
    """The column with the images, written as `data.image-column`. Empty recognises it
    by name."""
    label_column: str = ""
    """The column with the classes, written as `data.label-column`. Empty recognises it
    by name."""
    config: str = ""
    """The configuration of a Hugging Face set, written as `data.config`. Empty takes
    the only one."""
    classes: list[str] = Field(default=[])
    """Names of all classes of the federation, in the order that its clients agreed on.
    Empty takes the names in `data`, in their order: enough where every client has
    images of every class."""
    pool: Annotated[str, Field(min_length=1)] = "photos"
    """The public images to mix with, written as `pool.source`."""
    code_hash: str = ""
    """sha256 of the app that this client runs, as `instahide-fl deploy code-hash`
    prints it. Empty runs whatever the server sends."""
    seeded_client: CountOrZero | None = None
    """Take keys and batches from the run's seed, as client N of a simulation: the
    encodings then hide nothing."""
    limits: Limits = Limits()

    @field_validator("name", mode="after")
    @classmethod
    def _valid_name(cls, value: str) -> str:
        return check_client_name(value)

    @field_validator("server", mode="after")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError('HOST:PORT, for instance "federation.example.org:9443"')
        return value

    @field_validator("code_hash", mode="after")
    @classmethod
    def _is_hash(cls, value: str) -> str:
        if value and not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError("64 hexadecimal digits, or empty")
        return value

    @model_validator(mode="after")
    def _check_seeded(self) -> Self:
        if self.seeded_client is not None and not self.limits.allow_seeded_keys:
            raise ValueError(
                f"seeded-client = {self.seeded_client} lets the server compute this "
                f"client's keys: remove it, or set limits.allow-seeded-keys = true for "
                f"a rehearsal with public images"
            )
        return self


def check_client_name(name: str) -> str:
    """Return a client's name if it is a valid one.

    Raises:
        ValueError: It is not; the text describes valid names.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name) and not name.isdecimal():
        return name
    raise ValueError(
        "up to 63 letters, digits, - and _, not a number alone (which names a "
        "simulated client)"
    )


def read_policy(folder: Path) -> ClientPolicy:
    """Read the client.toml of a client's folder.

    Raises:
        ConfigError: The file is missing, is not TOML, or holds a bad setting.
    """
    path = folder / CLIENT_FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    try:
        _check_present(values)
        return ClientPolicy(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def check_settings(policy: ClientPolicy, config: Config) -> None:
    """Refuse a run whose settings a client does not allow.

    Args:
        policy: The client's policy.
        config: The run's settings, as the server sent them.

    Raises:
        PolicyError: The client refuses; the text names the client, each such setting
            with its value, and what is allowed.
    """
    refused = [*_weak_encodings(policy.limits, config), *_exposed(policy, config)]
    if refused:
        raise PolicyError(
            f"client {policy.name} refuses this run: {'; '.join(refused)} "
            f"({CLIENT_FILE}, [limits])"
        )


def check_code(policy: ClientPolicy, app_hash: str) -> None:
    """Refuse any app but the pinned one.

    Args:
        policy: The client's policy.
        app_hash: The app hash of what is about to run (`app_hash_of_archive`).

    Raises:
        PolicyError: The app is another one.
    """
    if policy.code_hash and policy.code_hash != app_hash:
        raise PolicyError(
            f"client {policy.name} refuses this run: the server sent the code "
            f"{app_hash[:12]}, it allows {policy.code_hash[:12]} only ({CLIENT_FILE}, "
            f"code-hash): install the version that the server runs, compare "
            f"instahide-fl deploy code-hash on both sides, and pin it anew"
        )


def _weak_encodings(limits: Limits, config: Config) -> Iterator[str]:
    encoding = config.instahide
    if encoding.method not in limits.methods:
        allowed = " or ".join(f'"{method}"' for method in limits.methods)
        yield f'instahide.method = "{encoding.method}", it allows {allowed}'
    if encoding.method != "none":
        if encoding.num_mixed < limits.min_num_mixed:
            yield (
                f"instahide.num-mixed = {encoding.num_mixed}, it allows "
                f"{limits.min_num_mixed} or more"
            )
        if encoding.max_coefficient > limits.max_coefficient:
            yield (
                f"instahide.max-coefficient = {encoding.max_coefficient}, it allows "
                f"at most {limits.max_coefficient}"
            )
        weight = encoding.min_private_weight
        if encoding.public_count and weight > limits.max_private_weight:
            yield (
                f"instahide.min-private-weight = {weight}, it allows at most "
                f"{limits.max_private_weight}"
            )
    yield from _exposures_beyond(limits.max_exposures, config)


def _exposures_beyond(limit: int, config: Config) -> Iterator[str]:
    asked, action = config.instahide.max_exposures, config.instahide.exposure_action
    if limit and not 0 < asked <= limit:
        meaning = " (no limit)" if asked == 0 else ""
        yield f"instahide.max-exposures = {asked}{meaning}, it allows 1 to {limit}"
    if limit and action != "stop":
        yield f'instahide.exposure-action = "{action}", it allows "stop"'


def _exposed(policy: ClientPolicy, config: Config) -> Iterator[str]:
    if config.record.truth and not policy.limits.allow_truth:
        yield "record.truth = true, it allows false: its images are real"
    if config.record.crafted != "none":
        yield f'record.crafted = "{config.record.crafted}", it allows "none"'


def _check_present(values: Mapping[str, Any]) -> None:
    for name in ("name", "server", "data"):
        if name not in values:
            raise ConfigError(f"{name} is missing: it has no default")
