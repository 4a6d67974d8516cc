"""The messages of secure aggregation.

A round has four stages (Bonawitz et al., CCS 2017, figure 4; without the consistency
check against a server that lies):

1. every client sends two public keys;
2. it gets all public keys and sends shares of its secrets, encrypted for each other
   client, which the server passes on;
3. it trains and sends its masked update;
4. the clients that are still there send shares of the seeds of the survivors, whose
   masked update came, and of the private keys of the dropped clients, whose did not:
   never both of one client.

A client's update carries two kinds of masks: one that it shares with each other client,
from the key that the two agreed on, and one of its own, from its seed. The first kind
cancels in the sum of all; the server needs a dropped client's private key to compute
those that did not. The seed's mask keeps an update hidden if it comes late, after the
server has got the private key. So whoever held both secrets of a client could read its
update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from instahide_fl.errors import ProtocolError
from instahide_fl.wire.messages import check_schema

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
        raise ProtocolError(
            f"secure aggregation needs at least 3 clients in a round, got {clients}: "
            f"the sum of two gives each of them the other's update"
        )
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
