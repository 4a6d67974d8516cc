"""Make a federation's folder, add and remove clients, renew the certificate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import tomli_w

from instahide_fl.deployment.certificates import (
    SERVER_DAYS,
    Pair,
    new_authority,
    new_node_key,
    new_server_certificate,
)
from instahide_fl.deployment.federation import (
    FEDERATION_FILE,
    FederationConfig,
    FederationFolder,
    open_federation,
)
from instahide_fl.deployment.folder_texts import (
    client_readme,
    client_settings,
    operator_readme,
)
from instahide_fl.deployment.nginx import SETTINGS, WORKING_FOLDER, nginx_settings
from instahide_fl.deployment.peers import PEERS_FOLDER
from instahide_fl.deployment.policy import CLIENT_FILE
from instahide_fl.errors import ConfigError, OutputError
from instahide_fl.files import atomic_folder, write_text


def create_federation(
    path: Path, config: FederationConfig, app_hash: str, days: int = SERVER_DAYS
) -> FederationFolder:
    """Make a federation's folder, all of it or nothing.

    Args:
        path: The folder, which does not exist yet or is empty.
        config: The federation's settings.
        app_hash: The hash of the app that the clients' settings are pinned to.
        days: How long the server's certificate is valid.

    Raises:
        OutputError: The folder exists, or cannot be written.
        ConfigError: A host is neither a name nor an IP address.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            f"{path} exists already, and keys are never overwritten: choose another "
            f"folder, or add a client with instahide-fl deploy add {path} NAME"
        )
    authority = new_authority(config.name)
    with _private_files(), atomic_folder(path) as temporary:
        folder = FederationFolder(temporary, config)
        write_pair(authority, folder.authority / "ca.key", folder.authority / "ca.crt")
        _write(folder.server / "ca.crt", authority.public)
        (folder.server / WORKING_FOLDER).mkdir()
        (folder.server / "clients").mkdir()
        _write_server_certificate(folder, authority, days)
        settings = nginx_settings(
            config.fleet_port, config.superlink_port, config.hosts
        )
        _write(folder.server / SETTINGS, settings.encode())
        for name in config.clients:
            _write_client(folder, folder.client(name), name, app_hash)
            _register(folder, name, folder.client(name))
        for name in config.clients:
            _write_peers(folder, folder.client(name), name)
        _write(temporary / "README.md", operator_readme(config.name, path).encode())
        _write(temporary / FEDERATION_FILE, _to_toml(config))
    return open_federation(path)


def add_client(path: Path, name: str, app_hash: str) -> FederationFolder:
    """Add a client to a federation.

    Args:
        path: The federation's folder.
        name: The client's name.
        app_hash: The hash of the app that the client's settings are pinned to.

    Raises:
        ConfigError: The name is taken or is no valid name, or `path` is no federation's
            folder.
        OutputError: Files cannot be written, or the client's folder exists.
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
            _write_client(folder, temporary, name, app_hash)
            _write_peers(folder, temporary, name)
        _register(folder, name, folder.client(name))
        # Last: until then the client is not part of the federation.
        write_text(path / FEDERATION_FILE, _to_toml(config).decode())
    return folder


def remove_client(path: Path, name: str) -> FederationFolder:
    """Take a client out of a federation.

    The server's copy of its public key is removed; the client's folder, if it is still
    here, stays.

    Args:
        path: The federation's folder.
        name: The client's name.

    Raises:
        ConfigError: There is no such client, or `path` is no federation's folder.
        OutputError: Files cannot be written.
    """
    old = open_federation(path)
    if name not in old.config.clients:
        names = ", ".join(old.config.clients) or "none"
        raise ConfigError(f"{path} has no client {name!r}: its clients are {names}")
    values = old.config.model_dump(by_alias=True)
    clients = [client for client in old.config.clients if client != name]
    folder = FederationFolder(path, FederationConfig(**{**values, "clients": clients}))
    with _private_files():
        write_text(path / FEDERATION_FILE, _to_toml(folder.config).decode())
        old.registered_key(name).unlink(missing_ok=True)
    return folder


def renew_certificate(path: Path, days: int = SERVER_DAYS) -> FederationFolder:
    """Make a new key and certificate for the server, by the same authority.

    Clients need nothing new. SuperLink and nginx read the certificate when they start.

    Args:
        path: The federation's folder.
        days: How long the certificate is valid.

    Raises:
        ConfigError: The authority's key or certificate is missing or damaged.
        OutputError: Files cannot be written.
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


def write_pair(pair: Pair, private: Path, public: Path) -> None:
    """Write a key and its certificate or public key, readable to their owner only.

    Args:
        pair: The key and what is public of it.
        private: The file for the key; missing folders above it are made.
        public: The file for the certificate or the public key.

    Raises:
        OutputError: A file cannot be written.
    """
    with _private_files():
        _write(private, pair.private)
        _write(public, pair.public)


def _write_server_certificate(
    folder: FederationFolder, authority: Pair, days: int
) -> None:
    pair = new_server_certificate(authority, folder.config.hosts, days)
    write_pair(pair, folder.server / "server.key", folder.server / "server.crt")


def _write_client(
    folder: FederationFolder, target: Path, name: str, app_hash: str
) -> None:
    server = folder.config.server
    target.mkdir(parents=True, exist_ok=True)
    key = new_node_key(name)
    write_pair(key, target / "node.key", target / "node.key.pub")
    _write(target / "ca.crt", (folder.server / "ca.crt").read_bytes())
    _write(target / CLIENT_FILE, client_settings(name, server, app_hash).encode())
    readme = client_readme(name, folder.config.name, server)
    _write(target / "README.md", readme.encode())


def _write_peers(folder: FederationFolder, target: Path, name: str) -> None:
    """Give a client the public keys of the others, which it pins."""
    (target / PEERS_FOLDER).mkdir(exist_ok=True)
    for other in folder.config.clients:
        if other != name and folder.registered_key(other).is_file():
            public = folder.registered_key(other).read_bytes()
            _write(target / PEERS_FOLDER / f"{other}.pub", public)


def _register(folder: FederationFolder, name: str, client: Path) -> None:
    """Move a client's public key to the server, which alone needs it."""
    public = client / "node.key.pub"
    _write(folder.registered_key(name), public.read_bytes())
    public.unlink()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content.decode())


def _to_toml(config: FederationConfig) -> bytes:
    return tomli_w.dumps(config.model_dump(by_alias=True)).encode()


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """Make every file that is written readable to its owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
