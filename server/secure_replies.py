"""Clients' replies in secure aggregation, read by the server and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from flwr.app import ConfigRecord, Message

from instahide_fl.aggregation.masking import Vector
from instahide_fl.errors import ProtocolError
from instahide_fl.flower.secure_aggregation import bytes_to_public_key
from instahide_fl.wire.messages import ABOUT
from instahide_fl.wire.secure_aggregation import SIGNATURE

MAX_SECRET_BYTES = 10_000  # a key, a share and a ciphertext are all below 1,000


@dataclass(frozen=True)
class MaskedUpdate:
    """A client's reply in stage 3.

    Attributes:
        vector: u32[N]; it looks uniform to anyone without its masks.
        metrics: The client's figures, its loss left out: "seconds".
    """

    vector: Vector
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class PublicKeys:
    """A client's reply in stage 1.

    Attributes:
        mask: The key that agrees on masks.
        exchange: The key that shares are encrypted for.
        signature: The client's signature of both, for the other clients.
    """

    mask: bytes
    exchange: bytes
    signature: bytes


@dataclass(frozen=True)
class KeyShares:
    """A client's reply in stage 2.

    Attributes:
        ciphertexts: Its secrets' shares by receiver, encrypted.
        signature: Its signature of the cohort's keys, for the other clients.
    """

    ciphertexts: Mapping[str, bytes]
    signature: bytes


def about_record(reply: Message) -> ConfigRecord:
    """Return the record with a reply's values.

    Raises:
        ProtocolError: the reply lacks it.
    """
    record = reply.content.get(ABOUT)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError(f"it lacks the record {ABOUT!r}")
    return record


def secrets_by_client(clients: Sequence[str], secrets: object) -> dict[str, bytes]:
    """Return the bytes for each client from an unchecked list in the same order.

    Raises:
        ProtocolError: it does not hold one short byte string for each client.
    """
    if not isinstance(secrets, list) or len(secrets) != len(clients):
        raise ProtocolError(f"it must hold {len(clients)} secrets, one for each client")
    if not all(
        isinstance(secret, bytes) and len(secret) < MAX_SECRET_BYTES
        for secret in secrets
    ):
        raise ProtocolError("what it holds are not a round's secrets")
    return dict(zip(clients, secrets, strict=True))


def signature_of(values: Mapping[str, Any]) -> bytes:
    """Return the signature in a reply's values; empty if the client has no key.

    Raises:
        ProtocolError: it is something else.
    """
    signature = values[SIGNATURE]
    if isinstance(signature, bytes) and len(signature) < MAX_SECRET_BYTES:
        return signature
    raise ProtocolError("it holds no signature")


def check_public_key(key: object) -> None:
    """Check that bytes are a public key.

    Raises:
        ProtocolError: they are not.
    """
    try:
        if not isinstance(key, bytes) or len(key) >= MAX_SECRET_BYTES:
            raise ValueError
        bytes_to_public_key(key)
    except (ValueError, UnsupportedAlgorithm):
        raise ProtocolError("it holds no public key") from None
