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
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from instahide_fl.aggregation.masking import FixedPoint, add_masks, flatten_arrays
from instahide_fl.aggregation.weights import WEIGHTS
from instahide_fl.config import Config
from instahide_fl.errors import ProtocolError
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
from instahide_fl.wire.messages import ABOUT, ARRAYS, METRICS, SCHEMA, UpdateHeader
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
    SURVIVORS,
    VECTOR,
    required_values,
    shares_needed,
)

_STATE = "secure-aggregation"  # a record in Context.state, which stays on the node


def answer_public_keys(message: Message, context: Context, client: str) -> Message:
    """Make this round's keys and send the public ones (stage 1)."""
    fields = required_values(message.content[ABOUT], ROUND)
    mask_key, mask_public = generate_key_pairs()
    exchange_key, exchange_public = generate_key_pairs()
    context.state[_STATE] = ConfigRecord(
        {
            "round": int(fields[ROUND]),
            "seed": new_secret(),
            "mask-key": private_key_to_bytes(mask_key),
            "exchange-key": private_key_to_bytes(exchange_key),
        }
    )
    return _reply(
        message,
        {
            "client": client,
            MASK_KEYS: public_key_to_bytes(mask_public),
            EXCHANGE_KEYS: public_key_to_bytes(exchange_public),
        },
    )


def answer_key_shares(
    message: Message, context: Context, client: str, config: Config
) -> Message:
    """Share the secrets of this round among the clients (stage 2).

    Raises:
        ProtocolError: keys are missing, twice, or too few.
    """
    fields = required_values(
        message.content[ABOUT], ROUND, CLIENTS, MASK_KEYS, EXCHANGE_KEYS
    )
    state = _read_state(context, int(fields[ROUND]))
    peers = list(fields[CLIENTS])
    keys = [*fields[MASK_KEYS], *fields[EXCHANGE_KEYS]]
    if client not in peers or len(set(keys)) < 2 * len(peers):
        raise ProtocolError("the public keys of a round are not each client's own")
    needed = shares_needed(len(peers), config.secure_aggregation.threshold)
    own_position = peers.index(client)
    seed_shares = create_shares(bytes(state["seed"]), needed, len(peers))
    key_shares = create_shares(bytes(state["mask-key"]), needed, len(peers))
    ciphertexts = []
    for peer in range(len(peers)):
        if peer == own_position:
            continue
        secret = _agreed_secret(state["exchange-key"], fields[EXCHANGE_KEYS][peer])
        plaintext = share_keys_plaintext_concat(
            own_position, peer, seed_shares[peer], key_shares[peer]
        )
        ciphertexts.append(encrypt(secret, plaintext))
    state.update(
        {
            CLIENTS: peers,
            MASK_KEYS: list(fields[MASK_KEYS]),
            EXCHANGE_KEYS: list(fields[EXCHANGE_KEYS]),
            "own-seed-share": seed_shares[own_position],
            "own-key-share": key_shares[own_position],
        }
    )
    context.state[_STATE] = ConfigRecord(state)
    return _reply(message, {CIPHERTEXTS: ciphertexts})


def reply_masked(
    message: Message,
    context: Context,
    client: str,
    update: ClientUpdate,
    config: Config,
) -> Message:
    """Send the update with masks on it (stage 3).

    Besides the arrays, the vector holds the weight of the update and its loss times
    that weight: the server learns both as sums only.

    Raises:
        ProtocolError: the server asks for an update without masks, or a ciphertext is
            not what it should be.
    """
    if MASKS not in message.content:
        raise ProtocolError(
            f"client {client} sends masked updates only (secure-aggregation.enabled), "
            f"and the server asked for a plain one"
        )
    fields = required_values(
        message.content[MASKS], ROUND, CLIENTS, CIPHERTEXTS, LARGEST_WEIGHT
    )
    state = _read_state(context, int(fields[ROUND]))
    peers = list(state[CLIENTS])
    senders = [peers.index(name) for name in fields[CLIENTS]]
    own_position = peers.index(client)
    needed = shares_needed(len(peers), config.secure_aggregation.threshold)
    if len(senders) + 1 < needed:
        raise ProtocolError(
            f"{len(senders) + 1} clients of {len(peers)} shared their keys, "
            f"secure-aggregation.threshold asks for {needed}"
        )
    _store_shares(state, own_position, senders, list(fields[CIPHERTEXTS]))
    weight = WEIGHTS[config.server.aggregation](update) / float(fields[LARGEST_WEIGHT])
    numbers = FixedPoint(config.secure_aggregation.largest_value, len(peers))
    pair_seeds = {
        sender: _mask_seed(_agreed_secret(state["mask-key"], state[MASK_KEYS][sender]))
        for sender in senders
    }
    later = [seed for peer, seed in pair_seeds.items() if peer > own_position]
    earlier = [seed for peer, seed in pair_seeds.items() if peer < own_position]
    masked = add_masks(
        numbers.encode(_weighted_vector(update, weight)),
        added=[bytes(state["seed"]), *later],
        subtracted=earlier,
    )
    context.state[_STATE] = ConfigRecord(state)
    header = UpdateHeader(client, update.kind, int(fields[ROUND]))
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


def answer_unmask(
    message: Message, context: Context, client: str, config: Config
) -> Message:
    """Send the shares that the sum needs, and forget all secrets (stage 4).

    Raises:
        ProtocolError: the server asks for both secrets of a client, or too few clients
            are left.
    """
    fields = required_values(message.content[ABOUT], ROUND, SURVIVORS, DROPPED)
    state = _read_state(context, int(fields[ROUND]))
    peers = list(state[CLIENTS])
    # One answer for each round: a second question could be for the other secret.
    del context.state[_STATE]
    survivors = [peers.index(name) for name in fields[SURVIVORS]]
    dropped = [peers.index(name) for name in fields[DROPPED]]
    asked = survivors + dropped
    needed = shares_needed(len(peers), config.secure_aggregation.threshold)
    if len(set(asked)) < len(asked) or len(set(survivors)) < needed:
        raise ProtocolError(
            f"client {client} refuses to unmask: {len(survivors)} of {len(peers)} "
            f"updates came (secure-aggregation.threshold asks for {needed}), and no "
            f"client may be both there and gone"
        )
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
            raise ProtocolError("a client's shares were passed on to the wrong client")
        state[f"seed-share-{peer}"] = seed
        state[f"key-share-{peer}"] = key


def _read_state(context: Context, round_number: int) -> dict[str, Any]:
    """Return the secrets of a round.

    Raises:
        ProtocolError: this client has none for that round.
    """
    record = context.state.config_records.get(_STATE)
    if record is None or record["round"] != round_number:
        raise ProtocolError(
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
