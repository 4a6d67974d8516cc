"""What a client checks of a round's cohort in secure aggregation.

The server passes all messages on, so it could invent clients, leave some out, or ask
twice. Masks hide an update among those of the cohort, whoever these are: so the client
looks at who they are, counts them, and uses each of its secrets once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from clients.node import ClientNode
from instahide_fl.deployment.ledger import changed_ledger
from instahide_fl.deployment.peers import has_signed, read_peers, sign
from instahide_fl.deployment.policy import CLIENT_FILE
from instahide_fl.errors import ProtocolError
from instahide_fl.wire.refusals import refused
from instahide_fl.wire.secure_aggregation import (
    CLIENTS,
    EXCHANGE_KEYS,
    MASK_KEYS,
    ROUND,
    RoundKeys,
    own_keys_statement,
    shares_needed,
)


def broken(text: str) -> ProtocolError:
    """Return the error of a server that does not keep to the protocol."""
    return refused(ProtocolError(text), "secure-aggregation")


def signed(node: ClientNode, statement: bytes) -> bytes:
    """Return a client's signature; empty if it has no folder with a key."""
    return b"" if node.state is None else sign(node.state.parent, statement)


def read_keys(fields: Mapping[str, Any]) -> RoundKeys:
    """Read a cohort's public keys from the values of a message.

    Raises:
        ProtocolError: they are not two different keys for each of several clients.
    """
    clients, masks, exchanges = (
        fields[name] for name in (CLIENTS, MASK_KEYS, EXCHANGE_KEYS)
    )
    lists = (clients, masks, exchanges)
    if not (
        all(isinstance(values, list) for values in lists)
        and all(isinstance(name, str) for name in clients)
        and all(isinstance(key, bytes) for key in (*masks, *exchanges))
        and len(clients) == len(set(clients)) == len(masks) == len(exchanges)
        and len({*masks, *exchanges}) == 2 * len(clients)
    ):
        raise broken("the public keys of a round are not each client's own")
    return RoundKeys(int(fields[ROUND]), clients, masks, exchanges)


def check_cohort(
    node: ClientNode, keys: RoundKeys, own_keys: Sequence[bytes], signatures: object
) -> int:
    """Check who is in a cohort before secrets are shared with it.

    Args:
        node: The client.
        keys: The cohort's public keys, as the server passed them on.
        own_keys: The client's own public keys, for masks and for exchange.
        signatures: What the server passed on as each client's signature of its keys.

    Returns:
        The client's own position in the cohort.

    Raises:
        ProtocolError: the client's keys are not its own, or the cohort is too small or
            holds a client whose key is not pinned.
    """
    if node.client not in keys.clients:
        raise broken("the public keys of a round are not each client's own")
    position = keys.clients.index(node.client)
    if [keys.mask_keys[position], keys.exchange_keys[position]] != list(own_keys):
        raise broken("the public keys of a round are not each client's own")
    _check_size(node, len(keys.clients), len(keys.clients))
    statements = {
        name: own_keys_statement(keys.round, name, mask, exchange)
        for name, mask, exchange in zip(
            keys.clients, keys.mask_keys, keys.exchange_keys, strict=True
        )
    }
    _check_signatures(node, statements, signatures)
    return position


def check_senders(
    node: ClientNode, keys: RoundKeys, clients: object, signatures: object
) -> list[int]:
    """Check whose shares have come before the update is masked.

    Args:
        node: The client.
        keys: The cohort's public keys.
        clients: What the server says are the names of the other clients that shared.
        signatures: What it passed on as each one's signature of all keys.

    Returns:
        Their positions in the cohort.

    Raises:
        ProtocolError: they are too few, not of the cohort, or saw other keys.
    """
    positions = _positions(keys.clients, clients)
    if keys.clients.index(node.client) in positions:
        raise broken("a client's own shares were passed on to it")
    _check_size(node, len(positions) + 1, len(keys.clients))
    statement = keys.statement()
    statements = {keys.clients[position]: statement for position in positions}
    _check_signatures(node, statements, signatures)
    return positions


