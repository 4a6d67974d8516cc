"""The other clients' public keys, which a client has pinned, and signatures by them.

A client's folder holds its own private key (`node.key`) and, in `peers/`, the public
keys of the other clients as they were when it was enrolled. With them it recognises the
others in secure aggregation: the server, which passes all messages on, cannot put
clients of its own invention in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
)

from instahide_fl.errors import ConfigError

PEERS_FOLDER = "peers"
NODE_KEY = "node.key"


def sign(folder: Path, statement: bytes) -> bytes:
    """Sign a statement with a client's own key.

    Args:
        folder: The client's folder.
        statement: What the client states.

    Returns:
        An ECDSA signature; empty if the folder holds no elliptic key.
    """
    try:
        key = load_ssh_private_key((folder / NODE_KEY).read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return b""
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return b""
    return key.sign(statement, ec.ECDSA(hashes.SHA384()))


def read_peers(folder: Path) -> dict[str, ec.EllipticCurvePublicKey]:
    """Return the pinned public keys of the other clients, by name.

    Args:
        folder: The client's folder.

    Raises:
        ConfigError: A file is no public key of a client.
    """
    keys = {}
    for path in sorted((folder / PEERS_FOLDER).glob("*.pub")):
        try:
            key = load_ssh_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"cannot read the public key {path}: {error}") from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigError(f"{path} is no public key of an elliptic curve")
        keys[path.stem] = key
    return keys


def has_signed(
    peers: Mapping[str, ec.EllipticCurvePublicKey],
    name: str,
    signature: object,
    statement: bytes,
) -> bool:
    """Tell whether a client whose key is pinned has signed a statement.

    Args:
        peers: The pinned public keys by name.
        name: The client's name.
        signature: What was sent as its signature.
        statement: What it is said to state.
    """
    if name not in peers or not isinstance(signature, bytes):
        return False
    try:
        peers[name].verify(signature, statement, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True
