"""`instahide-fl doctor`: is this machine ready to serve, to take part, or to simulate?

Every check is by itself and changes nothing; what it finds is a line that is ok, or
says what to do.
"""

from __future__ import annotations

import shutil
import stat
import tomllib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from instahide_fl.config import Config
from instahide_fl.deployment.app_hash import app_hash_of_installation
from instahide_fl.deployment.certificate_checks import (
    check_certificate,
    check_chain,
    check_names,
    check_node_key,
    check_secret,
)
from instahide_fl.deployment.check_results import Finding, bad, examine, good
from instahide_fl.deployment.connection_checks import Address, check_port, check_reach
from instahide_fl.deployment.installation import (
    check_cache,
    check_disk,
    check_versions,
)
from instahide_fl.deployment.policy import (
    CLIENT_FILE,
    ClientPolicy,
    read_policy,
)
from instahide_fl.errors import ConfigError

FEDERATION = "federation.toml"


def examine_installation() -> Iterator[Finding]:
    """Check versions, disk and cache."""
    yield from examine("packages", check_versions)
    yield from examine("disk", partial(check_disk, Path.cwd()))
    yield from examine("cache", check_cache)


def examine_folder(folder: Path, image_size: int = 0) -> Iterator[Finding]:
    """Check a client's or a federation's folder, and the machine it is on.

    Args:
        folder: that holds client.toml or federation.toml.
        image_size: as `data.image-size` of the runs that a client is to take part in.

    Raises:
        ConfigError: it holds neither, or the file cannot be read or is not valid.
    """
    if (folder / CLIENT_FILE).is_file():
        found = examine_client(folder, read_policy(folder), image_size)
    elif (folder / FEDERATION).is_file():
        found = examine_server(folder, read_table(folder / FEDERATION))
    else:
        raise ConfigError(
            f"{folder} is no folder of a client ({CLIENT_FILE}) or a federation "
            f"({FEDERATION}): name one, or none to check the installation"
        )
    yield from examine("packages", check_versions)
    yield from examine("disk", partial(check_disk, folder))
    yield from examine("folder", partial(_check_private, folder))
    yield from found


def examine_client(
    folder: Path, policy: ClientPolicy, image_size: int
) -> Iterator[Finding]:
    """Check a client: keys, connection, clock, code, data and pool.

    Args:
        folder: of the client.
        policy: its client.toml.
        image_size: as `data.image-size` of a run.
    """
    authority = folder / "ca.crt"
    yield from examine("node key", partial(check_node_key, folder / "node.key"))
    ca = partial(check_certificate, "CA certificate", authority)
    yield from examine("CA certificate", ca)
    yield from examine("server", partial(_check_server, policy, authority))
    yield from examine("code", partial(_check_code, policy))
    yield from examine("data", partial(_check_data, folder, policy, image_size))


def examine_server(folder: Path, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Check a federation: certificates, keys, ports and nginx.

    Args:
        folder: of the federation.
        settings: of federation.toml.
    """
    server, authority = folder / "server", folder / "authority"
    certificate, root = server / "server.crt", server / "ca.crt"
    key = server / "server.key"
    for name in ("CA key", "server key"):
        path = authority / "ca.key" if name == "CA key" else key
        # The CA's key is best kept elsewhere: its absence is no fault.
        if name == "server key" or path.exists():
            yield from examine(name, partial(check_secret, name, path))
    for name, path in (("CA certificate", root), ("server certificate", certificate)):
        yield from examine(name, partial(check_certificate, name, path))
    yield from examine("chain", partial(check_chain, certificate, root, key))
    hosts = [str(host) for host in settings.get("hosts", [])]
    yield from examine("names", partial(check_names, certificate, hosts))
    for name in settings.get("clients", []):
        yield from examine(f"client {name}", partial(_check_client, folder, name))
    for name, host in (("fleet-port", "0.0.0.0"), ("superlink-port", "127.0.0.1")):
        yield from examine(name, partial(_check_port, settings, name, host))
    yield from examine("nginx", partial(_check_nginx, server / "nginx.conf"))


def read_table(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: it is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _check_private(folder: Path) -> Iterator[Finding]:
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        yield bad("folder", f"others can look into {folder}: chmod 700 {folder}")
    else:
        yield good("folder", f"only its owner can look into {folder}")


def _check_server(policy: ClientPolicy, authority: Path) -> Iterator[Finding]:
    yield from check_reach(Address.parse(policy.server), authority)


def _check_code(policy: ClientPolicy) -> Iterator[Finding]:
    """Hold the pinned code against that of this installation."""
    installed = app_hash_of_installation()
    if not policy.code_hash:
        yield bad(
            "code",
            "none is pinned: this machine runs whatever the server sends; compare "
            "instahide-fl deploy code-hash with the operator, then instahide-fl deploy "
            "pin",
        )
    elif policy.code_hash != installed:
        yield bad(
            "code",
            f"{policy.code_hash[:12]} is pinned, this installation is "
            f"{installed[:12]}: install the version that was agreed on, or agree on "
            f"this one and pin it (instahide-fl deploy pin)",
        )
    else:
        yield good("code", f"{installed[:12]} is pinned and installed")


def _check_data(
    folder: Path, policy: ClientPolicy, image_size: int
) -> Iterator[Finding]:
    """Open the client's images and its pool as a run would."""
    # Imported here: PyTorch takes seconds, and the checks before it none.
    from instahide_fl.data.federated_data import load_pool
    from instahide_fl.deployment.client_data import load_own_images, settings_under

    asked = Config().with_values({"data.image-size": image_size})
    config = settings_under(policy, folder, asked)
    split = load_own_images(policy, folder, config)
    channels, height, width = split.images.shape[1:]
    yield good(
        "data",
        f"{len(split)} images of {channels}x{height}x{width}, {split.num_classes} "
        f"classes",
    )

    def check_pool() -> Iterator[Finding]:
        pool = load_pool(config, (channels, height, width))
        if pool is not None:
            pool.verify()
            yield good("pool", f"{len(pool)} images, sha256 {pool.sha256[:12]}")

    yield from examine("pool", check_pool)


def _check_client(folder: Path, name: object) -> Iterator[Finding]:
    """Look at a client's registered key, and at its own where it is still here."""
    subject, registered = f"client {name}", folder / "server/clients" / f"{name}.pub"
    if not registered.is_file():
        yield bad(subject, f"{registered} is missing: the client cannot be registered")
        return
    own = folder / "clients" / str(name) / "node.key"
    if own.exists():
        for finding in check_node_key(own, registered):
            yield Finding(subject, finding.ok, finding.text)
    else:
        yield good(subject, f"{registered.name} is there, its key is with the client")


def _check_port(settings: Mapping[str, Any], name: str, host: str) -> Iterator[Finding]:
    port = settings.get(name)
    if type(port) is not int or not 0 < port < 65536:
        yield bad(name, f"{name} must be a port in {FEDERATION}, got {port!r}")
        return
    yield from check_port(name, host, port)


def _check_nginx(settings: Path) -> Iterator[Finding]:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        yield bad("nginx", "not installed: apt install nginx-light")
    elif not settings.is_file():
        yield bad("nginx", f"{settings} is missing: only the fleet path may be open")
    else:
        yield good("nginx", f"{found} with {settings.name}")
