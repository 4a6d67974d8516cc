"""A real federation on loopback for long campaigns: SuperLink, SuperNodes, TLS, keys.

Everything is stock Flower, each process its own, started as a deployment starts them;
clients have their own folders of images. What dies is started again after a pause, as
systemd would.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import psutil
import tomli_w
from PIL import Image

from instahide_fl.config import Config
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.partition import cached_partition
from instahide_fl.deployment.certificates import (
    new_authority,
    new_node_key,
    new_server_certificate,
)
from instahide_fl.deployment.federation_files import write_pair
from instahide_fl.engine.processes import marked_environment
from instahide_fl.flower.app_bundle import stage_app
from instahide_fl.flower.command import free_port
from instahide_fl.run_folder import RunFolder

RESTART_SECONDS = 10.0  # between an end and the next start, as in the systemd example
CONNECTION = "federation"


@dataclass
class Service:
    """A process that is started again when it has ended.

    Attributes:
        name: for logs.
        command: to start it.
        log: what it prints goes to the end of this file.
        process: the running one.
        starts: how often it was started.
    """

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _ended: float | None = None

    def start(self, environment: Mapping[str, str], folder: Path) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1
        self._ended = None

    def is_due(self, now: float) -> bool:
        """Tell whether it has ended, and the pause is over."""
        if self.process is None or self.process.poll() is None:
            return False
        self._ended = self._ended or now
        return now - self._ended >= RESTART_SECONDS

    def family(self) -> list[psutil.Process]:
        """Return the process and all it has started."""
        if self.process is None or self.process.poll() is not None:
            return []
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Kill it with all it has started, as a power failure does."""
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


