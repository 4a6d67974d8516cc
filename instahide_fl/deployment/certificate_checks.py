"""Checks of what proves an identity: certificates, node keys, permissions."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from instahide_fl.deployment.check_results import Finding, bad, good
from instahide_fl.errors import ConfigError

SOON = datetime.timedelta(days=30)  # before its end a certificate is to be renewed


def check_secret(subject: str, path: Path) -> Iterator[Finding]:
    """Look at a secret file's permissions."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield bad(subject, f"{path} can be read by others: chmod 600 {path}")
    else:
        yield good(subject, f"only its owner can read {path.name}")


def check_certificate(
    subject: str, path: Path, now: datetime.datetime | None = None
) -> Iterator[Finding]:
    """Look at when a certificate begins and ends to be valid.

    Args:
        subject: for the report.
        path: of the PEM file.
        now: with a time zone; None for the clock's.

    Raises:
        ConfigError: it is no certificate.
    """
    certificate, now = load_certificate(path), now or _now()
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        yield bad(subject, f"valid from {begins:%Y-%m-%d %H:%M} UTC: check the clock")
    elif now > ends:
        yield bad(subject, f"expired on {ends:%Y-%m-%d}: make a new one ({path})")
    elif now + SOON > ends:
        yield bad(subject, f"expires on {ends:%Y-%m-%d}: renew it now ({path})")
    else:
        yield good(subject, f"valid until {ends:%Y-%m-%d}")


def check_chain(certificate: Path, authority: Path, key: Path) -> Iterator[Finding]:
    """Look at whether a server's certificate is the CA's, and goes with its key.

    Raises:
        ConfigError: a file is not what it should be.
    """
    own, root = load_certificate(certificate), load_certificate(authority)
    try:
        own.verify_directly_issued_by(root)
        yield good("chain", f"{certificate.name} is signed by {authority.name}")
    except (InvalidSignature, ValueError, TypeError):
        yield bad(
            "chain",
            f"{certificate} is not signed by {authority}: clients will refuse it; put "
            f"the certificate back that was made with this CA",
        )
    pair = _public_bytes(load_private_key(key).public_key())
    if pair == _public_bytes(own.public_key()):
        yield good("server key", f"{key.name} goes with {certificate.name}")
    else:
        yield bad("server key", f"{key} is not the key of {certificate}")


def check_names(certificate: Path, hosts: Sequence[str]) -> Iterator[Finding]:
    """Look at whether a certificate is made out to all names of a server.

    Raises:
        ConfigError: it is no certificate.
    """
    found = names_of(load_certificate(certificate))
    if absent := [host for host in hosts if host not in found]:
        yield bad(
            "names",
            f"the certificate is made out to {', '.join(found) or 'nobody'}, not to "
            f"{', '.join(absent)}: clients that connect to that name will refuse it",
        )
    else:
        yield good("names", f"made out to {', '.join(found)}")


def check_node_key(path: Path, registered: Path | None = None) -> Iterator[Finding]:
    """Look at a SuperNode's key.

    Args:
        path: of the private key.
        registered: the public one that the server knows, where it is at hand.

    Raises:
        ConfigError: a file is no key.
    """
    key = load_private_key(path)
    yield from check_secret("node key", path)
    curve = key.curve.name
    if curve not in ("secp256r1", "secp384r1", "secp521r1"):
        yield bad("node key", f"{path} is on {curve}: Flower takes NIST curves only")
    else:
        yield good("node key", f"elliptic curve {curve}")
    if registered is None or not registered.exists():
        return
    try:
        known = serialization.load_ssh_public_key(registered.read_bytes())
        same = _public_bytes(known) == _public_bytes(key.public_key())
    except (ValueError, UnsupportedAlgorithm):
        yield bad("node key", f"{registered} is no public key")
        return
    yield (
        good("node key", f"is the one of {registered.name}")
        if same
        else bad(
            "node key",
            f"{path} is not the key that {registered} registers: the server will "
            f"refuse this client; put the key back, or register its public key",
        )
    )


def load_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate.

    Raises:
        ConfigError: it is missing or none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except ValueError:
        raise ConfigError(f"{path} is no certificate in PEM format") from None


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key on an elliptic curve, in PEM or OpenSSH format.

    Raises:
        ConfigError: it is missing or none.
    """
    try:
        data = path.read_bytes()
        ssh = b"OPENSSH" in data
        read = (
            serialization.load_ssh_private_key
            if ssh
            else serialization.load_pem_private_key
        )
        key = read(data, password=None)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is no private key without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path} is no key on an elliptic curve: make one with ssh-keygen -t ecdsa "
            f'-b 384 -N "" -f {path}'
        )
    return key


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return the host names and addresses that a certificate is made out to."""
    try:
        found = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except x509.ExtensionNotFound:
        return []
    names = found.get_values_for_type(x509.DNSName)
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        one
        for one in found.get_values_for_type(x509.IPAddress)
        if isinstance(one, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    return [*names, *map(str, addresses)]


def _public_bytes(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    found: bytes = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
