"""A real federation on loopback for long campaigns: SuperLink, SuperNodes, TLS, keys.

Everything is stock Flower, each program in a process of its own, started as a
deployment starts it; clients have their own folders of images. A process that dies is
started again after a pause, as systemd would do.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import psutil
from PIL import Image

from instahide_fl.child_processes import marked_environment
from instahide_fl.config import Config
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.partition import cached_partition
from instahide_fl.deployment.certificates import (
    new_authority,
    new_node_key,
    new_server_certificate,
)
from instahide_fl.deployment.federation_files import write_pair
from instahide_fl.flower.app_bundle import stage_app
from instahide_fl.flower.command import (
    as_arguments,
    command,
    flower_settings,
    free_port,
    superlink_answers,
    write_connection,
)
from instahide_fl.flower.superlink import FlwrCommand

RESTART_SECONDS = 10.0  # between an end and the next start, as in the systemd example
START_SECONDS = 60.0  # for the SuperLink to answer
CONNECTION = "federation"


@dataclass
class Service:
    """A process that is started again when it has ended.

    Attributes:
        name: The name in logs.
        command: The command that starts it.
        log: The file that its output is appended to.
        process: The running process; None before the first start.
        starts: How often it was started.
    """

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _ended: float | None = None

    def start(self, environment: Mapping[str, str], folder: Path) -> None:
        """Start the process."""
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
        """Tell whether the process has ended, and the pause after it is over."""
        if self.process is None or self.process.poll() is None:
            return False
        self._ended = self._ended or now
        return now - self._ended >= RESTART_SECONDS

    def family(self) -> list[psutil.Process]:
        """Return the process and all that it has started."""
        if self.process is None or self.process.poll() is not None:
            return []
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Kill the process with all that it has started, as a power failure does."""
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


@dataclass
class Federation:
    """A SuperLink and its clients.

    Attributes:
        folder: The folder of everything.
        config: The settings of the runs.
        environment: All environment variables of all processes.
        port: The SuperLink's port.
        services: The services by name: "superlink", and each client's.
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

    @property
    def address(self) -> str:
        """HOST:PORT of the SuperLink."""
        return f"127.0.0.1:{self.port}"

    @property
    def authority(self) -> Path:
        """The certificate of the authority that signed the SuperLink's."""
        return self.folder / "ca.crt"

    @property
    def flwr(self) -> FlwrCommand:
        """Flower's command for this SuperLink."""
        return FlwrCommand(CONNECTION, self.folder, self.environment, timeout=120)

    def is_up(self) -> bool:
        """Tell whether the SuperLink answers."""
        return superlink_answers(self.port, self.authority)

    def tend(self) -> None:
        """Start services again that have ended."""
        for service in self.services.values():
            if service.is_due(time.monotonic()):
                service.start(self.environment, self.folder)

    def submit(self, run: Path, *, resume: bool) -> str:
        """Start a run, or the rest of one, and return Flower's identifier of it.

        Raises:
            EngineError: Flower refused the run.
        """
        config = self.config.with_values(
            {"output.folder": str(run), "output.resume": resume}
        )
        return self.flwr.submit(self.folder / "app", config)

    def status(self, run_id: str) -> str:
        """Return Flower's status of a run; empty if Flower does not answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.flwr.find_run(run_id).status
        return ""


@contextlib.contextmanager
def start_federation(
    folder: Path,
    clients: int,
    config: Config,
    patch: Callable[[Path], None] = lambda app: None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Federation]:
    """Start a federation with TLS and node authentication; end it on leaving.

    Args:
        folder: An empty folder, or one with the clients' pools in clients/NAME/pool.
        clients: The number of clients.
        config: The settings of the runs; each client holds its part of the data set.
        patch: Changes the app's files before they are handed out.
        variables: Further environment variables of all processes.

    Yields:
        The federation, with all its processes started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "home").mkdir()
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
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **variables,
            **flower_settings(folder / "home"),
        }
        environment.pop("PYTHONPATH", None)  # the bundle's code, not this checkout's
        federation = Federation(folder, config, environment, free_port())
        _start_superlink(federation)
        for name in names:
            _start_client(federation, name)
        yield federation


def _start_superlink(federation: Federation) -> None:
    folder, authority = federation.folder, federation.authority
    write_connection(folder / "home", CONNECTION, federation.address, authority)
    options = {
        "--host": "127.0.0.1",
        "--port": str(federation.port),
        "--disable-runtime-dependency-installation": "",
        "--ssl-ca-certfile": "ca.crt",
        "--ssl-certfile": "server.crt",
        "--ssl-keyfile": "server.key",
        "--enable-supernode-auth": "",
        "--database": str(folder / "state.db"),
    }
    superlink = Service(
        "superlink",
        [command("flower-superlink"), *as_arguments(options)],
        folder / "superlink.log",
    )
    federation.services["superlink"] = superlink
    superlink.start(federation.environment, folder)
    deadline = time.monotonic() + START_SECONDS
    while not federation.is_up():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nobody listens on port {federation.port}")
        time.sleep(0.2)


def _start_client(federation: Federation, name: str) -> None:
    folder = federation.folder / "clients" / name
    public = folder / "node.key.pub"
    write_pair(new_node_key(name), folder / "node.key", public)
    federation.flwr.query("supernode", "register", str(public), CONNECTION)
    service = supernode(name, folder, federation.address, federation.authority)
    federation.services[name] = service
    service.start(federation.environment, federation.folder)


def supernode(name: str, folder: Path, address: str, authority: Path) -> Service:
    """Return a client's service.

    Args:
        name: The client's name.
        folder: The client's folder, with node.key and images/, and pool/ if the client
            has a pool of its own.
        address: HOST:PORT of the SuperLink.
        authority: The certificate of the authority that signed the SuperLink's.
    """
    node_config = {
        "client-name": name,
        "dataset": f"imagefolder:{folder / 'images'}",
        "exposures-file": str(folder / "kept" / "exposures.safetensors"),
    }
    if (folder / "pool").is_dir():
        node_config["pool"] = str(folder / "pool")
    options = {
        "--superlink": address,
        "--root-certificates": str(authority),
        "--port": str(free_port()),
        "--auth-supernode-private-key": str(folder / "node.key"),
        "--node-config": " ".join(f'{k}="{v}"' for k, v in node_config.items()),
    }
    arguments = [command("flower-supernode"), *as_arguments(options)]
    return Service(name, arguments, folder / "client.log")


def _write_images(folder: Path, names: list[str], config: Config) -> None:
    """Give each client a folder of pictures, in folders by class."""
    dataset = load_dataset(config.data, config.seed)
    partition = config.partition.model_copy(update={"num_clients": len(names)})
    parts = cached_partition(dataset, partition, config.seed)
    for name, rows in zip(names, parts, strict=True):
        for row in np.asarray(rows).tolist():
            class_name = dataset.class_names[int(dataset.train.targets[row])]
            images = folder / "clients" / name / "images" / class_name
            images.mkdir(parents=True, exist_ok=True)
            # [C,H,W] -> [H,W,C], and [H,W] for one channel, as Pillow takes them.
            pixels = dataset.train.images[row].permute(1, 2, 0).squeeze(-1).numpy()
            Image.fromarray(pixels).save(images / f"{row:05d}.png")