@dataclass
class Federation:
    """A SuperLink and its clients.

    Attributes:
        folder: of everything.
        config: of the runs.
        environment: of all processes.
        port: of the SuperLink.
        services: by name: "superlink" and the clients'.
    """

    folder: Path
    config: Config
    environment: dict[str, str]
    port: int
    services: dict[str, Service] = field(default_factory=dict)

    @property
    def clients(self) -> list[str]:
        """Names of the clients."""
        return [name for name in self.services if name != "superlink"]

    def tend(self) -> None:
        """Start again what has ended."""
        for service in self.services.values():
            if service.is_due(time.monotonic()):
                service.start(self.environment, self.folder)

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Flower's command line against this SuperLink."""
        return subprocess.run(
            [script("flwr"), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    def submit(self, run: Path, *, resume: bool) -> str:
        """Start a run, or the rest of one, and return Flower's id of it.

        Raises:
            RuntimeError: Flower refused it.
        """
        config = self.config.with_values(
            {"output.folder": str(run), "output.resume": resume}
        )
        settings = self.folder / "run-config.toml"
        settings.write_text(tomli_w.dumps(config.to_run_config()))
        done = self.flwr(
            *("run", str(self.folder / "app"), CONNECTION, "--format", "json"),
            *("--run-config", str(settings)),
        )
        found = re.search(r'"run-id":\s*"?(\d+)', done.stdout)
        if done.returncode or not found:
            raise RuntimeError(f"flwr run: {done.stdout}{done.stderr}")
        return found[1]

    def status(self, run_id: str) -> str:
        """Return Flower's status of a run; empty if it does not answer."""
        with contextlib.suppress(
            ValueError, KeyError, IndexError, subprocess.TimeoutExpired
        ):
            listed = self.flwr(
                *("list", CONNECTION, "--run-id", run_id, "--format", "json")
            )
            return str(json.loads(listed.stdout)["runs"][0]["status"])
        return ""


@contextlib.contextmanager
def federation(
    folder: Path,
    clients: int,
    config: Config,
    patch: Callable[[Path], None] = lambda app: None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Federation]:
    """Start a federation with TLS and node authentication; end it on leaving.

    Args:
        folder: empty, or with pools of the clients in clients/NAME/pool.
        clients: how many.
        config: of the runs; each client holds its part of the data set.
        patch: changes the app's files before they are handed out.
        variables: of the environment, for all processes.

    Yields:
        The federation, with all clients online.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"site-{i}" for i in range(clients)]
    authority = new_authority("benchmark")
    certificate = new_server_certificate(authority, ["127.0.0.1"])
    write_pair(authority, folder / "ca.key", folder / "ca.crt")
    write_pair(certificate, folder / "server.key", folder / "server.crt")
    patch(stage_app(folder / "app"))
    _write_images(folder, names, config)
    # Every client answers in a real federation, so none is a numbered partition.
    config = config.with_values(
        {"partition.num-clients": clients, "data.train-rows": ""}
    )
    with marked_environment() as environment:
        environment |= {
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **variables,
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
            ),
        }
        environment.pop("PYTHONPATH", None)  # the bundle's code, not this checkout's
        made = Federation(folder, config, environment, free_port())
        _start(made, names)
        yield made


def _start(made: Federation, names: list[str]) -> None:
    folder, address = made.folder, f"127.0.0.1:{made.port}"
    (folder / "home").mkdir()
    connection = {"address": address, "root-certificates": str(folder / "ca.crt")}
    settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    (folder / "home" / "config.toml").write_text(tomli_w.dumps(settings))
    made.services["superlink"] = Service(
        "superlink",
        [
            *(script("flower-superlink"), "--host", "127.0.0.1"),
            *("--port", str(made.port), "--disable-runtime-dependency-installation"),
            *("--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt"),
            *("--ssl-keyfile", "server.key", "--enable-supernode-auth"),
            *("--database", str(folder / "state.db")),
        ],
        folder / "superlink.log",
    )
    made.services["superlink"].start(made.environment, folder)
    await_port(made.port)
    for name in names:
        place = folder / "clients" / name
        write_pair(new_node_key(name), place / "node.key", place / "node.key.pub")
        done = made.flwr(
            *("supernode", "register", str(place / "node.key.pub"), CONNECTION)
        )
        if done.returncode:
            raise RuntimeError(f"flwr supernode register: {done.stdout}{done.stderr}")
        made.services[name] = supernode(name, place, address, folder / "ca.crt")
        made.services[name].start(made.environment, folder)


def supernode(name: str, place: Path, address: str, authority: Path) -> Service:
    """Return a client's service.

    Args:
        name: of the client.
        place: its folder, with node.key and images/, and pool/ if it has its own.
        address: of the SuperLink, HOST:PORT.
        authority: the CA's certificate.
    """
    node = f'client-name="{name}" dataset="imagefolder:{place / "images"}" '
    node += f'exposures-file="{place / "kept" / "exposures.safetensors"}"'
    if (place / "pool").is_dir():
        node += f' pool="{place / "pool"}"'
    return Service(
        name,
        [
            *(script("flower-supernode"), "--superlink", address),
            *("--root-certificates", str(authority), "--port", str(free_port())),
            *("--auth-supernode-private-key", str(place / "node.key")),
            *("--node-config", node),
        ],
        place / "client.log",
    )


def _write_images(folder: Path, names: list[str], config: Config) -> None:
    """Give each client a folder of pictures, in folders by class."""
    dataset = load_dataset(config.data, config.seed)
    table = config.partition.model_copy(update={"num_clients": len(names)})
    parts = cached_partition(dataset, table, config.seed)
    for name, rows in zip(names, parts, strict=True):
        for row in np.asarray(rows).tolist():
            place = folder / "clients" / name / "images"
            place /= dataset.class_names[int(dataset.train.targets[row])]
            place.mkdir(parents=True, exist_ok=True)
            pixels = dataset.train.images[row].permute(1, 2, 0).squeeze(-1).numpy()
            Image.fromarray(pixels).save(place / f"{row:05d}.png")


def summary_of(run: Path) -> dict[str, object]:
    """Return a finished run's summary; empty if it is not finished."""
    return RunFolder(run).read_json("summary.json")


def script(name: str) -> str:
    """Return the path of a script of this environment."""
    return str(Path(sys.executable).parent / name)


def port_answers(port: int) -> bool:
    """Tell whether somebody listens on a port of loopback."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def await_port(port: int, seconds: float = 60.0) -> None:
    """Wait until somebody listens.

    Raises:
        RuntimeError: nobody does.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if port_answers(port):
            return
        time.sleep(0.2)
    raise RuntimeError(f"nobody listens on port {port}")
