"""`deploy server` and `deploy client`: Flower's and nginx's processes.

They end with this process, and this process ends when one of them does: whoever
supervises it (systemd, a container) then starts all of them again.
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
from instahide_fl.deployment.federation import FederationFolder
from instahide_fl.deployment.launcher import CLIENT_FOLDER, remove_unpacked
from instahide_fl.deployment.nginx import nginx_command
from instahide_fl.deployment.policy import ClientPolicy
from instahide_fl.deployment.superlink import LocalSuperLink
from instahide_fl.errors import EngineError
from instahide_fl.flower.command import command, deployed_environment, free_port

START_SECONDS = 90.0  # for the SuperLink to answer
END_SECONDS = 15.0  # for a process to end when asked to
PROGRAM_FOLDERS = ("/usr/sbin", "/usr/local/sbin")  # beside PATH, for nginx
Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """A process of ours.

    Attributes:
        name: for messages.
        process: the running one.
        log: where its output goes; None for the terminal.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None


def serve(folder: FederationFolder, proxy: bool, insecure: bool, say: Say) -> None:
    """Run a federation's SuperLink, and nginx before it, until told to stop.

    Args:
        folder: of the federation.
        proxy: whether nginx lets clients of other machines in.
        insecure: without TLS and without keys of clients; no proxy then.
        say: shows a line.

    Raises:
        EngineError: nginx is missing, a port is taken, or a process ended.
    """
    program = _nginx() if proxy and not insecure else ""
    superlink = LocalSuperLink(folder, insecure)
    with _services() as services:
        services.append(_start_superlink(superlink))
        _await(superlink, services)
        say(f"SuperLink: on {superlink.address}, for this machine only")
        if not insecure:
            for line in superlink.reconcile():
                say(line)
        if program:
            services.append(_start_nginx(program, folder))
            say(
                f"clients connect to {', '.join(folder.config.hosts)}, port "
                f"{folder.config.fleet_port}"
            )
        elif insecure:
            say("no proxy: clients on this machine only")
        else:
            say(
                f"no proxy: clients on this machine only, with "
                f'server = "{superlink.address}" in their client.toml'
            )
        say("Ctrl-C ends it")
        _watch(services)


def take_part(
    folder: Path, policy: ClientPolicy, insecure: bool, say: Say, port: int = 0
) -> None:
    """Run a client's SuperNode until told to stop.

    Args:
        folder: of the client.
        policy: its client.toml.
        insecure: without TLS and without a key.
        say: shows a line.
        port: on loopback, that Flower's processes of this client meet on; 0 for any.

    Raises:
        EngineError: the SuperNode ended.
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
    security = (
        ["--insecure"]
        if insecure
        else [
            *("--root-certificates", str(folder / "ca.crt")),
            *("--auth-supernode-private-key", str(folder / "node.key")),
        ]
    )
    arguments = [
        *(command("flower-supernode"), *security),
        *("--superlink", policy.server, "--port", str(port or free_port())),
        *("--node-config", f'client-folder="{folder}"'),
    ]
    say(f"client {policy.name}: connecting to {policy.server}; Ctrl-C ends it")
    with _services() as services:
        services.append(_start("SuperNode", arguments, state, environment, None))
        _watch(services)


def _start_superlink(superlink: LocalSuperLink) -> Service:
    server = superlink.folder.server.absolute()
    environment = superlink.environment()
    if superlink.answers():
        raise EngineError(
            f"a SuperLink answers on {superlink.address} already: end it, or set "
            f"another superlink-port in {superlink.folder.path}/federation.toml"
        )
    security = (
        ["--insecure"]
        if superlink.insecure
        else [
            *("--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt"),
            *("--ssl-keyfile", "server.key", "--enable-supernode-auth"),
        ]
    )
    arguments = [
        *(command("flower-superlink"), "--host", "127.0.0.1"),
        *("--port", str(superlink.port), *security),
        *("--disable-runtime-dependency-installation", "--database", "state.db"),
    ]
    return _start("SuperLink", arguments, server, environment, server / "superlink.log")


def _start_nginx(program: str, folder: FederationFolder) -> Service:
    server = folder.server.absolute()
    return _start(
        "nginx",
        nginx_command(program, server),
        server,
        dict(os.environ),
        server / "nginx" / "output.log",
    )


def _start(
    name: str,
    arguments: Sequence[str],
    place: Path,
    environment: Mapping[str, str],
    log: Path | None,
) -> Service:
    with contextlib.ExitStack() as stack:
        output = None if log is None else stack.enter_context(log.open("ab"))
        process = subprocess.Popen(
            list(arguments),
            cwd=place,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            # Ctrl-C goes to us alone; we end the rest in order.
            start_new_session=True,
            umask=0o077,
        )
    return Service(name, process, log)


def _await(superlink: LocalSuperLink, services: Sequence[Service]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _check(services)
        if superlink.answers():
            return
        time.sleep(0.2)
    raise EngineError(f"the SuperLink does not answer: see {services[0].log}")


def _watch(services: Sequence[Service]) -> None:
    while True:
        _check(services)
        time.sleep(0.5)


def _check(services: Sequence[Service]) -> None:
    """Refuse to go on without one of them.

    Raises:
        EngineError: it ended.
    """
    for one in services:
        code = one.process.poll()
        if code is None:
            continue
        where = "above" if one.log is None else f"the end of {one.log}"
        raise EngineError(f"{one.name} ended with exit code {code}: see {where}")


@contextlib.contextmanager
def _services() -> Iterator[list[Service]]:
    """Give a list of services, and end them, the last one first, on leaving."""
    services: list[Service] = []
    # SIGINT too, which is ignored by what a shell starts in the background: then
    # neither Ctrl-C nor `kill -INT` would end us, or what we start.
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield services
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for service in reversed(services):
            _end(service.process)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            # Its session: Flower's own children do not all follow it.
            if number == signal.SIGTERM:
                process.send_signal(number)
            else:
                os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)


def _launcher(place: Path) -> Path:
    """Write the command that takes the place of `flwr-clientapp`; return its folder."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = str(Path(instahide_fl.__file__).resolve().parents[1])
    code = (
        f"import sys; sys.path.insert(0, {library!r}); "
        "from instahide_fl.deployment.launcher import main; "
        "sys.path.pop(0); sys.argv[0] = 'flwr-clientapp'; main()"
    )
    script = place / "flwr-clientapp"
    line = shlex.join([sys.executable, "-c", code])
    script.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    script.chmod(0o700)
    return place


def _nginx() -> str:
    """Return where nginx is.

    Raises:
        EngineError: it is nowhere.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), *PROGRAM_FOLDERS])
    found = shutil.which("nginx", path=path)
    if found is None:
        raise EngineError(
            "nginx is not installed, which lets clients in and keeps strangers off the "
            "SuperLink: install it (apt install nginx-light), or use --no-proxy for "
            "clients on this machine only"
        )
    return found
