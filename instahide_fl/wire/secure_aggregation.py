"""The messages of secure aggregation.

A round has four stages (Bonawitz et al., CCS 2017, figure 4):

1. every client sends two public keys, signed;
2. it gets all public keys and sends shares of its secrets, encrypted for each other
   client, and its signature of all these keys, which the server passes on;
3. it trains and sends its masked update;
4. the clients that are still there send shares of the seeds of the survivors, whose
   masked update came, and of the private keys of the dropped clients, whose did not:
   never both of one client.

A client's update carries two kinds of masks: one that it shares with each other client,
from the key that the two agreed on, and one of its own, from its seed. Masks also
depend on all that the server sent for the round: if it sends other parameters to some
clients, so that these send nothing that it does not know already, the masks do not
cancel (against Pasquini, Francati and Ateniese, "Eluding Secure Aggregation in
Federated Learning via Model Inconsistency", CCS 2022). The first kind
cancels in the sum of all; the server needs a dropped client's private key to compute
those that did not. The seed's mask keeps an update hidden if it comes late, after the
server has got the private key. So whoever held both secrets of a client could read its
update.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.errors import ProtocolError
from instahide_fl.wire.messages import SCHEMA, RoundInstruction, check_schema
from instahide_fl.wire.refusals import refused

PUBLIC_KEYS = "public_keys"  # the query of stage 1
KEY_SHARES = "key_shares"  # the query of stage 2
MASKS = "masks"  # the record that comes with the parameters in stage 3
UNMASK = "unmask"  # the query of stage 4

# Names of values in these messages.
ROUND = "round"
CLIENTS = "clients"
MASK_KEYS = "mask-keys"
EXCHANGE_KEYS = "exchange-keys"
CIPHERTEXTS = "ciphertexts"
LARGEST_WEIGHT = "largest-weight"
SIGNATURE = "signature"
SIGNATURES = "signatures"
SURVIVORS = "survivors"
DROPPED = "dropped"
SHARES = "shares"
VECTOR = "vector"


def shares_needed(clients: int, threshold: float) -> int:
    """Return how many clients have to stay to the end.

    Args:
        clients: Number of clients in the cohort.
        threshold: The required share of them; more than a half, so that no two disjoint
            groups can both be complete.

    Raises:
        ProtocolError: the cohort is too small to hide anybody.
    """
    if clients < 3:
        error = ProtocolError(
            f"secure aggregation needs at least 3 clients in a round, got {clients}: "
            f"the sum of two gives each of them the other's update"
        )
        raise refused(error, "cohort")
    return max(2, math.ceil(threshold * clients))


def required_values(values: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a message's values after checking that they are complete.

    Args:
        values: The record's values.
        *names: Names of the values that must be there.

    Raises:
        ProtocolError: the message is of another version, or lacks a value.
    """
    check_schema(values)
    if absent := [name for name in names if name not in values]:
        raise ProtocolError(f"a message of secure aggregation lacks {absent[0]}")
    return values


@dataclass(frozen=True)
class RoundKeys:
    """The public keys of a round's cohort, each list in the order of its clients.

    Attributes:
        round: 1, 2, ...
        clients: The clients' names.
        mask_keys: Public keys that agree on masks.
        exchange_keys: Public keys that encrypt shares.
    """

    round: int
    clients: Sequence[str]
    mask_keys: Sequence[bytes]
    exchange_keys: Sequence[bytes]

    def statement(self) -> bytes:
        """Return what a client signs in stage 2: that it saw these keys."""
        return _as_bytes(
            "keys of a cohort",
            SCHEMA,
            self.round,
            list(self.clients),
            [key.hex() for key in (*self.mask_keys, *self.exchange_keys)],
        )


def own_keys_statement(
    round_number: int, client: str, mask_key: bytes, exchange_key: bytes
) -> bytes:
    """Return what a client signs in stage 1: that these keys are its own.

    Args:
        round_number: 1, 2, ...
        client: The client's name.
        mask_key: Its public key that agrees on masks.
        exchange_key: Its public key that shares are encrypted for.
    """
    keys = [mask_key.hex(), exchange_key.hex()]
    return _as_bytes("keys of a client", SCHEMA, round_number, client, keys)


def round_digest(
    config: Config,
    instruction: RoundInstruction,
    arrays: Mapping[str, Tensor],
    keys: RoundKeys,
    largest_weight: float,
) -> bytes:
    """Return a digest of all that a client's update depends on but its images.

    Args:
        config: The run's settings.
        instruction: What the server sent with the arrays.
        arrays: The global arrays by name.
        keys: The cohort's public keys.
        largest_weight: What all weights are divided by.
    """
    tables = config.model_dump(by_alias=True)
    # A path that each side has for itself.
    del tables["model"]["initial-weights"]
    names = ("instahide", "model", "train", "secure-aggregation", "defense")
    settings = {name: tables[name] for name in names}
    digest = hashlib.blake2b(digest_size=32)
    digest.update(keys.statement())
    rule = config.server.aggregation
    values = instruction.to_values()
    digest.update(_as_bytes("round", settings, rule, values, largest_weight))
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous().numpy()
        digest.update(_as_bytes(name, str(array.dtype), list(array.shape)))
        digest.update(array.tobytes())
    return digest.digest()


def bound_secret(secret: bytes, digest: bytes) -> bytes:
    """Return the seed of a mask for one round's content, 32 bytes.

    Args:
        secret: What two clients agreed on, or a client's own seed.
        digest: The digest of what the server sent (`round_digest`).
    """
    return hmac.digest(secret, digest, "sha256")


def _as_bytes(*values: object) -> bytes:
    """Return values as bytes that no other values give."""
    return json.dumps(values, sort_keys=True).encode() + b"\n"
