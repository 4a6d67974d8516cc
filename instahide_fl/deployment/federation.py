"""A federation's folder on the server: its settings and the paths of its files.

    FEDERATION/
      README.md  federation.toml
      authority/     ca.key ca.crt
      server/        ca.crt server.crt server.key nginx.conf nginx/ clients/NAME.pub
      clients/NAME/  client.toml ca.crt node.key peers/ README.md

A client's folder goes to that client whole and holds nothing of anybody else's but the
public keys of the other clients.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from instahide_fl.config.base import Table
from instahide_fl.deployment.certificates import subject_name
from instahide_fl.deployment.policy import check_client_name
from instahide_fl.errors import ConfigError

FEDERATION_FILE = "federation.toml"
FLEET_PORT, SUPERLINK_PORT = 9443, 9444

Port = Annotated[int, Field(ge=1, le=65535)]


class FederationConfig(Table):
    """The content of federation.toml."""

    name: Annotated[str, Field(min_length=1)]
    """The federation's name."""
    hosts: list[str]
    """The names and IP addresses that clients reach the server by; the first stands in
    their settings."""
    fleet_port: Port = FLEET_PORT
    """The port that nginx listens on, for clients."""
    superlink_port: Port = SUPERLINK_PORT
    """The port that the SuperLink listens on, on loopback only."""
    clients: list[str] = Field(default=[])
    """The names of the clients."""

    @field_validator("hosts", mode="after")
    @classmethod
    def _valid_hosts(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("one name or IP address, or several")
        for host in value:
            subject_name(host)
        return value

    @field_validator("clients", mode="after")
    @classmethod
    def _valid_clients(cls, value: list[str]) -> list[str]:
        for name in value:
            check_client_name(name)
        if len(set(map(str.lower, value))) < len(value):
            raise ValueError("different names, whatever their case")
        return value

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.fleet_port == self.superlink_port:
            raise ValueError(
                f"superlink-port must differ from fleet-port, got {self.fleet_port}"
            )
        return self

    @property
    def server(self) -> str:
        """The HOST:PORT that clients connect to."""
        host = self.hosts[0]
        # An IPv6 address stands in brackets.
        return (
            f"[{host}]:{self.fleet_port}"
            if ":" in host
            else f"{host}:{self.fleet_port}"
        )


@dataclass(frozen=True)
class FederationFolder:
    """The folder of a federation, and the paths of its files.

    Attributes:
        path: The folder's path.
        config: The content of its federation.toml.
    """

    path: Path
    config: FederationConfig

    @property
    def server(self) -> Path:
        """The folder that SuperLink and nginx read and write."""
        return self.path / "server"

    @property
    def authority(self) -> Path:
        """The folder of the certificate authority, needed for new certificates only."""
        return self.path / "authority"

    def client(self, name: str) -> Path:
        """Return the folder that is handed to a client."""
        return self.path / "clients" / name

    def registered_key(self, name: str) -> Path:
        """Return the file of the public key that the SuperLink knows a client by."""
        return self.server / "clients" / f"{name}.pub"


def open_federation(path: Path) -> FederationFolder:
    """Read a federation's folder.

    Raises:
        ConfigError: The folder is no federation's, or its settings are not valid.
    """
    file = path / FEDERATION_FILE
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}: name a folder that instahide-fl "
            f"deploy init made"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None
    try:
        for name in ("name", "hosts"):
            if name not in values:
                raise ConfigError(f"{name} is missing: it has no default")
        return FederationFolder(path, FederationConfig(**values))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def client_names(names: Sequence[str]) -> list[str]:
    """Split names at commas, as the command line takes them.

    Args:
        names: The words of the command line, for instance ["north,south", "west"].
    """
    return [name for text in names for name in text.replace(",", " ").split()]
