"""A federation's SuperLink, seen from the server's own machine.

The SuperLink listens on loopback, where runs are submitted. Its Control API has no
login, so nothing else may reach it; nginx passes on what clients need
(`deployment.nginx`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from instahide_fl.config import Config
from instahide_fl.deployment.federation import FederationFolder
from instahide_fl.errors import EngineError
from instahide_fl.files import write_text
from instahide_fl.flower.app_bundle import stage_app
from instahide_fl.flower.command import (
    answers,
    command,
    deployed_environment,
    last_line,
)

CONNECTION = "federation"


@dataclass(frozen=True)
class Node:
    """A registered client.

    Attributes:
        name: of the client.
        status: Flower's word: registered, online or offline; or not registered.
    """

    name: str
    status: str


@dataclass(frozen=True)
class Registered:
    """A client as Flower knows it.

    Attributes:
        number: that Flower lists it by.
        key: sha256 of the public key that it was registered with, hex.
    """

    number: str
    key: str


@dataclass(frozen=True)
class FlowerRun:
    """A run that the SuperLink knows.

    Attributes:
        identifier: Flower's.
        status: Flower's words, for instance "finished:failed".
    """

    identifier: str
    status: str

    @property
    def is_over(self) -> bool:
        """Whether nothing happens any more."""
        return self.status.startswith("finished")


@dataclass(frozen=True)
class LocalSuperLink:
    """The SuperLink of a federation on this machine.

    Attributes:
        folder: of the federation.
        insecure: without TLS and without keys of clients, which then connect to it
            themselves, on the port that nginx has otherwise.
    """

    folder: FederationFolder
    insecure: bool = False

    @property
    def port(self) -> int:
        """That it listens on, on loopback."""
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

    def environment(self) -> dict[str, str]:
        """Return the environment of Flower's commands; makes `home`."""
        self.home.mkdir(mode=0o700, exist_ok=True)
        authority = str(self.folder.server.absolute() / "ca.crt")
        trust = (
            {"insecure": True} if self.insecure else {"root-certificates": authority}
        )
        connection = {"address": self.address, **trust}
        settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        (self.home / "config.toml").write_text(tomli_w.dumps(settings))
        return deployed_environment(self.home)

    def answers(self) -> bool:
        """Whether it is up."""
        authority = None if self.insecure else self.folder.server / "ca.crt"
        return answers(self.port, authority)

    def require(self) -> None:
        """Refuse to go on where it is not up.

        Raises:
            EngineError: and what to start.
        """
        if not self.answers():
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
        known, present = self._known(), self._present()
        wanted = {name: self._key(name) for name in self.folder.config.clients}
        for name in [name for name in known if known[name].key != wanted.get(name)]:
            if known[name].number in present:
                self._json("supernode", "unregister", known[name].number, CONNECTION)
            del known[name]
            self._remember(known)
            yield f"client {name}: removed"
        for name, key in wanted.items():
            if name not in known or known[name].number not in present:
                path = str(self.folder.registered_key(name).absolute())
                registered = self._json("supernode", "register", path, CONNECTION)
                known[name] = Registered(str(registered["node-id"]), key)
                self._remember(known)
                yield f"client {name}: registered"

    def nodes(self) -> list[Node]:
        """Return the federation's clients, by name.

        Without keys nobody is registered: then those who are there, by number.

        Raises:
            EngineError: Flower does not say.
        """
        known, present = self._known(), self._present()
        if self.insecure:
            return [Node(number, status) for number, status in present.items()]
        return [
            Node(name, present.get(known[name].number, "not registered"))
            if name in known
            else Node(name, "not registered")
            for name in sorted(self.folder.config.clients)
        ]

    @property
    def _registered(self) -> Path:
        """Flower's number of each client, which alone it lists."""
        return self.folder.server / "registered.json"

    def _known(self) -> dict[str, Registered]:
        with contextlib.suppress(OSError, ValueError, TypeError):
            read = json.loads(self._registered.read_text())
            return {name: Registered(**one) for name, one in read.items()}
        return {}

    def _remember(self, known: dict[str, Registered]) -> None:
        written = {name: asdict(one) for name, one in known.items()}
        write_text(self._registered, json.dumps(written, indent=2) + "\n")

    def _key(self, name: str) -> str:
        """Return what tells a client's public key from others.

        Raises:
            EngineError: the key is missing.
        """
        path = self.folder.registered_key(name)
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise EngineError(
                f"cannot read {path}: {error.strerror}: put it back, or take the "
                f"client out with instahide-fl deploy remove {self.folder.path} {name}"
            ) from None

    def _present(self) -> dict[str, str]:
        """Return the status of each number that is registered."""
        listed = self._json("supernode", "list", CONNECTION)["nodes"]
        return {str(one["node-id"]): str(one["status"]) for one in listed}

    def runs(self) -> list[FlowerRun]:
        """Return all runs, the newest first.

        Raises:
            EngineError: Flower does not say.
        """
        listed = self._json("list", CONNECTION)["runs"]
        return [FlowerRun(str(one["run-id"]), str(one["status"])) for one in listed]

    def stop(self, identifier: str) -> None:
        """Stop a run.

        Raises:
            EngineError: Flower refused to.
        """
        done = self.flwr("stop", identifier, CONNECTION)
        if done.returncode:
            raise EngineError(f"run {identifier} was not stopped: {last_line(done)}")

    def submit(self, config: Config) -> str:
        """Hand in the app of this installation and return the run's identifier.

        Raises:
            EngineError: Flower refused it.
        """
        place = Path(tempfile.mkdtemp(prefix="ihfl-"))
        try:
            app = stage_app(place / "app")
            settings = place / "run-config.toml"
            settings.write_text(tomli_w.dumps(config.to_run_config()))
            done = self.flwr(
                *("run", str(app), CONNECTION, "--format", "json"),
                *("--run-config", str(settings)),
            )
        finally:
            shutil.rmtree(place, ignore_errors=True)
        found = re.search(r'"run-id":\s*"?(\d+)', done.stdout)
        if done.returncode or not found:
            raise EngineError(f"Flower refused the run: {last_line(done)}")
        return found[1]

    def status(self, identifier: str) -> str:
        """Return Flower's status of a run; empty if it does not say."""
        with contextlib.suppress(EngineError, KeyError, IndexError):
            listed = self._json("list", CONNECTION, "--run-id", identifier)["runs"]
            return str(listed[0]["status"])
        return ""

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Flower's command line against it."""
        return subprocess.run(
            [command("flwr"), *arguments],
            cwd=self.home.parent,
            env=self.environment(),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def _json(self, *arguments: str) -> dict[str, Any]:
        done = self.flwr(*arguments, "--format", "json")
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise EngineError(
                f"flwr {arguments[0]} failed: {last_line(done)}"
            ) from None
        if not found.get("success", True):
            raise EngineError(f"flwr {arguments[0]} failed: {last_line(done)}")
        return found
