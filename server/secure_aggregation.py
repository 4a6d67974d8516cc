"""Secure aggregation on the server's side: it passes keys on and learns the sum.

The stages are in `instahide_fl.wire.secure_aggregation`. What a client sends is masked
by secrets that the server lacks; once all masked updates are in, the clients that are
left give it what takes the masks off the sum, and off nothing else.
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
    """What came of a client in stage 3.

    Attributes:
        vector: u32[N], uniform to whoever lacks its masks.
        metrics: numbers of the client's other than its loss: "seconds".
    """

    vector: Vector
    metrics: Mapping[str, float]


@dataclass
class SecureRound:
    """One round, stage by stage.

    Attributes:
        grid: Flower's.
        config: of the run.
        round: 1, 2, ...
        nodes: node id by client key, of the cohort in client order.
        sizes: images by client key.
        failures: reason by client key, of those that dropped out.
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
            content: what every client receives to train.
            shapes: of the parameters, by name.

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
        """Return, by sender, the ciphertext for each receiver."""
        public = {
            CLIENTS: list(keys),
            MASK_KEYS: [mask for mask, _ in keys.values()],
            EXCHANGE_KEYS: [exchange for _, exchange in keys.values()],
        }

        def read(sender: str, reply: Message) -> dict[str, bytes]:
            values = required_values(_about(reply), CIPHERTEXTS)
            others = [one for one in keys if one != sender]
            return _in_order(others, values[CIPHERTEXTS])

        return self._ask(KEY_SHARES, dict.fromkeys(keys, public), read)

    def _masked_updates(
        self,
        content: RecordDict,
        peers: Sequence[str],
        ciphertexts: Mapping[str, Mapping[str, bytes]],
        length: int,
    ) -> dict[str, MaskedUpdate]:
        heaviest = self._heaviest(peers)
        messages = {}
        for client in ciphertexts:
            senders = [one for one in ciphertexts if one != client]
            masks = ConfigRecord(
                {
                    "schema": SCHEMA,
                    ROUND: self.round,
                    CLIENTS: senders,
                    CIPHERTEXTS: [ciphertexts[one][client] for one in senders],
                    LARGEST_WEIGHT: heaviest,
                }
            )
            whole = RecordDict({**content, MASKS: masks})
            messages[client] = round_message(whole, self.nodes[client], str(self.round))

        def read(client: str, reply: Message) -> MaskedUpdate:
            return self._read_masked(client, reply, length)

        return self._send(messages, read)

    def _heaviest(self, peers: Sequence[str]) -> float:
        """Return the largest weight of an update, which they are divided by."""
        train = self.config.train
        if self.config.server.aggregation == "mean":
            return 1.0
        images = max(self.sizes[client] for client in peers)
        if train.mode == "gradient":
            images = min(images, train.batch_size * train.local_batches)
        return float(images)

    def _read_masked(self, client: str, reply: Message, length: int) -> MaskedUpdate:
        about, arrays, metrics = records_of_update(reply.content)
        sender = Sender(client, self.sizes[client])
        check_header(about, sender, self.config.train.update_kind, self.round)
        form = ArrayForm((length,), "int32")
        vector = checked_tensors(arrays, {VECTOR: form})[VECTOR].cpu().numpy()
        return MaskedUpdate(vector.view(np.uint32), read_client_metrics(metrics))

    def _unmask(
        self, peers: Sequence[str], shared: Sequence[str], survivors: Sequence[str]
    ) -> dict[str, dict[str, bytes]]:
        """Return, by who answers, a share of each client's secret."""
        dropped = [one for one in shared if one not in survivors]
        asked = {SURVIVORS: list(survivors), DROPPED: dropped}

        def read(_: str, reply: Message) -> dict[str, bytes]:
            values = required_values(_about(reply), SHARES)
            return _in_order([*survivors, *dropped], values[SHARES])

        return self._ask(UNMASK, dict.fromkeys(survivors, asked), read)

    def _total(
        self,
        keys: Mapping[str, tuple[bytes, bytes]],
        shared: Sequence[str],
        masked: Mapping[str, MaskedUpdate],
        shares: Mapping[str, Mapping[str, bytes]],
    ) -> Vector:
        """Add up the masked vectors and take off what masks are left."""
        vectors = [one.vector for one in masked.values()]
        total = vectors[0].copy()
        for vector in vectors[1:]:
            total += vector
        secrets = {
            client: combine_shares([one[client] for one in shares.values()])
            for client in shared
        }
        place = {client: number for number, client in enumerate(keys)}
        added: list[bytes] = []
        taken = [secrets[client] for client in masked]
        for gone in (client for client in shared if client not in masked):
            private = bytes_to_private_key(secrets[gone])
            for client in masked:
                public = bytes_to_public_key(keys[client][0])
                seed = base64.urlsafe_b64decode(generate_shared_key(private, public))
                (taken if place[gone] > place[client] else added).append(seed)
        return add_masks(total, added, taken)

    def _reduced(
        self,
        total: Vector,
        masked: Mapping[str, MaskedUpdate],
        peers: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        seconds: float,
    ) -> ReducedUpdates:
        numbers = FixedPoint(self.config.secure_aggregation.largest_value, len(peers))
        values = numbers.decode(total)
        weight, loss = float(values[-2]), float(values[-1])
        if weight <= 0:
            raise RoundError(
                f"round {self.round}: the updates weigh {weight:g} together: a client "
                f"sent no update, or a wrong share"
            )
        arrays = split_vector(values[:-2], shapes)
        took = [one.metrics.get("seconds", 0.0) for one in masked.values()]
        contributions = {
            self.nodes[client]: Contribution(
                self.sizes[client],
                one.vector.nbytes,
                {**one.metrics, "train_loss": loss / weight},
            )
            for client, one in masked.items()
        }
        return ReducedUpdates(
            UpdateSum(arrays, 1.0, weight, owned=True),
            contributions,
            {self.nodes[client]: reason for client, reason in self.failures.items()},
            max(took),
            seconds,
        )

    def _ask(
        self,
        query: str,
        values: Mapping[str, Mapping[str, Any]],
        read: Callable[[str, Message], Value],
    ) -> dict[str, Value]:
        """Send a stage's query to clients and return what is read of their answers."""
        messages = {}
        for client, one in values.items():
            record = ConfigRecord({"schema": SCHEMA, ROUND: self.round, **one})
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
        found: dict[str, Value] = {}
        silent = dict.fromkeys(
            messages, f"no answer within {timeout:g} s (train.timeout)"
        )
        for node, reply in collect(self.grid, list(messages.values()), timeout):
            client = names[node]
            try:
                if reply.has_error():
                    raise RoundError(failure_reason(reply))
                found[client] = read(client, reply)
                del silent[client]
            except RoundError as error:
                silent[client] = str(error)
            except ProtocolError as error:
                silent[client] = f"its answer is refused: {error}"
        self.failures |= silent
        return {client: found[client] for client in messages if client in found}

    def _check_enough(self, left: Iterable[str], needed: int) -> None:
        count = len(list(left))
        if count < needed:
            reasons = "; ".join(f"{who}: {why}" for who, why in self.failures.items())
            raise RoundError(
                f"round {self.round}: {count} clients are left, "
                f"secure-aggregation.threshold asks for {needed} ({reasons})"
            )


def _about(reply: Message) -> ConfigRecord:
    record = reply.content.get(ABOUT)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError(f"it lacks the record {ABOUT!r}")
    return record


def _in_order(clients: Sequence[str], secrets: object) -> dict[str, bytes]:
    """Give each client the bytes in its place of a stranger's list.

    Raises:
        ProtocolError: it is not one short text of bytes for each.
    """
    if not isinstance(secrets, list) or len(secrets) != len(clients):
        raise ProtocolError(f"it must hold {len(clients)} secrets, one for each client")
    if not all(
        isinstance(one, bytes) and len(one) < MAX_SECRET_BYTES for one in secrets
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
