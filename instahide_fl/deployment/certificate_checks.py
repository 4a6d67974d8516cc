"""Check what proves an identity: certificates, node keys, permissions."""

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

from instahide_fl.deployment.check_results import CheckResult, failed, passed
from instahide_fl.errors import ConfigError

RENEWAL_PERIOD = datetime.timedelta(days=30)  # before the end of a certificate


def check_secret(subject: str, path: Path) -> Iterator[CheckResult]:
    """Check that only its owner can read a secret file."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield failed(subject, f"{path} can be read by others: chmod 600 {path}")
    else:
        yield passed(subject, f"only its owner can read {path.name}")


def check_certificate(
    subject: str, path: Path, now: datetime.datetime | None = None
) -> Iterator[CheckResult]:
    """Check that a certificate is valid now, and for a while.

    Args:
        subject: The subject of the results.
        path: The PEM file.
        now: The time, with a time zone; None for the clock's.

    Raises:
        ConfigError: The file is no certificate.
    """
    certificate, now = load_certificate(path), now or _now()
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        yield failed(
            subject, f"valid from {begins:%Y-%m-%d %H:%M} UTC: check the clock"
        )
    elif now > ends:
        yield failed(subject, f"expired on {ends:%Y-%m-%d}: make a new one ({path})")
    elif now + RENEWAL_PERIOD > ends:
        yield failed(subject, f"expires on {ends:%Y-%m-%d}: renew it now ({path})")
    else:
        yield passed(subject, f"valid until {ends:%Y-%m-%d}")


def check_chain(certificate: Path, authority: Path, key: Path) -> Iterator[CheckResult]:
    """Check that a server's certificate is signed by the CA, and goes with its key.

    Args:
        certificate: The file of the server's certificate.
        authority: The file of the CA's certificate.
        key: The file of the server's private key.

    Raises:
        ConfigError: A file is missing, or is no certificate or key.
    """
    issued, root = load_certificate(certificate), load_certificate(authority)
    try:
        issued.verify_directly_issued_by(root)
        yield passed("chain", f"{certificate.name} is signed by {authority.name}")
    except (InvalidSignature, ValueError, TypeError):
        yield failed(
            "chain",
            f"{certificate} is not signed by {authority}: clients will refuse it; put "
            f"the certificate back that was made with this CA",
        )
    public = _public_bytes(load_private_key(key).public_key())
    if public == _public_bytes(issued.public_key()):
        yield passed("server key", f"{key.name} goes with {certificate.name}")
    else:
        yield failed("server key", f"{key} is not the key of {certificate}")


def check_names(certificate: Path, hosts: Sequence[str]) -> Iterator[CheckResult]:
    """Check that a certificate is made out to all names of a server.

    Args:
        certificate: The file of the server's certificate.
        hosts: The names and IP addresses that clients reach the server by.

    Raises:
        ConfigError: The file is no certificate.
    """
    names = names_of(load_certificate(certificate))
    if absent := [host for host in hosts if host not in names]:
        yield failed(
            "names",
            f"the certificate is made out to {', '.join(names) or 'nobody'}, not to "
            f"{', '.join(absent)}: clients that connect to that name will refuse it",
        )
    else:
        yield passed("names", f"made out to {', '.join(names)}")


def check_node_key(path: Path, registered: Path | None = None) -> Iterator[CheckResult]:
    """Check a SuperNode's key: permissions, curve, and that the server knows it.

    Args:
        path: The file of the private key.
        registered: The file of the public key that the server knows; None where it is
            not at hand.

    Raises:
        ConfigError: The private key's file is missing, or is no key.
    """
    key = load_private_key(path)
    yield from check_secret("node key", path)
    curve = key.curve.name
    if curve not in ("secp256r1", "secp384r1", "secp521r1"):
        yield failed("node key", f"{path} is on {curve}: Flower takes NIST curves only")
    else:
        yield passed("node key", f"elliptic curve {curve}")
    if registered is None or not registered.exists():
        return
    try:
        public = serialization.load_ssh_public_key(registered.read_bytes())
        same = _public_bytes(public) == _public_bytes(key.public_key())
    except (ValueError, UnsupportedAlgorithm):
        yield failed("node key", f"{registered} is no public key")
        return
    yield (
        passed("node key", f"is the one of {registered.name}")
        if same
        else failed(
            "node key",
            f"{path} is not the key that {registered} registers: the server will "
            f"refuse this client; put the key back, or register its public key",
        )
    )


def load_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate.

    Raises:
        ConfigError: The file is missing, or is no certificate.
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
        ConfigError: The file is missing, or is no such key.
    """
    try:
        data = path.read_bytes()
        load = (
            serialization.load_ssh_private_key
            if b"OPENSSH" in data
            else serialization.load_pem_private_key
        )
        key = load(data, password=None)
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
        subject = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except x509.ExtensionNotFound:
        return []
    names = subject.get_values_for_type(x509.DNSName)
    # Networks are left out, which the type admits as well.
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        address
        for address in subject.get_values_for_type(x509.IPAddress)
        if isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    return [*names, *map(str, addresses)]


def _public_bytes(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    encoded: bytes = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
