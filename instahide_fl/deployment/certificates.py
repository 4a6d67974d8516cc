"""Make a private certificate authority, a server's certificate, and keys of nodes.

Keys are on the curve P-384, one of those that Flower's node authentication takes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from instahide_fl.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1")  # the SuperLink is reached there as well
AUTHORITY_DAYS = 3650
SERVER_DAYS = 730
_CLOCK_SKEW = timedelta(hours=1)  # a certificate begins that much before it is made
_MAX_NAME = 64  # characters of a certificate's common name


@dataclass(frozen=True)
class Pair:
    """A private key and what is public of it, as the bytes of their files.

    Attributes:
        private: The key, not encrypted: PEM, or OpenSSH's format for a node.
        public: A certificate (PEM), or a public key (OpenSSH) for a node.
    """

    private: bytes
    public: bytes


def new_authority(
    name: str, days: int = AUTHORITY_DAYS, now: datetime | None = None
) -> Pair:
    """Make a certificate authority.

    Args:
        name: The federation's name, for the certificate.
        days: How long the certificate is valid.
        now: The time of making it, with a time zone; None for the clock's.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _subject(f"{name} CA")
    usage = _key_usage(signs_certificates=True)
    certificate = (
        _start_certificate(subject, subject, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
            critical=False,
        )
        .sign(key, hashes.SHA384())
    )
    return Pair(_pem(key), certificate.public_bytes(serialization.Encoding.PEM))


def new_server_certificate(
    authority: Pair,
    hosts: Sequence[str],
    days: int = SERVER_DAYS,
    now: datetime | None = None,
) -> Pair:
    """Make a server's key, and a certificate for its names.

    Args:
        authority: The authority that signs the certificate.
        hosts: The names and IP addresses that clients reach the server by; those of
            loopback are added.
        days: How long the certificate is valid.
        now: The time of making it, with a time zone; None for the clock's.

    Raises:
        ConfigError: The authority's key is not the one of its certificate, or a host
            is neither a name nor an address.
    """
    signer, issuer = _load(authority)
    key = ec.generate_private_key(ec.SECP384R1())
    names = [subject_name(host) for host in dict.fromkeys((*hosts, *LOOPBACK))]
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    certificate = (
        _start_certificate(
            _subject(hosts[0]), issuer.subject, key.public_key(), days, now
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                identifier.value
            ),
            critical=False,
        )
        .sign(signer, hashes.SHA384())
    )
    return Pair(_pem(key), certificate.public_bytes(serialization.Encoding.PEM))


def new_node_key(comment: str) -> Pair:
    """Make a SuperNode's key, as `ssh-keygen -t ecdsa -b 384` does.

    Args:
        comment: The client's name, which stands at the end of the public key's line.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return Pair(private, public + f" {comment}\n".encode())


def subject_name(host: str) -> x509.GeneralName:
    """Return a host as a certificate names it.

    Raises:
        ConfigError: The text is neither a host's name nor an IP address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    valid = len(host) <= 253 and host.isascii() and not labels[-1].isdecimal()
    if not valid or not all(map(_is_label, labels)):
        raise ConfigError(
            f"--host must be the name or the IP address that clients reach the server "
            f"by, without a port, got {host!r}"
        )
    return x509.DNSName(host)


def _is_label(text: str) -> bool:
    inner = text.replace("-", "").isalnum()
    return inner and len(text) <= 63 and text[0] != "-" and text[-1] != "-"


def _load(authority: Pair) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key(authority.private, password=None)
        certificate = x509.load_pem_x509_certificate(authority.public)
    except (ValueError, TypeError):
        raise ConfigError(
            "the authority's key or certificate is damaged: put the files of "
            "authority/ back from their backup"
        ) from None
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != certificate.public_key()
    ):
        raise ConfigError(
            "authority/ca.key is not the key of authority/ca.crt: put the two files "
            "back from their backup"
        )
    return key, certificate


def _start_certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    now: datetime | None,
) -> x509.CertificateBuilder:
    begin = now or datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _CLOCK_SKEW)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(common_name: str) -> x509.Name:
    name = common_name[:_MAX_NAME]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