def check_survivors(
    node: ClientNode,
    peers: Sequence[str],
    senders: Sequence[int],
    survivors: object,
    dropped: object,
) -> tuple[list[int], list[int]]:
    """Check of whom the server asks for a share of which secret.

    Args:
        node: The client.
        peers: Names of the cohort's clients.
        senders: Positions of the other clients that shared their secrets.
        survivors: What the server says are the names of those whose update came.
        dropped: What it says are the names of those whose update did not.

    Returns:
        The positions of the survivors, and of the dropped.

    Raises:
        ProtocolError: both secrets of a client are asked for, or its own although its
            update was sent, or the sum is of too few clients.
    """
    there, gone = _positions(peers, survivors), _positions(peers, dropped)
    own = peers.index(node.client)
    needed = shares_needed(len(peers), node.config.secure_aggregation.threshold)
    if set(there) & set(gone) or len(there) < needed or own not in there:
        raise broken(
            f"client {node.client} refuses to unmask: {len(there)} of {len(peers)} "
            f"updates came (secure-aggregation.threshold asks for {needed}), and no "
            f"client may be both there and gone"
        )
    if not {*there, *gone} <= {own, *senders}:
        raise broken("a client is said to have sent an update without its shares")
    _check_size(node, len(there), len(peers))
    return there, gone


def check_largest_weight(node: ClientNode, weight: float, largest: float) -> None:
    """Refuse a largest weight beside which some client's update would vanish.

    Updates travel as integers, after each weight is divided by the largest. Divided by
    1e12 they are zero, and what the server then reads is the one update that was not.

    Raises:
        ProtocolError: the largest weight is smaller than the client's own, or so large.
    """
    if node.config.server.aggregation == "mean":
        low = high = 1.0
    else:
        low, high = weight, weight * node.limits.max_weight_ratio
    if not low <= largest <= high:
        error = ProtocolError(
            f"client {node.client} refuses a largest weight of {largest:g} beside its "
            f"own of {weight:g}: it allows {low:g} to {high:g} ({CLIENT_FILE}, "
            f"limits.max-weight-ratio)"
        )
        raise refused(error, "weights")


def claim_once(node: ClientNode, state: dict[str, Any], use: str) -> None:
    """Use a round's secrets for one purpose, for the only time.

    For a client with a folder that is on the disk before it answers: what Flower
    stores of a node is not, and messages may be answered side by side.

    Args:
        node: The client.
        state: The round's secrets; the use is noted in it.
        use: The purpose: "shares", "update" or "unmask".

    Raises:
        ProtocolError: they were used for it before.
    """
    note = f"used-for-{use}"
    fresh = note not in state
    state[note] = True
    if fresh and node.state is not None:
        secret = bytes(state["seed"]) + use.encode()
        with changed_ledger(node.state) as ledger:
            fresh = ledger.claim(hashlib.sha256(secret).hexdigest()[:32])
    if not fresh:
        raise broken(
            f"client {node.client} refuses to answer twice: the server asks again for "
            f"what a round's keys give once ({use})"
        )


def _check_size(node: ClientNode, clients: int, cohort: int) -> None:
    """Refuse a number of clients among which an update does not hide.

    Raises:
        ProtocolError: they are fewer than the threshold or the client asks for.
    """
    threshold = node.config.secure_aggregation.threshold
    needed = shares_needed(cohort, threshold)
    if clients < max(needed, node.limits.min_cohort):
        error = ProtocolError(
            f"client {node.client} hides among {clients} clients of {cohort}: "
            f"secure-aggregation.threshold asks for {needed}, {CLIENT_FILE} for "
            f"{node.limits.min_cohort} (limits.min-cohort)"
        )
        raise refused(error, "cohort")


def _check_signatures(
    node: ClientNode, statements: Mapping[str, bytes], signatures: object
) -> None:
    """Check that the others, whose keys are pinned, have signed their part.

    Args:
        node: The client.
        statements: What each client states, by name; its own needs no signature.
        signatures: What was passed on, in the same order.

    Raises:
        ProtocolError: a client is not pinned, or has not signed this.
    """
    if not isinstance(signatures, list) or len(signatures) != len(statements):
        raise broken("a round's signatures are not one for each client")
    if not node.limits.pinned_peers or node.state is None:
        return
    peers = read_peers(node.state.parent)
    for (name, statement), signature in zip(
        statements.items(), signatures, strict=True
    ):
        if name == node.client or has_signed(peers, name, signature, statement):
            continue
        reason = "has not signed" if name in peers else "has no key in peers/"
        error = ProtocolError(
            f"client {node.client} refuses this round: client {name} {reason} "
            f"({CLIENT_FILE}, limits.pinned-peers)"
        )
        raise refused(error, "cohort")


def _positions(peers: Sequence[str], names: object) -> list[int]:
    """Return the positions of different clients of a cohort.

    Raises:
        ProtocolError: a name is not of the cohort, or there twice.
    """
    if (
        not isinstance(names, list)
        or len(set(names)) < len(names)
        or not set(names) <= set(peers)
    ):
        raise broken("the server names clients that are not of the cohort, or twice")
    return [peers.index(name) for name in names]
