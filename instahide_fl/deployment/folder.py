"""A federation's folder on the server: its settings, certificates, keys and clients.

    FEDERATION/
      README.md  federation.toml
      authority/     ca.key ca.crt
      server/        ca.crt server.crt server.key nginx.conf nginx/ clients/NAME.pub
      clients/NAME/  client.toml ca.crt node.key README.md

A client's folder goes to that client whole and holds nothing of anybody else's.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import tomli_w
from pydantic import Field, field_validator, model_validator

from instahide_fl.config.table import Table
from instahide_fl.deployment.certificates import (
    SERVER_DAYS,
    Pair,
    new_authority,
    new_node_key,
    new_server_certificate,
    subject_name,
)
from instahide_fl.deployment.client_policy import CLIENT_FILE, check_client_name
from instahide_fl.deployment.instructions import (
    client_readme,
    client_settings,
    operator_readme,
)
from instahide_fl.deployment.nginx import SETTINGS, WORKING_FOLDER, nginx_settings
from instahide_fl.errors import ConfigError, OutputError
from instahide_fl.files import atomic_folder, write_text

FEDERATION_FILE = "federation.toml"
FLEET_PORT, SUPERLINK_PORT = 9443, 9444

Port = Annotated[int, Field(ge=1, le=65535)]


class FederationConfig(Table):
    """The content of federation.toml."""

    name: Annotated[str, Field(min_length=1)]
    """Of the federation."""
    hosts: list[str]
    """Names and IP addresses that clients reach the server by; the first stands in
    their settings."""
    fleet_port: Port = FLEET_PORT
    """That nginx listens on, for clients."""
    superlink_port: Port = SUPERLINK_PORT
    """That the SuperLink listens on, on loopback only."""
    clients: list[str] = Field(default=[])
    """Names of the clients."""

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
        """HOST:PORT that clients connect to."""
        host = self.hosts[0]
        return (
            f"[{host}]:{self.fleet_port}"
            if ":" in host
            else (f"{host}:{self.fleet_port}")
        )


@dataclass(frozen=True)
class FederationFolder:
    """Where the files of a federation are.

    Attributes:
        path: of the folder.
        config: content of its federation.toml.
    """

    path: Path
    config: FederationConfig

    @property
    def server(self) -> Path:
        """What SuperLink and nginx read and write."""
        return self.path / "server"

    @property
    def authority(self) -> Path:
        """The certificate authority, needed for new certificates only."""
        return self.path / "authority"

    def client(self, name: str) -> Path:
        """Return the folder that is handed to a client."""
        return self.path / "clients" / name

    def registered_key(self, name: str) -> Path:
        """Return the public key that the SuperLink knows a client by."""
        return self.server / "clients" / f"{name}.pub"


def create_federation(
    path: Path, config: FederationConfig, code_hash: str, days: int = SERVER_DAYS
) -> FederationFolder:
    """Make a federation's folder, all of it or nothing.

    Args:
        path: that does not exist yet, or is an empty folder.
        config: its settings.
        code_hash: of the app, which the clients' settings are pinned to.
        days: that the server's certificate is valid for.

    Raises:
        OutputError: the folder exists, or cannot be written.
        ConfigError: a host is none.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            f"{path} exists already, and keys are never overwritten: choose another "
            f"folder, or add a client with instahide-fl deploy add {path} NAME"
        )
    authority = new_authority(config.name)
    with _private_files(), atomic_folder(path) as temporary:
        folder = FederationFolder(temporary, config)
        _write_pair(authority, folder.authority / "ca.key", folder.authority / "ca.crt")
        _write(folder.server / "ca.crt", authority.public)
        (folder.server / WORKING_FOLDER).mkdir()
        (folder.server / "clients").mkdir()
        _write_server_certificate(folder, authority, days)
        settings = nginx_settings(
            config.fleet_port, config.superlink_port, config.hosts
        )
        _write(folder.server / SETTINGS, settings.encode())
        for name in config.clients:
            _write_client(folder, folder.client(name), name, code_hash)
            _register(folder, name, folder.client(name))
        _write(temporary / "README.md", operator_readme(config.name, path).encode())
        _write(temporary / FEDERATION_FILE, _to_toml(config))
    return open_federation(path)


