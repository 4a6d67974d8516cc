"""Secure aggregation on the client's side: keys, shares, and the masked update.

The stages are in `instahide_fl.wire.secure_aggregation`. Key agreement, encryption and
secret sharing are Flower's; the masks are in `instahide_fl.aggregation.masking`.
Secrets come from the operating system, in simulations too: modulo 2**32 they cancel
exactly in the sum, so the same run seed still gives the same bits.

Clients are named by their position among the round's peers: Flower's shares carry
integers, and of each pair the client that comes first adds their common mask and the
other subtracts it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.cohort_checks import (
    broken,
    check_cohort,
    check_largest_weight,
    check_senders,
    check_survivors,
    claim_once,
    read_keys,
    signed,
)
from clients.node import ClientNode
from instahide_fl.aggregation.masking import FixedPoint, add_masks, flatten_arrays
from instahide_fl.aggregation.weights import WEIGHTS
from instahide_fl.flower.arrays import to_record
from instahide_fl.flower.secure_aggregation import (
    bytes_to_private_key,
    bytes_to_public_key,
    create_shares,
    decrypt,
    encrypt,
    generate_key_pairs,
    generate_shared_key,
    private_key_to_bytes,
    public_key_to_bytes,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from instahide_fl.rng import new_secret
from instahide_fl.types import ClientUpdate
from instahide_fl.wire.messages import (
    ABOUT,
    ARRAYS,
    METRICS,
    SCHEMA,
    RoundInstruction,
    UpdateHeader,
    finite_number,
)
from instahide_fl.wire.secure_aggregation import (
    CIPHERTEXTS,
    CLIENTS,
    DROPPED,
    EXCHANGE_KEYS,
    LARGEST_WEIGHT,
    MASK_KEYS,
    MASKS,
    ROUND,
    SHARES,
    SIGNATURE,
    SIGNATURES,
    SURVIVORS,
    VECTOR,
    RoundKeys,
    bound_secret,
    own_keys_statement,
    required_values,
    round_digest,
    shares_needed,
)

_STATE = "secure-aggregation"  # a record in Context.state, which stays on the node


@dataclass(frozen=True)
class Masking:
    """What a client needs to mask its update: all is checked, before it trains.

    Attributes:
        round: 1, 2, ...
        num_clients: Number of clients in the cohort, this one counted.
        largest_weight: What all clients divide their weights by.
        added: Seeds of the masks to add.
        subtracted: Seeds of the masks to subtract.
    """

    round: int
    num_clients: int
    largest_weight: float
    added: list[bytes]
    subtracted: list[bytes]


def answer_public_keys(message: Message, context: Context, node: ClientNode) -> Message:
    """Make this round's keys and send the public ones, signed (stage 1)."""
    fields = required_values(message.content[ABOUT], ROUND)
    round_number = int(fields[ROUND])
    mask_key, mask_public = generate_key_pairs()
    exchange_key, exchange_public = generate_key_pairs()
    public = public_key_to_bytes(mask_public), public_key_to_bytes(exchange_public)
    context.state[_STATE] = ConfigRecord(
        {
            "round": round_number,
            "seed": new_secret(),
            "mask-key": private_key_to_bytes(mask_key),
            "exchange-key": private_key_to_bytes(exchange_key),
            "public-keys": list(public),
        }
    )
    statement = own_keys_statement(round_number, node.client, *public)
    return _reply(
        message,
        {
            "client": node.client,
            MASK_KEYS: public[0],
            EXCHANGE_KEYS: public[1],
            SIGNATURE: signed(node, statement),
        },
    )


