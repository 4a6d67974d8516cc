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
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
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
from instahide_fl.flower.arrays import ArrayForm, checked_tensors, from_record
from instahide_fl.flower.secure_aggregation import (
    bytes_to_private_key,
    bytes_to_public_key,
    combine_shares,
    generate_shared_key,
)
from instahide_fl.wire.messages import ABOUT, ARRAYS, SCHEMA, RoundInstruction
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
    SIGNATURE,
    SIGNATURES,
    SURVIVORS,
    UNMASK,
    VECTOR,
    RoundKeys,
    bound_secret,
    required_values,
    round_digest,
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
from server.secure_replies import (
    KeyShares,
    MaskedUpdate,
    PublicKeys,
    about_record,
    check_public_key,
    secrets_by_client,
    signature_of,
)

Value = TypeVar("Value")


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
        round_keys = RoundKeys(
            self.round,
            peers,
            [sent.mask for sent in keys.values()],
            [sent.exchange for sent in keys.values()],
        )
        needed = shares_needed(len(peers), self.config.secure_aggregation.threshold)
        shared = self._key_shares(round_keys, [k.signature for k in keys.values()])
        self._check_enough(shared, needed)
        size = sum(math.prod(shape) for shape in shapes.values())
        # Behind the arrays come the weight of the update, and its loss times that.
        masked = self._masked_updates(content, peers, shared, size + 2)
        self._check_enough(masked, needed)
        start = time.perf_counter()
        shares = self._unmask(list(shared), list(masked))
        self._check_enough(shares, needed)
        digest = self._digest(content, round_keys)
        try:
            total = self._total(round_keys, list(shared), masked, shares, digest=digest)
        except ValueError as error:
            raise RoundError(
                f"round {self.round}: the masks cannot be taken off: the shares that "
                f"{', '.join(shares)} sent do not fit together ({error})"
            ) from None
        return self._reduced(total, masked, peers, shapes, time.perf_counter() - start)

    def _digest(self, content: RecordDict, keys: RoundKeys) -> bytes:
        """Return the digest that clients' masks depend on."""
        about, arrays = content[ABOUT], content[ARRAYS]
        assert isinstance(about, ConfigRecord)
        assert isinstance(arrays, ArrayRecord)
        return round_digest(
            self.config,
            RoundInstruction.from_values(about),
            from_record(arrays),
            keys,
            self._largest_weight(keys.clients),
        )

    def _public_keys(self) -> dict[str, PublicKeys]:
        """Return the signed public keys of each client that answers (stage 1)."""

        def read(client: str, reply: Message) -> PublicKeys:
            values = required_values(
                about_record(reply), MASK_KEYS, EXCHANGE_KEYS, SIGNATURE
            )
            mask, exchange = values[MASK_KEYS], values[EXCHANGE_KEYS]
            for key in (mask, exchange):
                check_public_key(key)
            return PublicKeys(mask, exchange, signature_of(values))

        return self._ask(PUBLIC_KEYS, {client: {} for client in self.nodes}, read)

    def _key_shares(
        self, keys: RoundKeys, signatures: Sequence[bytes]
    ) -> dict[str, KeyShares]:
        """Return each client's shares for the others (stage 2)."""
        public = {
            CLIENTS: list(keys.clients),
            MASK_KEYS: list(keys.mask_keys),
            EXCHANGE_KEYS: list(keys.exchange_keys),
            SIGNATURES: list(signatures),
        }

        def read(sender: str, reply: Message) -> KeyShares:
            values = required_values(about_record(reply), CIPHERTEXTS, SIGNATURE)
            others = [client for client in keys.clients if client != sender]
            return KeyShares(
                secrets_by_client(others, values[CIPHERTEXTS]), signature_of(values)
            )

        return self._ask(KEY_SHARES, dict.fromkeys(keys.clients, public), read)

    def _masked_updates(
        self,
        content: RecordDict,
        peers: Sequence[str],
        shared: Mapping[str, KeyShares],
        length: int,
    ) -> dict[str, MaskedUpdate]:
        """Return the masked update of each client that sends one (stage 3)."""
        largest_weight = self._largest_weight(peers)
        messages = {}
        for client in shared:
            senders = [sender for sender in shared if sender != client]
            masks = ConfigRecord(
                {
                    "schema": SCHEMA,
                    ROUND: self.round,
                    CLIENTS: senders,
                    CIPHERTEXTS: [
                        shared[sender].ciphertexts[client] for sender in senders
                    ],
                    SIGNATURES: [shared[sender].signature for sender in senders],
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
        self, shared: Sequence[str], survivors: Sequence[str]
    ) -> dict[str, dict[str, bytes]]:
        """Return, by answering client, a share of each client's secret (stage 4).

        The secret is the seed of a survivor and the private key of a dropped client.
        """
        dropped = [client for client in shared if client not in survivors]
        question = {SURVIVORS: list(survivors), DROPPED: dropped}

        def read(_: str, reply: Message) -> dict[str, bytes]:
            values = required_values(about_record(reply), SHARES)
            return secrets_by_client([*survivors, *dropped], values[SHARES])

        return self._ask(UNMASK, dict.fromkeys(survivors, question), read)

    def _total(
        self,
        keys: RoundKeys,
        shared: Sequence[str],
        masked: Mapping[str, MaskedUpdate],
        shares: Mapping[str, Mapping[str, bytes]],
        digest: bytes,
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
        position = {client: number for number, client in enumerate(keys.clients)}
        added: list[bytes] = []
        subtracted = [bound_secret(secrets[client], digest) for client in masked]
        for dropped in (client for client in shared if client not in masked):
            private = bytes_to_private_key(secrets[dropped])
            for client in masked:
                public = bytes_to_public_key(keys.mask_keys[position[client]])
                agreed = base64.urlsafe_b64decode(generate_shared_key(private, public))
                seed = bound_secret(agreed, digest)
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