def open_federation(path: Path) -> FederationFolder:
    """Read a federation's folder.

    Raises:
        ConfigError: it is none, or its settings are not valid.
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


def add_client(path: Path, name: str, code_hash: str) -> FederationFolder:
    """Add a client to a federation.

    Args:
        path: of the federation's folder.
        name: of the client.
        code_hash: of the app, which its settings are pinned to.

    Raises:
        ConfigError: the name is taken or none, or `path` is no federation's folder.
        OutputError: files cannot be written, or the client's folder exists.
    """
    old = open_federation(path)
    if name.lower() in map(str.lower, old.config.clients):
        raise ConfigError(f"{path} has a client {name} already: choose another name")
    values = old.config.model_dump(by_alias=True)
    config = FederationConfig(**{**values, "clients": [*old.config.clients, name]})
    folder = FederationFolder(path, config)
    if folder.client(name).exists():
        raise OutputError(
            f"{folder.client(name)} exists already, and keys are never overwritten: "
            f"move it away"
        )
    with _private_files():
        with atomic_folder(folder.client(name)) as temporary:
            _write_client(folder, temporary, name, code_hash)
        _register(folder, name, folder.client(name))
        # Last: until then the client is not part of the federation.
        write_text(path / FEDERATION_FILE, _to_toml(config).decode())
    return folder


def renew_certificate(path: Path, days: int = SERVER_DAYS) -> FederationFolder:
    """Make a new key and certificate for the server, by the same authority.

    Clients need nothing new. SuperLink and nginx read it when they start.

    Args:
        path: of the federation's folder.
        days: of validity.

    Raises:
        ConfigError: the authority's key or certificate is missing or damaged.
        OutputError: files cannot be written.
    """
    folder = open_federation(path)
    try:
        authority = Pair(
            (folder.authority / "ca.key").read_bytes(),
            (folder.authority / "ca.crt").read_bytes(),
        )
    except OSError as error:
        raise ConfigError(
            f"cannot read {error.filename}: {error.strerror}: put authority/ back from "
            f"where it is kept"
        ) from None
    with _private_files():
        _write_server_certificate(folder, authority, days)
    return folder


def _write_server_certificate(
    folder: FederationFolder, authority: Pair, days: int
) -> None:
    pair = new_server_certificate(authority, folder.config.hosts, days)
    _write_pair(pair, folder.server / "server.key", folder.server / "server.crt")


def _write_client(
    folder: FederationFolder, target: Path, name: str, code_hash: str
) -> None:
    server = folder.config.server
    target.mkdir(parents=True, exist_ok=True)
    key = new_node_key(name)
    _write_pair(key, target / "node.key", target / "node.key.pub")
    _write(target / "ca.crt", (folder.server / "ca.crt").read_bytes())
    _write(target / CLIENT_FILE, client_settings(name, server, code_hash).encode())
    readme = client_readme(name, folder.config.name, server)
    _write(target / "README.md", readme.encode())


def _register(folder: FederationFolder, name: str, client: Path) -> None:
    """Keep a client's public key with the server, where only that one is needed."""
    public = client / "node.key.pub"
    _write(folder.registered_key(name), public.read_bytes())
    public.unlink()


def _write_pair(pair: Pair, private: Path, public: Path) -> None:
    _write(private, pair.private)
    _write(public, pair.public)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content.decode())


def _to_toml(config: FederationConfig) -> bytes:
    return tomli_w.dumps(config.model_dump(by_alias=True)).encode()


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """Make all that is written readable to its owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def client_names(names: Sequence[str]) -> list[str]:
    """Split names at commas, as the command line takes them.

    Args:
        names: for instance ["north,south", "west"].
    """
    return [one for text in names for one in text.replace(",", " ").split()]
