"""`instahide-fl doctor`: check that a machine is ready to serve, take part or simulate.

Every check stands alone and changes nothing; its results are lines that are ok, or say
what to do.
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
from instahide_fl.deployment.check_results import CheckResult, failed, passed, run_check
from instahide_fl.deployment.connection_checks import (
    Address,
    check_connection,
    check_port,
)
from instahide_fl.deployment.installation import (
    check_cache,
    check_disk,
    check_versions,
)
from instahide_fl.deployment.peers import PEERS_FOLDER, read_peers
from instahide_fl.deployment.policy import (
    CLIENT_FILE,
    ClientPolicy,
    read_policy,
)
from instahide_fl.errors import ConfigError

FEDERATION = "federation.toml"


def examine_installation() -> Iterator[CheckResult]:
    """Check versions, disk and cache."""
    yield from run_check("packages", check_versions)
    yield from run_check("disk", partial(check_disk, Path.cwd()))
    yield from run_check("cache", check_cache)


def examine_folder(
    folder: Path, run_config: Config | None = None
) -> Iterator[CheckResult]:
    """Check a client's or a federation's folder, and the machine it is on.

    Args:
        folder: The folder that holds client.toml or federation.toml.
        run_config: The settings of the runs that a client is to take part in; None for
            the defaults.

    Raises:
        ConfigError: The folder holds neither file, or the file cannot be read or is not
            valid.
    """
    if (folder / CLIENT_FILE).is_file():
        results = examine_client(folder, read_policy(folder), run_config or Config())
    elif (folder / FEDERATION).is_file():
        results = examine_server(folder, read_table(folder / FEDERATION))
    else:
        raise ConfigError(
            f"{folder} is no folder of a client ({CLIENT_FILE}) or a federation "
            f"({FEDERATION}): name one, or none to check the installation"
        )
    yield from run_check("packages", check_versions)
    yield from run_check("disk", partial(check_disk, folder))
    yield from run_check("folder", partial(_check_private, folder))
    yield from results


def examine_client(
    folder: Path, policy: ClientPolicy, run_config: Config
) -> Iterator[CheckResult]:
    """Check a client: keys, connection, clock, code, data and pool.

    Args:
        folder: The client's folder.
        policy: The content of its client.toml.
        run_config: The settings of a run.
    """
    authority = folder / "ca.crt"
    yield from run_check("node key", partial(check_node_key, folder / "node.key"))
    ca = partial(check_certificate, "CA certificate", authority)
    yield from run_check("CA certificate", ca)
    yield from run_check("server", partial(_check_server, policy, authority))
    yield from run_check("code", partial(_check_code, policy))
    yield from run_check("peers", partial(_check_peers, folder, policy))
    yield from run_check("data", partial(_check_data, folder, policy, run_config))


def examine_server(folder: Path, settings: Mapping[str, Any]) -> Iterator[CheckResult]:
    """Check a federation: certificates, keys, ports and nginx.

    Args:
        folder: The federation's folder.
        settings: The content of federation.toml, unchecked.
    """
    server, authority = folder / "server", folder / "authority"
    certificate, root = server / "server.crt", server / "ca.crt"
    key = server / "server.key"
    for name in ("CA key", "server key"):
        path = authority / "ca.key" if name == "CA key" else key
        # The CA's key is best stored elsewhere: its absence is no fault.
        if name == "server key" or path.exists():
            yield from run_check(name, partial(check_secret, name, path))
    for name, path in (("CA certificate", root), ("server certificate", certificate)):
        yield from run_check(name, partial(check_certificate, name, path))
    yield from run_check("chain", partial(check_chain, certificate, root, key))
    hosts = [str(host) for host in settings.get("hosts", [])]
    yield from run_check("names", partial(check_names, certificate, hosts))
    for name in settings.get("clients", []):
        yield from run_check(f"client {name}", partial(_check_client, folder, name))
    for name, host in (("fleet-port", "0.0.0.0"), ("superlink-port", "127.0.0.1")):
        yield from run_check(name, partial(_check_port, settings, name, host))
    yield from run_check("nginx", partial(_check_nginx, server / "nginx.conf"))


def read_table(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: The file is missing or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _check_private(folder: Path) -> Iterator[CheckResult]:
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        yield failed("folder", f"others can look into {folder}: chmod 700 {folder}")
    else:
        yield passed("folder", f"only its owner can look into {folder}")


def _check_server(policy: ClientPolicy, authority: Path) -> Iterator[CheckResult]:
    yield from check_connection(Address.parse(policy.server), authority)


def _check_code(policy: ClientPolicy) -> Iterator[CheckResult]:
    """Compare the pinned code with that of this installation."""
    installed = app_hash_of_installation()
    if not policy.code_hash:
        yield failed(
            "code",
            "none is pinned: this machine runs whatever the server sends; compare "
            "instahide-fl deploy code-hash with the operator, then instahide-fl deploy "
            "pin",
        )
    elif policy.code_hash != installed:
        yield failed(
            "code",
            f"{policy.code_hash[:12]} is pinned, this installation is "
            f"{installed[:12]}: install the version that was agreed on, or agree on "
            f"this one and pin it (instahide-fl deploy pin)",
        )
    else:
        yield passed("code", f"{installed[:12]} is pinned and installed")


def _check_peers(folder: Path, policy: ClientPolicy) -> Iterator[CheckResult]:
    """Look for the public keys with which secure aggregation knows the others."""
    if not policy.limits.pinned_peers:
        return
    names = ", ".join(read_peers(folder))
    if names:
        yield passed("peers", f"the keys of {names} are pinned")
    else:
        yield failed(
            "peers",
            f"no key is pinned: runs with secure aggregation will be refused; put the "
            f"other clients' public keys into {folder / PEERS_FOLDER}/NAME.pub",
        )


def _check_data(
    folder: Path, policy: ClientPolicy, run_config: Config
) -> Iterator[CheckResult]:
    """Open the client's images and its pool as a run would."""
    # Imported here: PyTorch takes seconds, and the checks before it none.
    from instahide_fl.data.federated_data import load_pool
    from instahide_fl.data.report_text import data_summary, warning_lines
    from instahide_fl.deployment.client_data import client_config, load_client_images

    config = client_config(policy, folder, run_config)
    images = load_client_images(policy, folder, config)
    split = images.split
    channels, height, width = split.images.shape[1:]
    yield passed(
        "data",
        f"{len(split)} images of {channels}x{height}x{width}, {split.num_classes} "
        f"classes",
    )
    statistics = split.statistics
    numbers = zip(statistics.mean, statistics.std, strict=True)
    shown = "; ".join(f"mean {mean:.3f}, std {std:.3f}" for mean, std in numbers)
    yield passed("statistics", f"{shown} (what runs normalise with must be near it)")
    least = policy.limits.min_batch_size
    if len(split) < least:
        yield failed(
            "limits",
            f"{len(split)} images are fewer than limits.min-batch-size = {least} in "
            f"{CLIENT_FILE}: this client would refuse every round",
        )
    # A client's own screen alone: the report names files and counts images.
    for line in [*data_summary(images.report), *warning_lines(images.report)]:
        yield passed("data report", line.strip())

    def check_pool() -> Iterator[CheckResult]:
        pool = load_pool(config, (channels, height, width))
        if pool is not None:
            pool.verify()
            yield passed("pool", f"{len(pool)} images, sha256 {pool.sha256[:12]}")

    yield from run_check("pool", check_pool)


def _check_client(folder: Path, name: object) -> Iterator[CheckResult]:
    """Check a client's registered key, and its private one where it is still here."""
    subject, registered = f"client {name}", folder / "server/clients" / f"{name}.pub"
    if not registered.is_file():
        yield failed(
            subject, f"{registered} is missing: the client cannot be registered"
        )
        return
    private = folder / "clients" / str(name) / "node.key"
    if private.exists():
        for result in check_node_key(private, registered):
            yield CheckResult(subject, result.ok, result.text)
    else:
        yield passed(subject, f"{registered.name} is there, its key is with the client")


def _check_port(
    settings: Mapping[str, Any], name: str, host: str
) -> Iterator[CheckResult]:
    port = settings.get(name)
    if type(port) is not int or not 0 < port < 65536:
        yield failed(name, f"{name} must be a port in {FEDERATION}, got {port!r}")
        return
    yield from check_port(name, host, port)


def _check_nginx(settings: Path) -> Iterator[CheckResult]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield failed("nginx", "not installed: apt install nginx-light")
    elif not settings.is_file():
        yield failed("nginx", f"{settings} is missing: only the fleet path may be open")
    else:
        yield passed("nginx", f"{program} with {settings.name}")