def answer_key_shares(message: Message, context: Context, node: ClientNode) -> Message:
    """Share the secrets of this round among the clients (stage 2).

    Raises:
        ProtocolError: keys are missing, twice, or too few, or not those of the clients
            that this one has pinned.
    """
    fields = required_values(
        message.content[ABOUT], ROUND, CLIENTS, MASK_KEYS, EXCHANGE_KEYS, SIGNATURES
    )
    state = _read_state(context, int(fields[ROUND]))
    keys = read_keys(fields)
    own_position = check_cohort(node, keys, state["public-keys"], fields[SIGNATURES])
    claim_once(node, state, "shares")
    peers = list(keys.clients)
    needed = shares_needed(len(peers), node.config.secure_aggregation.threshold)
    seed_shares = create_shares(bytes(state["seed"]), needed, len(peers))
    key_shares = create_shares(bytes(state["mask-key"]), needed, len(peers))
    ciphertexts = []
    for peer in range(len(peers)):
        if peer == own_position:
            continue
        secret = _agreed_secret(state["exchange-key"], keys.exchange_keys[peer])
        plaintext = share_keys_plaintext_concat(
            own_position, peer, seed_shares[peer], key_shares[peer]
        )
        ciphertexts.append(encrypt(secret, plaintext))
    state.update(
        {
            CLIENTS: peers,
            MASK_KEYS: list(keys.mask_keys),
            EXCHANGE_KEYS: list(keys.exchange_keys),
            "own-seed-share": seed_shares[own_position],
            "own-key-share": key_shares[own_position],
        }
    )
    context.state[_STATE] = ConfigRecord(state)
    signature = signed(node, keys.statement())
    return _reply(message, {CIPHERTEXTS: ciphertexts, SIGNATURE: signature})


def open_masking(
    message: Message,
    context: Context,
    node: ClientNode,
    instruction: RoundInstruction,
    arrays: Mapping[str, Tensor],
) -> Masking:
    """Check what the masks of this round's update need, and use the keys up (stage 3).

    Args:
        message: The server's message, with the global arrays.
        context: Flower's context of the node.
        node: The client.
        instruction: What came with the arrays.
        arrays: The global arrays by name, control variates among them.

    Raises:
        ProtocolError: the server asks for an update without masks, for a second one, or
            for one in a smaller cohort; or a ciphertext is not what it should be.
    """
    if MASKS not in message.content:
        raise broken(
            f"client {node.client} sends masked updates only "
            f"(secure-aggregation.enabled), and the server asked for a plain one"
        )
    names = (ROUND, CLIENTS, CIPHERTEXTS, SIGNATURES, LARGEST_WEIGHT)
    fields = required_values(message.content[MASKS], *names)
    state = _read_state(context, int(fields[ROUND]))
    if instruction.round != fields[ROUND] or CLIENTS not in state:
        raise broken("the masks of a round are asked for without its shares")
    keys = RoundKeys(
        instruction.round, state[CLIENTS], state[MASK_KEYS], state[EXCHANGE_KEYS]
    )
    senders = check_senders(node, keys, fields[CLIENTS], fields[SIGNATURES])
    largest_weight = finite_number(LARGEST_WEIGHT, fields[LARGEST_WEIGHT])
    claim_once(node, state, "update")
    own_position = keys.clients.index(node.client)
    _store_shares(state, own_position, senders, list(fields[CIPHERTEXTS]))
    digest = round_digest(node.config, instruction, arrays, keys, largest_weight)
    pair_seeds = {
        sender: bound_secret(
            _mask_seed(_agreed_secret(state["mask-key"], keys.mask_keys[sender])),
            digest,
        )
        for sender in senders
    }
    state["senders"] = senders
    context.state[_STATE] = ConfigRecord(state)
    own_seed = bound_secret(bytes(state["seed"]), digest)
    later = [seed for peer, seed in pair_seeds.items() if peer > own_position]
    return Masking(
        round=instruction.round,
        num_clients=len(keys.clients),
        largest_weight=largest_weight,
        added=[own_seed, *later],
        subtracted=[seed for peer, seed in pair_seeds.items() if peer < own_position],
    )


