"""`deploy server` and `deploy client`: start Flower's and nginx's processes, end them.

They end with this process, even if it is killed, and this process ends when one of them
does: whoever supervises it (systemd, a container) then starts all of them again.

What this relies on (flwr 1.41 and 1.42): the options of `flower-superlink` and
`flower-supernode`, and that a SuperNode starts `flwr-clientapp` from PATH, where the
launcher stands first. With another Flower that does not, a client would run unchecked
code; tests/e2e/test_deployment.py sees that other code is refused.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import instahide_fl
from instahide_fl.child_processes import MARK, OrphanWatch, orphan_watch
from instahide_fl.deployment.federation import FederationFolder
from instahide_fl.deployment.launcher import CLIENT_FOLDER, remove_unpacked
from instahide_fl.deployment.nginx import nginx_command
from instahide_fl.deployment.policy import ClientPolicy
from instahide_fl.deployment.superlink import LocalSuperLink
from instahide_fl.errors import EngineError
from instahide_fl.flower.command import (
    as_arguments,
    command,
    deployed_environment,
    free_port,
)
from instahide_fl.interrupts import interrupt, signals_handled

START_SECONDS = 90.0  # for the SuperLink to answer
END_SECONDS = 15.0  # for a process to end after SIGTERM
SUPERLINK_LOG = "superlink.log"  # in the server's folder
PROGRAM_FOLDERS = ("/usr/sbin", "/usr/local/sbin")  # beside PATH, for nginx
ShowLine = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """A process that this one has started.

    Attributes:
        name: The name in messages.
        process: The running process.
        log: The file that its output goes to; None for the terminal.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None


