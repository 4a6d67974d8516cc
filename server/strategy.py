"""One round: choose a cohort, collect updates, check them, aggregate, step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.serverapp import Grid

from instahide_fl.aggregation.mean import AGGREGATORS
from instahide_fl.aggregation.server_optimizer import ServerOptimizer
from instahide_fl.config import Config
from instahide_fl.errors import InstaHideError, RoundError
from instahide_fl.types import ChannelStatistics, ClientUpdate
from instahide_fl.wire import RoundInstruction
from server.cohort import Clients, client_order, collect
from server.records import failure_reason, read_update, round_content, round_message


@dataclass(frozen=True)
class RoundOutcome:
    """What happened in a round.

    Attributes:
        updates: by client key, in order.
        failures: reason by client key, of those that did not send a valid update.
        seconds: from sending the parameters to the optimizer's step.
        bytes_down: of the parameters sent, over all clients.
        bytes_up: of the updates received, over all clients.
    """

    updates: dict[str, ClientUpdate]
    failures: dict[str, str]
    seconds: float
    bytes_down: int
    bytes_up: int

    @property
    def train_loss(self) -> float:
        """Mean over the clients' images of the loss on encodings."""
        total = sum(update.num_examples for update in self.updates.values())
        return (
            sum(u.metrics["train_loss"] * u.num_examples for u in self.updates.values())
            / total
        )


@dataclass(frozen=True)
class Strategy:
    """FedSGD and FedAvg, and any server optimizer on top.

    Attributes:
        config: the run's settings.
        optimizer: holds and moves the global parameters.
        clients: who can take part.
        statistics: constants that clients normalise private images with.
    """

    config: Config
    optimizer: ServerOptimizer
    clients: Clients
    statistics: ChannelStatistics

    def run_round(self, grid: Grid, round_number: int) -> RoundOutcome:
        """Train for one round.

        Args:
            grid: Flower's.
            round_number: 1, 2, ...

        Raises:
            RoundError: fewer valid updates came than `train.min-updates`.
        """
        start = time.perf_counter()
        train = self.config.train
        cohort = self.clients.sample(
            self.config.seed, round_number, train.clients_per_round
        )
        updates, failures = self._collect(grid, round_number, cohort)
        _check_enough(updates, failures, train.min_updates or len(cohort), round_number)
        aggregate = AGGREGATORS[self.config.server.aggregation](list(updates.values()))
        self.optimizer.step(aggregate, train.update_kind)
        sent = sum(value.nbytes for value in self.optimizer.parameters.values())
        received = sum(
            array.nbytes
            for update in updates.values()
            for array in update.arrays.values()
        )
        seconds = time.perf_counter() - start
        return RoundOutcome(updates, failures, seconds, sent * len(cohort), received)

    def _collect(
        self, grid: Grid, round_number: int, cohort: Sequence[str]
    ) -> tuple[dict[str, ClientUpdate], dict[str, str]]:
        """Return the valid updates and the failures, both in client order."""
        parameters = self.optimizer.parameters
        instruction = RoundInstruction(
            round_number, self.clients.pool_sha256, self.statistics
        )
        content = round_content(instruction, parameters)
        client_of = {self.clients.nodes[client]: client for client in cohort}
        messages = [round_message(content, node, round_number) for node in client_of]
        timeout = self.config.train.timeout
        updates: dict[str, ClientUpdate] = {}
        silent = f"no answer within {timeout:g} s (train.timeout)"
        failures = dict.fromkeys(cohort, silent)
        for reply in collect(grid, messages, timeout):
            client = client_of[reply.metadata.src_node_id]
            try:
                if reply.has_error():
                    failures[client] = failure_reason(reply)
                    continue
                updates[client] = read_update(
                    reply, parameters, self.config.train.update_kind
                )
                del failures[client]
            except InstaHideError as error:
                failures[client] = str(error)
        # Floats are summed in this order, whatever order the replies came in.
        ordered = sorted(updates, key=client_order)
        return {client: updates[client] for client in ordered}, failures


def _check_enough(
    updates: dict[str, ClientUpdate],
    failures: dict[str, str],
    needed: int,
    round_number: int,
) -> None:
    if len(updates) >= needed:
        return
    client, reason = next(iter(failures.items()))
    raise RoundError(
        f"round {round_number}: {len(updates)} of {len(updates) + len(failures)} "
        f"clients sent a valid update, {needed} are needed (train.min-updates); "
        f"client {client}: {reason}"
    )
