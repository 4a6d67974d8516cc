"""The doctor, with real sockets, and certificates and keys made on the spot."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from email.utils import formatdate

import pytest

from instahide_fl.deployment import certificates
from instahide_fl.deployment.app_hash import app_hash_of_installation
from instahide_fl.deployment.certificate_checks import check_certificate, check_names
from instahide_fl.deployment.certificates import (
    LOOPBACK,
    new_authority,
    new_node_key,
    new_server_certificate,
)
from instahide_fl.deployment.connection_checks import (
    Address,
    check_clock,
    check_connection,
)
from instahide_fl.deployment.doctor import examine_folder
from instahide_fl.deployment.federation_files import write_pair
from instahide_fl.deployment.installation import check_disk, check_versions
from instahide_fl.errors import ConfigError
from tests.library.challenges import write_pictures, write_pool


@contextlib.contextmanager
def https_server(folder, status=200, date=None):
    """Answer as a SuperLink or nginx would, on a free port of loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(status)
            self.send_header("Date", formatdate(date or time.time(), usegmt=True))
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Address("127.0.0.1", server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_certificates(folder, days=365, age=0, host="127.0.0.1"):
    """Write an authority's certificate, and a server's made some days ago."""
    authority = new_authority("federation")
    made_at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age)
    server = new_server_certificate(authority, [host], days, made_at)
    write_pair(authority, folder / "ca.key", folder / "ca.crt")
    write_pair(server, folder / "server.key", folder / "server.crt")


def write_node_key(path):
    write_pair(new_node_key("ward"), path, path.with_name("node.key.pub"))


def faults(findings):
    return {one.subject: one.text for one in findings if not one.ok}


def test_a_server_that_is_as_it_should_be(tmp_path):
    write_certificates(tmp_path)
    with https_server(tmp_path) as address:
        found = list(check_connection(address, tmp_path / "ca.crt"))
    assert not faults(found)
    assert [one.subject for one in found] == [
        *("name", "connection", "TLS", "answer", "clock")
    ]


@pytest.mark.parametrize(
    ("validity", "names", "reason"),
    [
        ({"age": 9, "days": 8}, LOOPBACK, "expired: the operator has to renew"),
        ({"age": -5}, LOOPBACK, "not yet valid: .* compare the clocks"),
        ({}, (), "not made out to 127.0.0.1"),
    ],
)
def test_a_certificate_that_does_not_hold_is_explained(
    tmp_path, monkeypatch, validity, names, reason
):
    monkeypatch.setattr(certificates, "LOOPBACK", names)
    write_certificates(tmp_path, host="10.9.8.7", **validity)
    with https_server(tmp_path) as address:
        found = faults(check_connection(address, tmp_path / "ca.crt"))
    assert found.keys() == {"TLS"}
    assert re.search(reason, found["TLS"]), found


def test_a_certificate_of_another_authority_is_explained(tmp_path):
    write_certificates(tmp_path / "ours")
    write_certificates(tmp_path / "theirs")
    with https_server(tmp_path / "ours") as address:
        found = faults(check_connection(address, tmp_path / "theirs" / "ca.crt"))
    assert "of another CA than ca.crt" in found["TLS"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, "403: .* /health"),
        (502, "502: nginx runs and the SuperLink"),
        (404, "404"),
    ],
)
def test_answers_of_something_else_are_explained(tmp_path, status, reason):
    write_certificates(tmp_path)
    with https_server(tmp_path, status) as address:
        found = faults(check_connection(address, tmp_path / "ca.crt"))
    assert re.search(reason, found["answer"])