class Services:
    """The processes that this one has started.

    Args:
        watch: Ends them if this process is killed.
    """

    def __init__(self, watch: OrphanWatch) -> None:
        self._watch = watch
        self._running: list[Service] = []

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        log: Path | None,
    ) -> None:
        """Start a process.

        Args:
            name: The name in messages.
            arguments: The program and its arguments.
            folder: The working directory.
            environment: All environment variables.
            log: The file for what it prints; None for the terminal.
        """
        with contextlib.ExitStack() as stack:
            output = None if log is None else stack.enter_context(log.open("ab"))
            process = subprocess.Popen(
                list(arguments),
                cwd=folder,
                env={**environment, MARK: self._watch.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                # Ctrl-C goes to us alone; we end the rest in order.
                start_new_session=True,
                umask=0o077,
            )
        # Its number is that of its session, too, which nginx's processes stay in. They
        # overwrite their environment.
        self._watch.add_session(process.pid)
        self._running.append(Service(name, process, log))

    def watch(self) -> None:
        """Wait until one of them ends.

        Raises:
            EngineError: A service has ended.
        """
        while True:
            self.check()
            time.sleep(0.5)

    def check(self) -> None:
        """Refuse to go on without one of the services.

        Raises:
            EngineError: A service has ended.
        """
        for service in self._running:
            code = service.process.poll()
            if code is None:
                continue
            where = "above" if service.log is None else f"the end of {service.log}"
            raise EngineError(
                f"{service.name} ended with exit code {code}: see {where}"
            )

    def end(self) -> None:
        """End them, the last started first."""
        for service in reversed(self._running):
            _end(service.process)


def serve(
    folder: FederationFolder, proxy: bool, insecure: bool, show: ShowLine
) -> None:
    """Run a federation's SuperLink, and nginx before it, until told to stop.

    Args:
        folder: The federation's folder.
        proxy: Whether nginx lets clients of other machines in.
        insecure: Whether to do without TLS and keys of clients, and then without nginx.
        show: Shows a line to a person.

    Raises:
        EngineError: nginx is missing, a port is taken, or a process ended.
    """
    program = _nginx() if proxy and not insecure else ""
    superlink = LocalSuperLink(folder, insecure)
    with _services() as services:
        _start_superlink(superlink, services)
        _await_answer(superlink, services)
        show(f"SuperLink: on {superlink.address}, for this machine only")
        if not insecure:
            for line in superlink.reconcile():
                show(line)
        if program:
            _start_nginx(program, folder, services)
            show(
                f"clients connect to {', '.join(folder.config.hosts)}, port "
                f"{folder.config.fleet_port}"
            )
        elif insecure:
            show("no proxy: clients on this machine only")
        else:
            show(
                f"no proxy: clients on this machine only, with "
                f'server = "{superlink.address}" in their client.toml'
            )
        show("Ctrl-C ends it")
        services.watch()


def take_part(
    folder: Path, policy: ClientPolicy, insecure: bool, show: ShowLine, port: int = 0
) -> None:
    """Run a client's SuperNode until told to stop.

    Args:
        folder: The client's folder.
        policy: The content of its client.toml.
        insecure: Whether to do without TLS and without a key.
        show: Shows a line to a person.
        port: The port of loopback on which Flower's processes of this client meet; 0
            for any.

    Raises:
        EngineError: The SuperNode ended.
    """
    folder = folder.absolute()
    state = folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    remove_unpacked(state)
    environment = deployed_environment(state / "flower")
    environment["PATH"] = os.pathsep.join(
        [str(_launcher(state / "bin")), environment["PATH"]]
    )
    environment[CLIENT_FOLDER] = str(folder)
    security = {
        "--root-certificates": str(folder / "ca.crt"),
        "--auth-supernode-private-key": str(folder / "node.key"),
    }
    options = {
        **({"--insecure": ""} if insecure else security),
        "--superlink": policy.server,
        "--port": str(port or free_port()),
        "--node-config": f'client-folder="{folder}"',
    }
    arguments = [command("flower-supernode"), *as_arguments(options)]
    show(f"client {policy.name}: connecting to {policy.server}; Ctrl-C ends it")
    with _services() as services:
        services.start("SuperNode", arguments, state, environment, log=None)
        services.watch()


def _start_superlink(superlink: LocalSuperLink, services: Services) -> None:
    server = superlink.folder.server.absolute()
    environment = superlink.environment()
    if superlink.is_up():
        raise EngineError(
            f"a SuperLink answers on {superlink.address} already: end it, or set "
            f"another superlink-port in {superlink.folder.path}/federation.toml"
        )
    security = {
        "--ssl-ca-certfile": "ca.crt",
        "--ssl-certfile": "server.crt",
        "--ssl-keyfile": "server.key",
        "--enable-supernode-auth": "",
    }
    options = {
        "--host": "127.0.0.1",
        "--port": str(superlink.port),
        **({"--insecure": ""} if superlink.insecure else security),
        "--disable-runtime-dependency-installation": "",
        "--database": "state.db",
    }
    arguments = [command("flower-superlink"), *as_arguments(options)]
    log = server / SUPERLINK_LOG
    services.start("SuperLink", arguments, server, environment, log)


def _start_nginx(program: str, folder: FederationFolder, services: Services) -> None:
    server = folder.server.absolute()
    services.start(
        "nginx",
        nginx_command(program, server),
        server,
        dict(os.environ),
        server / "nginx" / "output.log",
    )


def _await_answer(superlink: LocalSuperLink, services: Services) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        services.check()
        if superlink.is_up():
            return
        time.sleep(0.2)
    log = superlink.folder.server.absolute() / SUPERLINK_LOG
    raise EngineError(f"the SuperLink does not answer: see {log}")


@contextlib.contextmanager
def _services() -> Iterator[Services]:
    """Yield an object that starts services, and end them on leaving."""
    # SIGINT too, which is ignored by what a shell starts in the background: then
    # neither Ctrl-C nor `kill -INT` would end us, or what we start.
    numbers = (signal.SIGINT, signal.SIGTERM)
    with orphan_watch() as watch:
        services = Services(watch)
        try:
            with signals_handled(interrupt, *numbers):
                yield services
        finally:
            services.end()
            watch.dismiss()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started.

    SIGTERM goes to the process, which ends its children. SIGKILL goes to the whole
    session, because Flower's own children do not all follow their parent.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGTERM:
                process.send_signal(number)
            else:
                os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)


def _launcher(folder: Path) -> Path:
    """Write the command that stands in for `flwr-clientapp`, and return its folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = str(Path(instahide_fl.__file__).resolve().parents[1])
    code = (
        f"import sys; sys.path.insert(0, {library!r}); "
        "from instahide_fl.deployment.launcher import main; "
        "sys.path.pop(0); sys.argv[0] = 'flwr-clientapp'; main()"
    )
    script = folder / "flwr-clientapp"
    line = shlex.join([sys.executable, "-c", code])
    script.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    script.chmod(0o700)
    return folder


def _nginx() -> str:
    """Return the path of nginx.

    Raises:
        EngineError: nginx is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), *PROGRAM_FOLDERS])
    program = shutil.which("nginx", path=path)
    if program is None:
        raise EngineError(
            "nginx is not installed, which lets clients in and keeps strangers off the "
            "SuperLink: install it (apt install nginx-light), or use --no-proxy for "
            "clients on this machine only"
        )
    return program
