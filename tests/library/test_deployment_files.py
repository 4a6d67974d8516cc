"""A federation's folder: certificates, keys, settings, and what a client allows."""

from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flwr.cli.supernode.register import try_load_public_key

from instahide_fl.config import Config
from instahide_fl.deployment.certificates import (
    Pair,
    new_authority,
    new_server_certificate,
    subject_name,
)
from instahide_fl.deployment.federation import FederationConfig, open_federation
from instahide_fl.deployment.federation_files import (
    add_client,
    create_federation,
    remove_client,
    renew_certificate,
)
from instahide_fl.deployment.pinning import pin_code
from instahide_fl.deployment.policy import (
    check_settings,
    read_policy,
)
from instahide_fl.errors import ConfigError, OutputError
from tests.library.test_client_policy import policy

HASH = "ab" * 32


def federation(path, **changes):
    values = {"name": "lungs", "hosts": ["localhost"], "clients": ["north", "south"]}
    return create_federation(path, FederationConfig(**{**values, **changes}), HASH)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return federation(tmp_path_factory.mktemp("made") / "federation")


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def handshake(server, authority, host):
    """TLS between two ends in memory; raises what a client's end raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    there = context.wrap_bio(to_server, to_client, server_side=True)
    trusting = ssl.create_default_context(cafile=authority)
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    here = trusting.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(3):
        for end in (here, there):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return here.version()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_client_accepts_the_server_by_each_of_its_names(made, host):
    assert handshake(made.server, made.client("north") / "ca.crt", host) == "TLSv1.3"


def test_a_client_refuses_another_name_and_another_authority(made, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(made.server, made.client("north") / "ca.crt", "example.org")
    (tmp_path / "other.crt").write_bytes(new_authority("lungs").public)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made.server, tmp_path / "other.crt", "localhost")


def test_a_client_refuses_an_expired_certificate(tmp_path):
    long_ago = datetime.now(UTC) - timedelta(days=60)
    authority = new_authority("lungs")
    expired = new_server_certificate(authority, ["localhost"], 30, long_ago)
    (tmp_path / "ca.crt").write_bytes(authority.public)
    (tmp_path / "server.crt").write_bytes(expired.public)
    (tmp_path / "server.key").write_bytes(expired.private)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(tmp_path, tmp_path / "ca.crt", "localhost")


@pytest.mark.parametrize("host", ["", "a b", "host:9443", "-x.org", "1.2.3", "ü.org"])
def test_what_is_no_host_is_refused(host):
    with pytest.raises(ConfigError, match="--host must be"):
        subject_name(host)


def test_an_authority_signs_with_its_own_key_only():
    one, other = new_authority("one"), new_authority("other")
    with pytest.raises(ConfigError, match=r"not the key of authority/ca\.crt"):
        new_server_certificate(Pair(one.private, other.public), ["localhost"])


def test_node_keys_are_what_flower_and_ssh_read(made):
    public = try_load_public_key(made.registered_key("north"))
    private = serialization.load_ssh_private_key(
        (made.client("north") / "node.key").read_bytes(), None
    )
    assert private.curve.name == "secp384r1"
    assert public in (
        private.public_key().public_bytes(encoding, form)
        for encoding, form in (
            (
                serialization.Encoding.PEM,
                serialization.PublicFormat.SubjectPublicKeyInfo,
            ),
            (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH),
        )
    )
    if shutil.which("ssh-keygen"):
        command = ["ssh-keygen", "-y", "-f", str(made.client("north") / "node.key")]
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
        registered = made.registered_key("north").read_text()
        assert printed.stdout.split()[:2] == registered.split()[:2]


def test_a_client_gets_what_it_needs_and_nothing_else(made):
    own = made.client("north")
    assert {path.name for path in own.iterdir()} == {
        *("client.toml", "ca.crt", "node.key", "README.md", "peers")
    }
    # Of the others, the public keys that the server knows.
    pinned = own / "peers" / "south.pub"
    assert list((own / "peers").iterdir()) == [pinned]
    assert pinned.read_bytes() == made.registered_key("south").read_bytes()
    keys = {(made.client(name) / "node.key").read_bytes() for name in ("north",)}
    keys |= {(made.client("south") / "node.key").read_bytes()}
    assert len(keys) == 2
    assert b"south" not in b"".join(
        path.read_bytes() for path in own.iterdir() if path.is_file()
    )


def test_nobody_else_can_read_any_of_it(made):
    for path in [made.path, *made.path.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_federation_reads_back_and_is_never_overwritten(made):
    assert open_federation(made.path) == made
    assert made.config.server == "localhost:9443"
    key = (made.server / "server.key").read_bytes()
    with pytest.raises(OutputError, match="keys are never overwritten"):
        federation(made.path)
    assert (made.server / "server.key").read_bytes() == key


def test_a_failed_start_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "instahide_fl.deployment.federation_files.operator_readme", fails
    )
    with pytest.raises(OutputError, match="No space left"):
        federation(tmp_path / "federation")
    assert list(tmp_path.iterdir()) == []


def test_a_removed_client_leaves_nothing_with_the_server(tmp_path):
    made = federation(tmp_path / "f")
    first, *others = made.config.clients
    left = remove_client(made.path, first)
    assert left.config.clients == others
    assert not left.registered_key(first).exists()
    assert left.client(first).is_dir()
    assert open_federation(made.path) == left
    with pytest.raises(ConfigError, match="has no client"):
        remove_client(made.path, first)


def test_a_client_is_added_and_the_others_keep_their_keys(tmp_path):
    made = federation(tmp_path / "f")
    before = {path: path.read_bytes() for path in (made.path / "clients").rglob("*.*")}
    added = add_client(made.path, "west", HASH)
    assert open_federation(made.path) == added
    assert added.config.clients == ["north", "south", "west"]
    assert added.registered_key("west").is_file()
    assert {path.name for path in added.client("west").iterdir()} == {
        path.name for path in added.client("north").iterdir()
    }
    assert all(path.read_bytes() == content for path, content in before.items())
    test_nobody_else_can_read_any_of_it(added)
    with pytest.raises(ConfigError, match="has a client West already"):
        add_client(made.path, "West", HASH)


def test_a_renewed_certificate_is_of_the_same_authority(tmp_path):
    made = federation(tmp_path / "f")
    old = certificate(made.server / "server.crt")
    renew_certificate(made.path, 10)
    new = certificate(made.server / "server.crt")
    assert new.serial_number != old.serial_number
    assert new.not_valid_after_utc < old.not_valid_after_utc
    assert handshake(made.server, made.client("north") / "ca.crt", "localhost")
    shutil.rmtree(made.authority)
    with pytest.raises(ConfigError, match="put authority/ back"):
        renew_certificate(made.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": ["7"]}, "not a number alone"),
        ({"clients": ["../north"]}, "letters, digits"),
        ({"clients": ["north", "North"]}, "clients must be different names"),
        ({"hosts": []}, "hosts must be one name"),
        ({"hosts": ["a:1"]}, "without a port"),
        ({"fleet_port": 70000}, "fleet-port must be"),
        ({"superlink_port": 9443}, "superlink-port must differ"),
    ],
)
def test_a_wrong_federation_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        federation(tmp_path / "f", **changes)
    assert not (tmp_path / "f").exists()


def test_a_folder_that_is_none_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="deploy init made"):
        open_federation(tmp_path)
    (tmp_path / "federation.toml").write_text("hosts = [")
    with pytest.raises(ConfigError, match="not valid TOML"):
        open_federation(tmp_path)
    (tmp_path / "federation.toml").write_text('hosts = ["localhost"]')
    with pytest.raises(ConfigError, match="name is missing"):
        open_federation(tmp_path)


def test_a_new_client_allows_the_defaults_and_pins_the_code(made):
    found = read_policy(made.client("north"))
    assert (found.name, found.code_hash) == ("north", HASH)
    assert found.limits == policy(limits={"pinned_peers": True}).limits
    check_settings(found, Config())


def test_pinning_keeps_the_rest_of_the_settings(tmp_path):
    folder = federation(tmp_path / "f").client("north")
    text = (folder / "client.toml").read_text()
    assert pin_code(folder, "CD" * 32) == (HASH, "cd" * 32)
    assert (folder / "client.toml").read_text() == text.replace(HASH, "cd" * 32)
    assert stat.S_IMODE((folder / "client.toml").stat().st_mode) == 0o600
    (folder / "client.toml").write_text(text.replace("code-hash", "# code-hash"))
    assert pin_code(folder, HASH) == ("", HASH)
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        pin_code(folder, "latest")


def test_the_commands_of_an_operator(command, tmp_path):
    made = command("deploy", "init", "f", "--clients", "north", "south", "--host", "h")
    assert made[0] == 0, made
    assert open_federation(tmp_path / "f").config.clients == ["north", "south"]
    again = command("deploy", "init", "f", "--clients", "north")
    assert (again[0], "exists already" in again[2]) == (2, True)
    assert command("deploy", "add", "f", "west")[0] == 0
    assert command("deploy", "renew", "f", "--days", "30")[0] == 0
    _, printed, _ = command("deploy", "code-hash")
    assert read_policy(tmp_path / "f/clients/west").code_hash == printed.strip()
    assert command("deploy", "pin", "f/clients/west", HASH)[0] == 0
    assert read_policy(tmp_path / "f/clients/west").code_hash == HASH
