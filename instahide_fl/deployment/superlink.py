"""A federation's SuperLink, seen from the server's own machine.

The SuperLink listens on loopback, where runs are submitted. Its Control API has no
login, so nothing else may reach it; nginx passes on what clients need
(`deployment.nginx`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from instahide_fl.config import Config
from instahide_fl.deployment.federation import FederationFolder
from instahide_fl.errors import EngineError
from instahide_fl.files import write_text
from instahide_fl.flower.app_bundle import stage_app
from instahide_fl.flower.command import (
    deployed_environment,
    superlink_answers,
    write_connection,
)
from instahide_fl.flower.superlink import FlwrCommand
from instahide_fl.private_folder import private_folder

CONNECTION = "federation"


@dataclass(frozen=True)
class ClientStatus:
    """A client's name, and whether it is connected.

    Attributes:
        name: The client's name; Flower's number of it in a federation without keys.
        status: Flower's word (registered, online or offline), or "not registered".
    """

    name: str
    status: str


@dataclass(frozen=True)
class Registration:
    """A client's registration with Flower, as `registered.json` stores it.

    Attributes:
        number: The node id that Flower lists the client by.
        key: The sha256 of the public key that the client was registered with, in hex.
    """

    number: str
    key: str


@dataclass(frozen=True)
class LocalSuperLink:
    """The SuperLink of a federation on this machine.

    Attributes:
        folder: The federation's folder.
        insecure: Whether it runs without TLS and without keys of clients, which then
            connect to it themselves, on the port that nginx has otherwise.
    """

    folder: FederationFolder
    insecure: bool = False

    @property
    def port(self) -> int:
        """The port of loopback that it listens on."""
        config = self.folder.config
        return config.fleet_port if self.insecure else config.superlink_port

    @property
    def address(self) -> str:
        """HOST:PORT, on loopback."""
        return f"127.0.0.1:{self.port}"

    @property
    def home(self) -> Path:
        """Flower's own folder, with its list of connections."""
        return self.folder.server.absolute() / "flower"

    @property
    def authority(self) -> Path | None:
        """The certificate that its own is checked with; None without TLS."""
        return None if self.insecure else self.folder.server.absolute() / "ca.crt"

    def environment(self) -> dict[str, str]:
        """Return the environment of Flower's commands, and make `home`."""
        self.home.mkdir(mode=0o700, exist_ok=True)
        write_connection(self.home, CONNECTION, self.address, self.authority)
        return deployed_environment(self.home)

    def flwr(self) -> FlwrCommand:
        """Return Flower's command for this SuperLink, and make `home`."""
        return FlwrCommand(CONNECTION, self.home.parent, self.environment())

    def is_up(self) -> bool:
        """Tell whether it answers."""
        return superlink_answers(self.port, self.authority)

    def check_is_up(self) -> None:
        """Raise if the SuperLink does not answer.

        Raises:
            EngineError: It does not; the text names the command that starts it.
        """
        if not self.is_up():
            raise EngineError(
                f"no SuperLink answers on {self.address}: start it with "
                f"instahide-fl deploy server {self.folder.path}"
                f"{' --insecure' if self.insecure else ''}"
            )

    def reconcile(self) -> Iterator[str]:
        """Let the federation's clients in by their public keys, and no one else.

        Yields:
            What was changed, for a person.

        Raises:
            EngineError: Flower refused a key.
        """
        flwr = self.flwr()
        registered, statuses = self._read_registrations(), _node_statuses(flwr)
        keys = {name: self._key(name) for name in self.folder.config.clients}
        for name, registration in list(registered.items()):
            if registration.key == keys.get(name):
                continue
            if registration.number in statuses:
                flwr.query("supernode", "unregister", registration.number, CONNECTION)
            del registered[name]
            self._write_registrations(registered)
            yield f"client {name}: removed"
        for name, key in keys.items():
            if name in registered and registered[name].number in statuses:
                continue
            path = str(self.folder.registered_key(name).absolute())
            answer = flwr.query("supernode", "register", path, CONNECTION)
            registered[name] = Registration(str(answer["node-id"]), key)
            self._write_registrations(registered)
            yield f"client {name}: registered"

    def clients(self) -> list[ClientStatus]:
        """Return the federation's clients, by name.

        Without keys nobody is registered: then those who are there, by number.

        Raises:
            EngineError: Flower does not say.
        """
        registered, statuses = self._read_registrations(), _node_statuses(self.flwr())
        if self.insecure:
            return [ClientStatus(number, status) for number, status in statuses.items()]
        numbers = {name: client.number for name, client in registered.items()}
        return [
            ClientStatus(name, statuses.get(numbers.get(name, ""), "not registered"))
            for name in sorted(self.folder.config.clients)
        ]

    def submit(self, config: Config) -> str:
        """Hand in the app of this installation and return the run's identifier.

        Raises:
            EngineError: Flower refused the run.
        """
        with private_folder() as folder:
            return self.flwr().submit(stage_app(folder / "app"), config)

    @property
    def _registrations(self) -> Path:
        """The file that maps clients' names to Flower's node numbers."""
        return self.folder.server / "registered.json"

    def _read_registrations(self) -> dict[str, Registration]:
        with contextlib.suppress(OSError, ValueError, TypeError):
            entries = json.loads(self._registrations.read_text())
            return {name: Registration(**entry) for name, entry in entries.items()}
        return {}

    def _write_registrations(self, registered: Mapping[str, Registration]) -> None:
        entries = {name: asdict(client) for name, client in registered.items()}
        write_text(self._registrations, json.dumps(entries, indent=2) + "\n")

    def _key(self, name: str) -> str:
        """Return what tells a client's public key from others.

        Raises:
            EngineError: The key is missing.
        """
        path = self.folder.registered_key(name)
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise EngineError(
                f"cannot read {path}: {error.strerror}: put it back, or take the "
                f"client out with instahide-fl deploy remove {self.folder.path} {name}"
            ) from None


def _node_statuses(flwr: FlwrCommand) -> dict[str, str]:
    """Return the status of each node that is registered, by its number."""
    nodes = flwr.query("supernode", "list", CONNECTION)["nodes"]
    return {str(node["node-id"]): str(node["status"]) for node in nodes}
