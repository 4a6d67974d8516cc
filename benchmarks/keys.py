"""Certificates and node keys of a federation on loopback, made on the spot."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey


def write_certificates(
    folder: Path, days: float = 30, starts: float = -1, address: str = "127.0.0.1"
) -> None:
    """Write ca.crt, server.crt and server.key.

    Args:
        folder: that they come into.
        days: from now that the server's certificate is valid; may be negative.
        starts: days from now when it begins to be.
        address: IP address that it is made out to.
    """
    authority, key = ec.generate_private_key(ec.SECP384R1()), _new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "federation CA")])
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "federation server")])
    root = (
        _certificate(name, name, authority.public_key(), 3650, -3650)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA384())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    signed = (
        _certificate(own, name, key.public_key(), days, starts)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .sign(authority, hashes.SHA384())
    )
    pem = serialization.Encoding.PEM
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.crt").write_bytes(root.public_bytes(pem))
    (folder / "server.crt").write_bytes(signed.public_bytes(pem))
    _write_secret(folder / "server.key", key, serialization.PrivateFormat.PKCS8)


def write_node_key(path: Path) -> None:
    """Write a SuperNode's key, and its public one beside it (.pub)."""
    key = _new_key()
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_secret(path, key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    path.with_name(f"{path.name}.pub").write_bytes(public + b"\n")


def _new_key() -> Key:
    return ec.generate_private_key(ec.SECP384R1())


def _write_secret(path: Path, key: Key, form: serialization.PrivateFormat) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, form, serialization.NoEncryption()
        )
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: float,
    starts: float,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=starts))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
