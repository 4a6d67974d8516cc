"""The clients of a federation: finding them, and sampling a round's cohort."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.serverapp import Grid

from instahide_fl.config import Config
from instahide_fl.errors import ProtocolError, RoundError
from instahide_fl.provenance import imported_code_hash
from instahide_fl.rng import operating_system_stream, stream
from instahide_fl.training.cohort_sampling import cohort_size, sample_cohort
from instahide_fl.types import client_sort_key
from instahide_fl.wire.messages import ClientDescription, DescriptionQuery
from server.collection import collect
from server.records import description_queries, failure_reason, read_description


@dataclass(frozen=True)
class Clients:
    """The clients of a federation.

    Flower's node ids are random, and replies come in any order. So everything is sorted
    and sampled by client key: the same seed gives the same cohorts and the same sums.

    Attributes:
        nodes: Flower's node id by client key, in the order of keys.
        num_examples: Number of images by client key.
        pool_sha256: sha256 of the pool that all of them hold; empty for none.
    """

    nodes: Mapping[str, int]
    num_examples: Mapping[str, int]
    pool_sha256: str

    @property
    def simulated(self) -> bool:
        """Whether these are simulated clients: only those are named by numbers."""
        return all(client.isdecimal() for client in self.nodes)

    def cohort(self, config: Config, round_number: int) -> list[str]:
        """Choose the clients of a round.

        Args:
            config: The run's settings. With central differential privacy the cohort is
                a Poisson sample, as the accountant assumes; else its size is fixed.
            round_number: 1, 2, ...

        Returns:
            Client keys in order; a Poisson sample may be empty.
        """
        size = config.train.clients_per_round
        if config.defense.differential_privacy == "central":
            return self.poisson_sample(config.seed, round_number, size)
        return self.sample(config.seed, round_number, size)

    def expected_cohort(self, config: Config) -> int:
        """Return the size of a cohort, or its mean if cohorts are Poisson samples."""
        return cohort_size(config.train.clients_per_round, len(self.nodes))

    def sample(self, seed: int, round_number: int, size: int) -> list[str]:
        """Choose a cohort of fixed size, without replacement.

        Args:
            seed: The run's seed.
            round_number: 1, 2, ...
            size: Number of clients to choose; 0 takes all.

        Returns:
            Client keys in order.
        """
        return sample_cohort(list(self.nodes), seed, round_number, size)

    def poisson_sample(self, seed: int, round_number: int, size: int) -> list[str]:
        """Choose each client independently, with the same probability.

        The cohort must stay unknown to whoever epsilon holds against, so for real
        clients the operating system chooses.

        Args:
            seed: The run's seed.
            round_number: 1, 2, ...
            size: Mean number of clients to choose; 0 takes all.

        Returns:
            Client keys in order; may be empty.
        """
        keys = list(self.nodes)
        if not 0 < size < len(keys):
            return keys
        seeded = stream(seed, "poisson-cohort", round_number)
        rng = seeded if self.simulated else operating_system_stream()
        drawn = rng.random(len(keys)) < size / len(keys)
        return [key for key, is_in in zip(keys, drawn, strict=True) if is_in]


def find_clients(
    grid: Grid, expected: int, timeout: float, image_shape: tuple[int, int, int]
) -> Clients:
    """Wait for the clients and ask each who it is.

    Args:
        grid: Flower's grid.
        expected: Number of clients; 0 takes those that are there.
        timeout: Seconds to wait for nodes, and again for their answers.
        image_shape: (C, H, W) of the run's images, which clients compare with theirs.

    Raises:
        RoundError: too few came, one failed to answer, or two have the same key.
        ProtocolError: they run other code than the server, or hold different pools.
    """
    nodes = _wait_for_nodes(grid, expected, timeout)
    queries = description_queries(nodes, DescriptionQuery(image_shape))
    replies = list(collect(grid, queries, timeout))
    for _, reply in replies:
        if reply.has_error():
            raise RoundError(f"a client is not ready: {failure_reason(reply)}")
    if len(replies) < len(nodes):
        raise RoundError(
            f"{len(replies)} of {len(nodes)} clients answered within {timeout:g} s "
            f"(train.timeout)"
        )
    described = [(read_description(reply), node) for node, reply in replies]
    # Sorted once, here: cohorts, sums and transcripts take over this order.
    described.sort(key=lambda pair: client_sort_key(pair[0].client))
    _check_agreement([description for description, _ in described])
    return Clients(
        nodes={description.client: node for description, node in described},
        num_examples={
            description.client: description.num_examples for description, _ in described
        },
        pool_sha256=described[0][0].pool_sha256,
    )


def _wait_for_nodes(grid: Grid, expected: int, timeout: float) -> list[int]:
    """Return the ids of the expected nodes, or of all once no more arrive."""
    deadline = time.monotonic() + timeout
    nodes: list[int] = []
    while time.monotonic() < deadline:
        before, nodes = len(nodes), sorted(grid.get_node_ids())
        if expected and len(nodes) >= expected:
            return nodes
        if not expected and nodes and len(nodes) == before:
            return nodes
        time.sleep(0.05 if expected else 1.0)
    raise RoundError(
        f"{len(nodes)} of {expected or 'any number of'} clients "
        f"(partition.num-clients) came within {timeout:g} s (train.timeout)"
    )


def _check_agreement(descriptions: Sequence[ClientDescription]) -> None:
    keys = [description.client for description in descriptions]
    if len(set(keys)) < len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise RoundError(f"several clients have the same name: {', '.join(twice)}")
    server_hash, first = imported_code_hash(), descriptions[0]
    for description in descriptions:
        if description.imported_code_hash != server_hash:
            raise ProtocolError(
                f"client {description.client} runs other code "
                f"({description.imported_code_hash[:12]}) than the server "
                f"({server_hash[:12]}): start both from the same checkout or version"
            )
        if description.pool_sha256 != first.pool_sha256:
            raise ProtocolError(
                f"clients {first.client} and {description.client} hold different "
                f"pools ({first.pool_sha256[:12]}, {description.pool_sha256[:12]})"
            )
