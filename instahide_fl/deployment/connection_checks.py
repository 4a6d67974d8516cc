"""Check a connection to a server step by step: name, port, TLS, answer, clock.

Flower's SuperNode only says "Connection attempt failed" whichever step fails, and tries
for ever.
"""

from __future__ import annotations

import email.utils
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instahide_fl.deployment.check_results import CheckResult, failed, passed
from instahide_fl.errors import ConfigError
from instahide_fl.flower.tls import client_context

STEP_SECONDS = 10.0  # for each step
MAX_AHEAD = 5.0  # seconds that Flower lets a client's clock be ahead of the server's
MAX_BEHIND = 300.0  # seconds that Flower lets it be behind


@dataclass(frozen=True)
class Address:
    """The address of a server.

    Attributes:
        host: The server's name or IP address.
        port: The TCP port.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read HOST:PORT.

        Raises:
            ConfigError: The text is something else.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"server must be HOST:PORT, got {text!r}")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def check_connection(address: Address, authority: Path) -> Iterator[CheckResult]:
    """Connect to a server, and report at which step that fails, and why.

    Args:
        address: The server's address.
        authority: The file of the CA's certificate that the client was given.
    """
    try:
        addresses = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )
    except (socket.gaierror, UnicodeError) as error:
        yield failed(
            "name",
            f"{address.host} has no address ({error}): check `server` in client.toml "
            f"and this machine's DNS",
        )
        return
    yield passed("name", f"{address.host} is {addresses[0][4][0]}")
    try:
        context = client_context(authority)
    except (OSError, ssl.SSLError) as error:
        yield failed("TLS", f"cannot read the CA's certificate {authority}: {error}")
        return
    connection = http.client.HTTPSConnection(
        address.host, address.port, timeout=STEP_SECONDS, context=context
    )
    try:
        yield from _ask(connection, address)
    finally:
        connection.close()


def check_clock(date: str | None, local: float) -> Iterator[CheckResult]:
    """Compare this machine's clock with the Date header of a server's answer.

    Args:
        date: The header of the answer; None if it has none.
        local: This machine's time when the answer came, in seconds since 1970.
    """
    try:
        server = email.utils.parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        yield passed("clock", "not compared: the server's answer bears no date")
        return
    ahead = local - server
    if ahead > MAX_AHEAD or ahead < -MAX_BEHIND:
        way = "ahead of" if ahead > 0 else "behind"
        yield failed(
            "clock",
            f"{abs(ahead):.0f} s {way} the server's: Flower refuses a client that is "
            f"more than {MAX_AHEAD:.0f} s ahead or {MAX_BEHIND:.0f} s behind; set the "
            f"clock (timedatectl set-ntp true)",
        )
    else:
        yield passed("clock", f"within {abs(ahead) + 1:.0f} s of the server's")


def check_port(subject: str, host: str, port: int) -> Iterator[CheckResult]:
    """Check that a port of this machine is free, or that a server answers on it."""
    with socket.socket() as probe:
        probe.settimeout(STEP_SECONDS)
        if probe.connect_ex((host, port)) == 0:
            yield passed(subject, f"port {port} is in use: is the server running?")
            return
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
            yield passed(subject, f"port {port} is free")
        except OSError as error:
            yield failed(
                subject, f"port {port} cannot be used: {error.strerror}: choose another"
            )


def _ask(
    connection: http.client.HTTPSConnection, address: Address
) -> Iterator[CheckResult]:
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        yield passed("connection", f"{address} accepts connections")
        yield failed("TLS", f"{error.verify_message}: {_remedy(error, address)}")
        return
    except ssl.SSLError as error:
        yield passed("connection", f"{address} accepts connections")
        yield failed(
            "TLS",
            f"{address} does not speak TLS ({error.reason}): is it the fleet port?",
        )
        return
    except (ConnectionResetError, BrokenPipeError):
        yield failed("TLS", f"{address} hung up during TLS: is it the fleet port?")
        return
    except TimeoutError:
        yield failed(
            "connection",
            f"{address} does not answer within {STEP_SECONDS:.0f} s: a firewall drops "
            f"the packets, or the machine is off",
        )
        return
    except OSError as error:
        yield failed(
            "connection",
            f"{address}: {error.strerror or error}: is the server running, and is the "
            f"port the one in `server`?",
        )
        return
    yield passed("connection", f"{address} accepts connections")
    yield passed(
        "TLS", "the server's certificate is the CA's, and made out to this name"
    )
    yield from _answer(connection, address)


def _answer(
    connection: http.client.HTTPSConnection, address: Address
) -> Iterator[CheckResult]:
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        yield failed("answer", f"{address} gives none: {error or type(error).__name__}")
        return
    local = time.time()
    status = response.status
    if status == 200:
        yield passed("answer", "the SuperLink is healthy")
    elif status == 403:
        yield failed("answer", "403: the server's nginx does not let /health through")
    elif status in (502, 503, 504):
        yield failed(
            "answer",
            f"{status}: nginx runs and the SuperLink behind it does not: start it with "
            f"instahide-fl deploy server",
        )
    else:
        yield failed("answer", f"{status} {response.reason}: this is no SuperLink")
    yield from check_clock(response.getheader("Date"), local)


def _remedy(error: ssl.SSLCertVerificationError, address: Address) -> str:
    """Say what to do about a certificate, by OpenSSL's number of the fault."""
    if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
        return "the operator has to renew the server's certificate"
    if error.verify_code == 9:  # X509_V_ERR_CERT_NOT_YET_VALID
        return "the certificate is not valid yet: compare the clocks"
    if error.verify_code in (62, 64):  # hostname mismatch, IP address mismatch
        return (
            f"the certificate is not made out to {address.host}: connect to a name "
            f"that it bears, or have it made out to this one"
        )
    return (
        "the server's certificate is of another CA than ca.crt: ask for the right one"
    )