def test_no_name_no_port_and_no_tls_are_told_apart(tmp_path):
    write_certificates(tmp_path)
    authority = tmp_path / "ca.crt"
    nowhere = Address("no-such-host.invalid", 443)
    assert "has no address" in faults(check_connection(nowhere, authority))["name"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        silent = Address("127.0.0.1", closed.getsockname()[1])
        said = faults(check_connection(silent, authority))
    assert "refused: is the server running" in said["connection"]
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer():
            one, _ = plain.accept()
            with one:
                one.recv(100)
                one.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        address = Address("127.0.0.1", plain.getsockname()[1])
        said = faults(check_connection(address, authority))
        thread.join()
    assert "is it the fleet port?" in said["TLS"]


@pytest.mark.parametrize(
    ("ahead", "ok"), [(0, True), (4, True), (60, False), (-60, True), (-400, False)]
)
def test_the_clock_is_held_against_what_flower_lets_through(ahead, ok):
    now = 1_800_000_000
    (found,) = check_clock(formatdate(now, usegmt=True), now + ahead)
    assert found.ok is ok
    assert ok or "timedatectl" in found.text
    (found,) = check_clock(None, now)
    assert found.ok


def test_skew_is_seen_over_the_wire(tmp_path):
    write_certificates(tmp_path)
    with https_server(tmp_path, date=time.time() + 4000) as address:
        found = faults(check_connection(address, tmp_path / "ca.crt"))
    assert "behind the server's" in found["clock"]


def test_certificates_are_judged_by_their_dates_and_names(tmp_path):
    write_certificates(tmp_path, days=100)
    path = tmp_path / "server.crt"
    today = datetime.datetime.now(datetime.UTC)
    for days, reason in (
        (0, ""),
        (80, "renew it now"),
        (101, "expired on"),
        (-2, "clock"),
    ):
        at = today + datetime.timedelta(days=days)
        (found,) = check_certificate("server certificate", path, at)
        assert (not found.ok) == bool(reason)
        assert reason in found.text
    assert not faults(check_names(path, ["127.0.0.1"]))
    assert "not to example.org" in faults(check_names(path, ["example.org"]))["names"]
    (tmp_path / "none.crt").write_text("hello")
    with pytest.raises(ConfigError, match="no certificate"):
        list(check_certificate("x", tmp_path / "none.crt"))


def client_folder(folder, rng, port):
    folder.mkdir(mode=0o700)
    write_certificates(folder)
    write_node_key(folder / "node.key")
    data, pool = (
        write_pictures(folder / "images", rng),
        write_pool(folder / "pool", rng),
    )
    (folder / "client.toml").write_text(
        f'name = "ward"\nserver = "127.0.0.1:{port}"\ndata = "{data}"\n'
        f'pool = "{pool}"\ncode-hash = "{app_hash_of_installation()}"\n'
    )
    return folder


def test_a_client_that_is_ready_and_what_can_be_wrong(tmp_path, rng, command):
    folder = client_folder(tmp_path / "ward", rng, 1)
    with https_server(folder) as address:
        text = (folder / "client.toml").read_text()
        text = text.replace(':1"', f':{address.port}"')
        (folder / "client.toml").write_text(text)
        code, out, _ = command("doctor", folder)
        assert code == 0, out
        assert "10 images of 3x12x12, 5 classes" in out
        assert "is pinned and installed" in out
        assert (folder / "state" / "images").is_dir()
        assert "200 images, sha256" in out
        assert "secp384r1" in out
        (folder / "node.key").chmod(0o644)
        pixels = (folder / "pool" / "images.npy").read_bytes()
        (folder / "pool" / "images.npy").write_bytes(pixels[:-1] + b"\x07")
        folder.chmod(0o755)
        code, out, _ = command("doctor", folder)
    assert code == 1
    assert "chmod 600" in out
    assert "chmod 700" in out
    assert "its manifest says" in out
    assert "3 to mend" in out
    code, out, err = command("doctor", folder, "--quiet")
    assert (code, out) == (1, "")
    assert "chmod 700" in err
    folder.chmod(0o700)
    write_node_key(folder / "node.key")
    (folder / "client.toml").write_text(
        f'name = "ward"\nserver = "127.0.0.1:1"\ndata = "imagefolder:no"\n'
        f'code-hash = "{"0" * 64}"\n'
    )
    found = faults(examine_folder(folder))
    assert "refused" in found["connection"]
    assert "no such folder" in found["data"]
    assert "agree on this one" in found["code"]


def test_a_clients_settings_are_read_as_a_run_reads_them(tmp_path, rng, command):
    folder = client_folder(tmp_path / "ward", rng, 1)
    path = folder / "client.toml"
    text = path.read_text()
    path.write_text(f'{text}train-rows = "0:7"\nclasses = ["class-0", "class-1"]\n')
    found = faults(examine_folder(folder))
    assert "not among `classes`" in found["data"]
    named = ", ".join(f'"class-{number}"' for number in range(6))
    path.write_text(f'{text}train-rows = "0:7"\nclasses = [{named}]\n')
    told = {one.subject: one.text for one in examine_folder(folder)}
    assert told["data"] == "7 images of 3x12x12, 6 classes"
    reports = [one for one in examine_folder(folder) if one.subject == "data report"]
    assert "7 training images of 5 classes, 3x12x12" in reports[0].text
    assert all(one.ok for one in reports)
    path.write_text(text.replace("code-hash", "code-hsh"))
    code, _, err = command("doctor", folder)
    assert code == 2
    assert "code-hsh" in err


def test_an_rsa_key_and_none_at_all_are_explained(tmp_path, rng):
    folder = client_folder(tmp_path / "ward", rng, 1)
    (folder / "node.key").unlink()
    assert "is missing" in faults(examine_folder(folder))["node key"]
    make = [
        "ssh-keygen",
        "-q",
        "-t",
        "rsa",
        "-b",
        "2048",
        "-N",
        "",
        "-f",
        folder / "node.key",
    ]
    subprocess.run(make, check=True)
    assert "ssh-keygen -t ecdsa" in faults(examine_folder(folder))["node key"]


def federation_folder(folder):
    for place in ("authority", "server", "server/clients", "clients/ward"):
        (folder / place).mkdir(parents=True)
    write_certificates(folder / "server", days=365)
    write_node_key(folder / "clients" / "ward" / "node.key")
    public = folder / "clients" / "ward" / "node.key.pub"
    public.rename(folder / "server" / "clients" / "ward.pub")
    (folder / "server" / "nginx.conf").write_text("events {}\n")
    (folder / "federation.toml").write_text(
        'name = "x"\nhosts = ["127.0.0.1"]\nfleet-port = 19443\n'
        'superlink-port = 19444\nclients = ["ward"]\n'
    )
    folder.chmod(0o700)
    return folder


def test_a_server_that_is_ready_and_what_can_be_wrong(tmp_path):
    folder = federation_folder(tmp_path / "f")
    found = faults(examine_folder(folder))
    assert found.keys() <= {"nginx"}, found
    write_node_key(folder / "clients" / "ward" / "node.key")
    write_certificates(tmp_path / "other", age=9, days=8)
    os.replace(tmp_path / "other" / "server.crt", folder / "server" / "server.crt")
    (folder / "server" / "server.key").chmod(0o644)
    found = faults(examine_folder(folder))
    assert "the server will refuse this client" in found["client ward"]
    assert "is not signed by" in found["chain"]
    assert "expired on" in found["server certificate"]
    assert found["server key"]


def test_a_folder_of_neither_kind_is_a_users_mistake(tmp_path, command):
    code, _, err = command("doctor", tmp_path)
    assert code == 2
    assert "is no folder of a client" in err
    (tmp_path / "client.toml").write_text("server = ")
    code, _, err = command("doctor", tmp_path)
    assert code == 2
    assert "not valid TOML" in err


def test_versions_are_held_against_what_is_asked_for(monkeypatch, tmp_path):
    assert not faults(check_versions())
    from instahide_fl.deployment import installation

    monkeypatch.setattr(installation, "version", lambda name: "0.0.1")
    found = faults(check_versions())
    assert "pip install 'flwr<1.43,>=1.41'" in found["flwr"]
    assert "0.0.1" in found["ray"]
    monkeypatch.setattr(installation, "MIN_FREE_BYTES", 2**60)
    assert "free at least" in faults(check_disk(tmp_path / "not" / "there"))["disk"]
