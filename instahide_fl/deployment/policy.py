"""A client's settings: where its images are, and what it lets a run do with them.

`client.toml` lies in the client's folder and is the client's to edit. A run's settings
come from the server; those that would weaken the client's policy are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from instahide_fl.config import Config
from instahide_fl.config.base import CountOrZero, Table
from instahide_fl.deployment.limits import Limits
from instahide_fl.deployment.settings_checks import check_limits
from instahide_fl.errors import ConfigError, PolicyError
from instahide_fl.wire.refusals import refused

CLIENT_FILE = "client.toml"


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

    @property
    def data_key(self) -> str:
        """A digest of what names the data set; no run's settings are part of it."""
        names = [self.data, self.config, self.train_part, self.train_rows]
        names += [self.image_column, self.label_column]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

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
        PolicyError: The client refuses (`settings_checks.check_limits`).
    """
    check_limits(policy.name, policy.limits, config, CLIENT_FILE)


def check_code(policy: ClientPolicy, app_hash: str) -> None:
    """Refuse any app but the pinned one.

    Args:
        policy: The client's policy.
        app_hash: The app hash of what is about to run (`app_hash_of_archive`).

    Raises:
        PolicyError: The app is another one.
    """
    if policy.code_hash and policy.code_hash != app_hash:
        error = PolicyError(
            f"client {policy.name} refuses this run: the server sent the code "
            f"{app_hash[:12]}, it allows {policy.code_hash[:12]} only ({CLIENT_FILE}, "
            f"code-hash): install the version that the server runs, compare "
            f"instahide-fl deploy code-hash on both sides, and pin it anew"
        )
        raise refused(error, "other-code")


def _check_present(values: Mapping[str, Any]) -> None:
    for name in ("name", "server", "data"):
        if name not in values:
            raise ConfigError(f"{name} is missing: it has no default")
