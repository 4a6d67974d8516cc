"""The real nginx with the settings that a federation gets, before a TLS server."""

from __future__ import annotations

import http.client
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest

from instahide_fl.deployment.federation import FederationConfig
from instahide_fl.deployment.federation_files import create_federation
from instahide_fl.deployment.nginx import nginx_command, nginx_settings

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
LARGE = 6 * 2**20  # bytes: more than a piece of a model that Flower sends


class Echo(http.server.BaseHTTPRequestHandler):
    """Stands for the SuperLink: says which path it was asked for."""

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        answer = f"{self.path} {len(self.rfile.read(size))}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *arguments):
        pass


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    fleet, superlink = free_ports(2)
    config = FederationConfig(
        name="lungs",
        hosts=["localhost"],
        fleet_port=fleet,
        superlink_port=superlink,
        clients=["north"],
    )
    return create_federation(tmp_path_factory.mktemp("nginx") / "f", config, "")


def serve(made):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server / "server.crt", made.server / "server.key")
    place = ("127.0.0.1", made.config.superlink_port)
    server = http.server.ThreadingHTTPServer(place, Echo)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def proxied(made):
    server = serve(made)
    process = subprocess.Popen(nginx_command(NGINX, made.server))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", made.config.fleet_port)):
                break
        time.sleep(0.05)
    yield made
    process.terminate()
    process.wait(20)
    server.shutdown()
    server.server_close()


def ask(made, path, body=None, host="localhost"):
    trusting = ssl.create_default_context(cafile=made.client("north") / "ca.crt")
    connection = http.client.HTTPSConnection(
        host, made.config.fleet_port, timeout=20, context=trusting
    )
    connection.request("POST" if body else "GET", path, body)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def test_the_settings_are_valid(made):
    done = subprocess.run(
        [*nginx_command(NGINX, made.server), "-t"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


def test_settings_for_an_ipv6_host_listen_there_too():
    assert "listen [::]:9443 ssl;" in nginx_settings(9443, 9444, ["::1"])
    assert "[::]" not in nginx_settings(9443, 9444, ["127.0.0.1"])


@pytest.mark.parametrize("path", ["/v1/fleet/pull?a=1", "/health"])
def test_what_clients_need_passes(proxied, path):
    answer, text = ask(proxied, path)
    assert (answer.status, text) == (200, f"{path} 0")


def test_a_large_update_passes(proxied):
    answer, text = ask(proxied, "/v1/fleet/push", bytes(LARGE))
    assert (answer.status, text) == (200, f"/v1/fleet/push {LARGE}")
    assert (proxied.server / "nginx/error.log").read_text() == ""


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleets/pull",
        "/v1/control/run",
        "/v1/runtime/x",
        "/healthy",
        "/v1/fleet/../control/run",
        "/v1/fleet/%2e%2e/control/run",
        "/v1/fleet/..%2fcontrol/run",
        "/V1/FLEET/pull",
        "//v1/control/run",
    ],
)
def test_nothing_else_passes(proxied, path):
    answer, text = ask(proxied, path)
    assert answer.status == 403
    assert path not in text  # which the server behind would have answered


def test_an_odd_way_to_the_fleet_is_passed_on_straightened(proxied):
    _, text = ask(proxied, "/v1/control/../fleet/pull")
    assert text == "/v1/fleet/pull 0"