def reply_masked(
    message: Message, node: ClientNode, update: ClientUpdate, masking: Masking
) -> Message:
    """Send the update with masks on it (stage 3).

    Besides the arrays, the vector holds the weight of the update and its loss times
    that weight: the server learns both as sums only.

    Raises:
        ProtocolError: the largest weight is none that the client accepts, or the update
            has values that cannot be masked.
    """
    config = node.config
    weight = WEIGHTS[config.server.aggregation](update)
    check_largest_weight(node, weight, masking.largest_weight)
    numbers = FixedPoint(config.secure_aggregation.largest_value, masking.num_clients)
    vector = _weighted_vector(update, weight / masking.largest_weight)
    masked = add_masks(numbers.encode(vector), masking.added, masking.subtracted)
    header = UpdateHeader(node.client, update.kind, masking.round)
    content = RecordDict(
        {
            ARRAYS: to_record({VECTOR: torch.from_numpy(masked.view(np.int32))}),
            ABOUT: ConfigRecord(header.to_values()),  # type: ignore[arg-type]
            METRICS: MetricRecord(
                {k: v for k, v in update.metrics.items() if k != "train_loss"}
            ),
        }
    )
    return Message(content, reply_to=message)


def _weighted_vector(update: ClientUpdate, weight: float) -> Tensor:
    """Return f64[D+2]: the weighted arrays, the weight, and the loss times it."""
    # With differential privacy there is none: a figure without noise stays here.
    loss = update.metrics.get("train_loss", 0.0)
    return torch.cat(
        [
            flatten_arrays(update.arrays, weight),
            torch.tensor([weight, weight * loss]).double(),
        ]
    )


def answer_unmask(message: Message, context: Context, node: ClientNode) -> Message:
    """Send the shares that the sum needs, and forget all secrets (stage 4).

    Raises:
        ProtocolError: the server asks a second time, for both secrets of a client, or
            for a sum of too few clients.
    """
    fields = required_values(message.content[ABOUT], ROUND, SURVIVORS, DROPPED)
    state = _read_state(context, int(fields[ROUND]))
    if "senders" not in state:
        raise broken(f"client {node.client} has sent nothing that could be unmasked")
    survivors, dropped = check_survivors(
        node, state[CLIENTS], state["senders"], fields[SURVIVORS], fields[DROPPED]
    )
    # One answer for each round: a second question could be for the other secret.
    claim_once(node, state, "unmask")
    del context.state[_STATE]
    shares = [state[f"seed-share-{peer}"] for peer in survivors]
    shares += [state[f"key-share-{peer}"] for peer in dropped]
    return _reply(message, {SHARES: shares})


def _store_shares(
    state: dict[str, Any],
    own_position: int,
    senders: list[int],
    ciphertexts: list[bytes],
) -> None:
    """Decrypt the other clients' shares into the state, beside the client's own.

    Raises:
        ProtocolError: a ciphertext is of another sender or for another receiver.
    """
    state[f"seed-share-{own_position}"] = state["own-seed-share"]
    state[f"key-share-{own_position}"] = state["own-key-share"]
    for peer, ciphertext in zip(senders, ciphertexts, strict=True):
        secret = _agreed_secret(state["exchange-key"], state[EXCHANGE_KEYS][peer])
        plaintext = decrypt(secret, ciphertext)
        sender, receiver, seed, key = share_keys_plaintext_separate(plaintext)
        if (sender, receiver) != (peer, own_position):
            raise broken("a client's shares were passed on to the wrong client")
        state[f"seed-share-{peer}"] = seed
        state[f"key-share-{peer}"] = key


def _read_state(context: Context, round_number: int) -> dict[str, Any]:
    """Return the secrets of a round.

    Raises:
        ProtocolError: this client has none for that round.
    """
    record = context.state.config_records.get(_STATE)
    if record is None or record["round"] != round_number:
        raise broken(
            f"this client has no keys for round {round_number}: it was not asked for "
            f"them, or has unmasked this round already"
        )
    return dict(record)


def _agreed_secret(private: object, public: object) -> bytes:
    assert isinstance(private, bytes)
    assert isinstance(public, bytes)
    return generate_shared_key(
        bytes_to_private_key(private), bytes_to_public_key(public)
    )


def _mask_seed(agreed: bytes) -> bytes:
    """Return the 32 bytes of a secret, which Flower encodes for its own encryption."""
    return base64.urlsafe_b64decode(agreed)


def _reply(message: Message, values: dict[str, Any]) -> Message:
    record = ConfigRecord({"schema": SCHEMA, **values})
    return Message(RecordDict({ABOUT: record}), reply_to=message)
