"""Secure aggregation on the server's side: it passes keys on and learns the sum.

The stages are in `instahide_fl.wire.secure_aggregation`. What a client sends is masked
by secrets that the server lacks. Once all masked updates are in, the clients that are
still there send what takes the masks off the sum, and off nothing else.

All arithmetic on masked vectors is that of u32, modulo 2**32: there masks cancel to the
last bit, so neither the keys nor the order of the replies show in the sum.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from instahide_fl.aggregation.masking import (
    FixedPoint,
    Vector,
    add_masks,
    split_vector,
)
from instahide_fl.aggregation.reduction import Contribution, ReducedUpdates, UpdateSum
from instahide_fl.config import Config
from instahide_fl.errors import ProtocolError, RoundError
from instahide_fl.flower.arrays import ArrayForm, checked_tensors
from instahide_fl.flower.secure_aggregation import (
    bytes_to_private_key,
    bytes_to_public_key,
    combine_shares,
    generate_shared_key,
)
from instahide_fl.wire.messages import ABOUT, SCHEMA
from instahide_fl.wire.secure_aggregation import (
    CIPHERTEXTS,
    CLIENTS,
    DROPPED,
    EXCHANGE_KEYS,
    KEY_SHARES,
    LARGEST_WEIGHT,
    MASK_KEYS,
    MASKS,
    PUBLIC_KEYS,
    ROUND,
    SHARES,
    SURVIVORS,
    UNMASK,
    VECTOR,
    required_values,
    shares_needed,
)
from server.collection import collect
from server.divergence import failed_round
from server.records import (
    Sender,
    check_header,
    failure_reason,
    read_client_metrics,
    records_of_update,
    round_message,
)

Value = TypeVar("Value")
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


@dataclass
class SecureRound:
    """One round, stage by stage.

    Attributes:
        grid: Flower's grid.
        config: The run's settings.
        round: 1, 2, ...
        nodes: The cohort's node ids by client key, in client order.
        sizes: Number of images by client key.
        failures: The reason why each dropped client failed, by client key.
    """

    grid: Grid
    config: Config
    round: int
    nodes: Mapping[str, int]
    sizes: Mapping[str, int]
    failures: dict[str, str] = field(default_factory=dict)

    def reduce(
        self, content: RecordDict, shapes: Mapping[str, tuple[int, ...]]
    ) -> ReducedUpdates:
        """Return the sum of the cohort's updates.

        Args:
            content: The records that every client receives to train.
            shapes: The parameters' shapes by name.

        Raises:
            RoundError: too few clients were left to take the masks off.
        """
        keys = self._public_keys()
        peers = list(keys)
        needed = shares_needed(len(peers), self.config.secure_aggregation.threshold)
        ciphertexts = self._key_shares(keys)
        self._check_enough(ciphertexts, needed)
        size = sum(math.prod(shape) for shape in shapes.values())
        # Behind the arrays come the weight of the update, and its loss times that.
        masked = self._masked_updates(content, peers, ciphertexts, size + 2)
        self._check_enough(masked, needed)
        start = time.perf_counter()
        shares = self._unmask(peers, list(ciphertexts), list(masked))
        self._check_enough(shares, needed)
        try:
            total = self._total(keys, list(ciphertexts), masked, shares)
        except ValueError as error:
            raise RoundError(
                f"round {self.round}: the masks cannot be taken off: the shares that "
                f"{', '.join(shares)} sent do not fit together ({error})"
            ) from None
        return self._reduced(total, masked, peers, shapes, time.perf_counter() - start)

    def _public_keys(self) -> dict[str, tuple[bytes, bytes]]:
        """Return mask key and exchange key of each client that answers (stage 1)."""

        def read(client: str, reply: Message) -> tuple[bytes, bytes]:
            values = required_values(_about(reply), MASK_KEYS, EXCHANGE_KEYS)
            mask, exchange = values[MASK_KEYS], values[EXCHANGE_KEYS]
            for key in (mask, exchange):
                _check_public_key(key)
            return mask, exchange

        return self._ask(PUBLIC_KEYS, {client: {} for client in self.nodes}, read)

    def _key_shares(
        self, keys: Mapping[str, tuple[bytes, bytes]]
    ) -> dict[str, dict[str, bytes]]:
        """Return, by sender, the ciphertext for each receiver (stage 2)."""
        public = {
            CLIENTS: list(keys),
            MASK_KEYS: [mask for mask, _ in keys.values()],
            EXCHANGE_KEYS: [exchange for _, exchange in keys.values()],
        }

        def read(sender: str, reply: Message) -> dict[str, bytes]:
            values = required_values(_about(reply), CIPHERTEXTS)
            others = [client for client in keys if client != sender]
            return _by_client(others, values[CIPHERTEXTS])

        return self._ask(KEY_SHARES, dict.fromkeys(keys, public), read)

    def _masked_updates(
        self,
        content: RecordDict,
        peers: Sequence[str],
        ciphertexts: Mapping[str, Mapping[str, bytes]],
        length: int,
    ) -> dict[str, MaskedUpdate]:
        """Return the masked update of each client that sends one (stage 3)."""
        largest_weight = self._largest_weight(peers)
        messages = {}
        for client in ciphertexts:
            senders = [sender for sender in ciphertexts if sender != client]
            masks = ConfigRecord(
                {
                    "schema": SCHEMA,
                    ROUND: self.round,
                    CLIENTS: senders,
                    CIPHERTEXTS: [ciphertexts[sender][client] for sender in senders],
                    LARGEST_WEIGHT: largest_weight,
                }
            )
            records = RecordDict({**content, MASKS: masks})
            messages[client] = round_message(
                records, self.nodes[client], str(self.round)
            )

        def read(client: str, reply: Message) -> MaskedUpdate:
            return self._read_masked(client, reply, length)

        return self._send(messages, read)

    def _largest_weight(self, peers: Sequence[str]) -> float:
        """Return the largest weight of an update.

        Clients divide their weights by it, so that a weighted value is not larger than
        the value, for which the integers have room.
        """
        train = self.config.train
        if self.config.server.aggregation == "mean":
            return 1.0
        images = max(self.sizes[client] for client in peers)
        if train.mode == "gradient":
            images = min(images, train.batch_size * train.local_batches)
        return float(images)

    def _read_masked(self, client: str, reply: Message, length: int) -> MaskedUpdate:
        fields, arrays, metrics = records_of_update(reply.content)
        sender = Sender(client, self.sizes[client])
        check_header(fields, sender, self.config.train.update_kind, self.round)
        form = ArrayForm((length,), "int32")
        vector = checked_tensors(arrays, {VECTOR: form})[VECTOR].cpu().numpy()
        return MaskedUpdate(vector.view(np.uint32), read_client_metrics(metrics))

    def _unmask(
        self, peers: Sequence[str], shared: Sequence[str], survivors: Sequence[str]
    ) -> dict[str, dict[str, bytes]]:
        """Return, by answering client, a share of each client's secret (stage 4).

        The secret is the seed of a survivor and the private key of a dropped client.
        """
        dropped = [client for client in shared if client not in survivors]
        question = {SURVIVORS: list(survivors), DROPPED: dropped}

        def read(_: str, reply: Message) -> dict[str, bytes]:
            values = required_values(_about(reply), SHARES)
            return _by_client([*survivors, *dropped], values[SHARES])

        return self._ask(UNMASK, dict.fromkeys(survivors, question), read)

    def _total(
        self,
        keys: Mapping[str, tuple[bytes, bytes]],
        shared: Sequence[str],
        masked: Mapping[str, MaskedUpdate],
        shares: Mapping[str, Mapping[str, bytes]],
    ) -> Vector:
        """Add up the masked vectors and take off the masks that did not cancel.

        They are the survivors' own masks, and those that survivors share with clients
        that dropped out after their keys were shared.
        """
        vectors = [update.vector for update in masked.values()]
        total = vectors[0].copy()
        for vector in vectors[1:]:
            total += vector
        secrets = {
            client: combine_shares([answer[client] for answer in shares.values()])
            for client in shared
        }
        position = {client: number for number, client in enumerate(keys)}
        added: list[bytes] = []
        subtracted = [secrets[client] for client in masked]
        for dropped in (client for client in shared if client not in masked):
            private = bytes_to_private_key(secrets[dropped])
            for client in masked:
                public = bytes_to_public_key(keys[client][0])
                seed = base64.urlsafe_b64decode(generate_shared_key(private, public))
                # The survivor added the mask if it comes before the dropped client,
                # and subtracted it otherwise: the server does the opposite.
                survivor_added = position[dropped] > position[client]
                (subtracted if survivor_added else added).append(seed)
        return add_masks(total, added, subtracted)

    def _reduced(
        self,
        total: Vector,
        masked: Mapping[str, MaskedUpdate],
        peers: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        adding_seconds: float,
    ) -> ReducedUpdates:
        """Return the sum as arrays, with what is known of each client."""
        numbers = FixedPoint(self.config.secure_aggregation.largest_value, len(peers))
        values = numbers.decode(total)
        weight, loss = float(values[-2]), float(values[-1])
        if weight <= 0:
            raise RoundError(
                f"round {self.round}: the updates weigh {weight:g} together: a client "
                f"sent no update, or a wrong share"
            )
        arrays = split_vector(values[:-2], shapes)
        contributions = {
            self.nodes[client]: Contribution(
                num_examples=self.sizes[client],
                nbytes=update.vector.nbytes,
                # The single losses are masked: each client is given the mean.
                metrics={**update.metrics, "train_loss": loss / weight},
            )
            for client, update in masked.items()
        }
        client_seconds = [u.metrics.get("seconds", 0.0) for u in masked.values()]
        return ReducedUpdates(
            UpdateSum(arrays, scale=1.0, weight=weight, owned=True),
            contributions,
            {self.nodes[client]: reason for client, reason in self.failures.items()},
            compute_seconds=max(client_seconds),
            adding_seconds=adding_seconds,
        )

    def _ask(
        self,
        query: str,
        values: Mapping[str, Mapping[str, Any]],
        read: Callable[[str, Message], Value],
    ) -> dict[str, Value]:
        """Send a stage's query to clients and return what is read of their answers."""
        messages = {}
        for client, question in values.items():
            record = ConfigRecord({"schema": SCHEMA, ROUND: self.round, **question})
            messages[client] = Message(
                RecordDict({ABOUT: record}),
                self.nodes[client],
                f"{MessageType.QUERY}.{query}",
                group_id=str(self.round),
            )
        return self._send(messages, read)

    def _send(
        self,
        messages: Mapping[str, Message],
        read: Callable[[str, Message], Value],
    ) -> dict[str, Value]:
        """Send messages; return what is read of each reply, and note who failed."""
        timeout = self.config.train.timeout
        names = {self.nodes[client]: client for client in messages}
        answers: dict[str, Value] = {}
        failures = dict.fromkeys(
            messages, f"no answer within {timeout:g} s (train.timeout)"
        )
        for node, reply in collect(self.grid, list(messages.values()), timeout):
            client = names[node]
            try:
                if reply.has_error():
                    raise RoundError(failure_reason(reply))
                answers[client] = read(client, reply)
                del failures[client]
            except RoundError as error:
                failures[client] = str(error)
            except ProtocolError as error:
                failures[client] = f"its answer is refused: {error}"
        self.failures |= failures
        # In client order, not that of arrival: shares name clients by their position.
        return {client: answers[client] for client in messages if client in answers}

    def _check_enough(self, clients: Iterable[str], needed: int) -> None:
        """Refuse to go on with too few clients.

        Raises:
            RoundError: too few are left; with the reasons of those that failed.
        """
        count = len(list(clients))
        if count < needed:
            reasons = "; ".join(f"{who}: {why}" for who, why in self.failures.items())
            text = (
                f"round {self.round}: {count} clients are left, "
                f"secure-aggregation.threshold asks for {needed} ({reasons})"
            )
            raise failed_round(text, self.failures, self.config)


def _about(reply: Message) -> ConfigRecord:
    record = reply.content.get(ABOUT)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError(f"it lacks the record {ABOUT!r}")
    return record


def _by_client(clients: Sequence[str], secrets: object) -> dict[str, bytes]:
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


def _check_public_key(key: object) -> None:
    try:
        if not isinstance(key, bytes) or len(key) >= MAX_SECRET_BYTES:
            raise ValueError
        bytes_to_public_key(key)
    except (ValueError, UnsupportedAlgorithm):
        raise ProtocolError("it holds no public key") from None
