"""A round of training: choose a cohort, collect and check updates, aggregate, step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch
from flwr.serverapp import Grid
from torch import Tensor

from instahide_fl.aggregation.reduction import Contribution, ReducedUpdates, UpdateSum
from instahide_fl.aggregation.robust import robust_rule
from instahide_fl.aggregation.server_optimizer import ServerOptimizer
from instahide_fl.config import Config
from instahide_fl.defenses.example_gradients import noisy_mean
from instahide_fl.errors import DivergenceError
from instahide_fl.flower.arrays import ArrayForm
from instahide_fl.rng import operating_system_stream, stream
from instahide_fl.types import ChannelStatistics
from instahide_fl.wire.messages import RoundInstruction
from server.cohort import Clients
from server.collection import reduce_updates
from server.divergence import failed_round
from server.recorder import Recorder
from server.records import Sender, UpdateReader, round_content
from server.secure_aggregation import SecureRound

Value = TypeVar("Value")

MIN_MULTIPLE_OF_MEDIAN = 10.0  # of the norm of an update that is warned of


@dataclass(frozen=True)
class RoundOutcome:
    """What happened in a round.

    Attributes:
        contributions: The figures of each valid update, by client key in order.
        failures: The reason why each other client has none, by client key.
        bytes_down: Size of the parameters sent, over all clients.
        compute_seconds: Time for which the round waited for computing clients.
        transfer_seconds: The rest of the time between sending and having all updates.
        aggregation_seconds: Time for adding up, mean and optimizer step.
        exposures: Exposures of these clients' private images, over all rounds so far.
    """

    contributions: Mapping[str, Contribution]
    failures: Mapping[str, str]
    bytes_down: int
    compute_seconds: float
    transfer_seconds: float
    aggregation_seconds: float
    exposures: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Time from sending the parameters to the end of the optimizer's step."""
        return self.compute_seconds + self.transfer_seconds + self.aggregation_seconds

    @property
    def large_updates(self) -> dict[str, float]:
        """How many times the median norm the updates have that stand out, by client."""
        return stand_out(
            {client: each.norm for client, each in self.contributions.items()}
        )

    @property
    def bytes_up(self) -> int:
        """Size of the updates, over all clients."""
        return sum(update.nbytes for update in self.contributions.values())

    @property
    def train_loss(self) -> float | None:
        """Mean loss on encodings over the clients' images; None if not sent."""
        losses = [
            (update.metrics["train_loss"], update.num_examples)
            for update in self.contributions.values()
            if "train_loss" in update.metrics
        ]
        if not losses:
            return None
        total_images = sum(images for _, images in losses)
        return sum(loss * images for loss, images in losses) / total_images


@dataclass(frozen=True)
class Strategy:
    """FedSGD or FedAvg, with any aggregation rule and server optimizer.

    Attributes:
        config: The run's settings.
        optimizer: The holder of the global parameters, which moves them.
        clients: The clients of the federation.
        statistics: The constants with which clients normalise private images.
        recorder: The recorder of the rounds that the settings name.
    """

    config: Config
    optimizer: ServerOptimizer
    clients: Clients
    statistics: ChannelStatistics
    recorder: Recorder

    def run_round(self, grid: Grid, round_number: int) -> RoundOutcome:
        """Train for one round.

        Args:
            grid: Flower's grid.
            round_number: 1, 2, ...

        Raises:
            RoundError: fewer valid updates came than `train.min-updates`.
            DivergenceError: that is so because most of those that lack are not finite,
                or the step gave values that are not finite.
            OutputError: a transcript cannot be written.
        """
        cohort = self.clients.cohort(self.config, round_number)
        instruction = RoundInstruction(
            round_number,
            self.clients.pool_sha256,
            self.statistics,
            self._learning_rate_factor(round_number, "update"),
        )
        sent = self._parameters(round_number)
        start = time.perf_counter()
        reduced = self._collect(grid, instruction, sent, cohort)
        collected = time.perf_counter()
        failures = self._by_client(cohort, reduced.failures)
        _check_enough(len(cohort), failures, self.config, round_number)
        bytes_down = sum(array.nbytes for array in sent.values()) * len(cohort)
        self._record_and_step(instruction, sent, cohort, reduced)
        finished = time.perf_counter()
        waited = collected - start - reduced.adding_seconds
        contributions = self._by_client(cohort, reduced.contributions)
        return RoundOutcome(
            contributions=contributions,
            failures=failures,
            bytes_down=bytes_down,
            compute_seconds=min(reduced.compute_seconds, waited),
            transfer_seconds=max(0.0, waited - reduced.compute_seconds),
            aggregation_seconds=finished - collected + reduced.adding_seconds,
            exposures=combine_exposures(contributions, self.clients.num_examples),
        )

    def _aggregate(
        self, total: UpdateSum | None, sent: Mapping[str, Tensor], round_number: int
    ) -> dict[str, Tensor]:
        """Return what the optimizer steps with: a mean, noisy in central privacy."""
        defense = self.config.defense
        if defense.differential_privacy != "central":
            assert total is not None
            # Engine inline adds updates up where they were computed, as on a GPU.
            return {name: mean.cpu() for name, mean in total.mean().items()}
        summed = {name: torch.zeros_like(array) for name, array in sent.items()}
        if total is not None:
            # All clients weigh 1 here, so the weight is their number.
            num_clients = total.weight
            summed = {n: mean.cpu() * num_clients for n, mean in total.mean().items()}
        seeded = stream(self.config.seed, "central-noise", round_number)
        return noisy_mean(
            summed,
            defense.noise_multiplier * defense.clip_norm,
            self.clients.expected_cohort(self.config),
            seeded if self.clients.simulated else operating_system_stream(),
        )

    def _record_and_step(
        self,
        instruction: RoundInstruction,
        sent: Mapping[str, Tensor],
        cohort: Sequence[str],
        reduced: ReducedUpdates,
    ) -> None:
        """Write the transcript, if this round is recorded, and move the parameters."""
        round_number = instruction.round
        aggregate = self._aggregate(reduced.total, sent, round_number)
        if self.recorder.records_round(round_number):
            self.recorder.record(
                instruction,
                sent,
                updates=self._by_client(cohort, reduced.updates),
                aggregate=aggregate,
                images_held=self.clients.num_examples,
            )
        # Gradients at crafted parameters say nothing about the true ones.
        if not self.recorder.crafts_round(round_number):
            self.optimizer.step(
                aggregate,
                self.config.train.update_kind,
                self._learning_rate_factor(round_number, "gradient"),
                len(reduced.contributions) / len(self.clients.nodes),
            )
            if not self.optimizer.is_finite():
                raise DivergenceError(
                    f"round {round_number}: the server's step gives values that are "
                    f"not finite: lower server.learning-rate "
                    f"({self.config.server_learning_rate:g})"
                )

    def _by_client(
        self, cohort: Sequence[str], by_node: Mapping[int, Value]
    ) -> dict[str, Value]:
        """Return the values that nodes of the cohort have, by client key in order."""
        nodes = {client: self.clients.nodes[client] for client in cohort}
        return {
            client: by_node[node] for client, node in nodes.items() if node in by_node
        }

    def _parameters(self, round_number: int) -> Mapping[str, Tensor]:
        """Return what clients are sent: the global arrays, or crafted ones."""
        if not self.recorder.crafts_round(round_number):
            return self.optimizer.arrays
        # Imported here: only a simulated malicious server needs it.
        from instahide_fl.attacks.imprint import crafted_parameters

        recorder = self.recorder
        return crafted_parameters(
            self.optimizer.arrays,
            self.config,
            recorder.image_shape,
            recorder.num_classes,
        )

    def _collect(
        self,
        grid: Grid,
        instruction: RoundInstruction,
        sent: Mapping[str, Tensor],
        cohort: Sequence[str],
    ) -> ReducedUpdates:
        """Return the sum of the valid updates and the failures, by node."""
        if not cohort:  # a Poisson sample (central differential privacy) may be empty
            return ReducedUpdates(
                total=None,
                contributions={},
                failures={},
                compute_seconds=0.0,
                adding_seconds=0.0,
            )
        # The cohort is in client order: floats are summed in it.
        nodes = {client: self.clients.nodes[client] for client in cohort}
        sizes = {client: self.clients.num_examples[client] for client in cohort}
        content = round_content(instruction, sent)
        if self.config.secure_aggregation.enabled:
            secure = SecureRound(grid, self.config, instruction.round, nodes, sizes)
            shapes = {name: tuple(value.shape) for name, value in sent.items()}
            return secure.reduce(content, shapes)
        senders = {nodes[client]: Sender(client, sizes[client]) for client in cohort}
        return reduce_updates(
            grid=grid,
            content=content,
            node_ids=list(nodes.values()),
            group_id=str(instruction.round),
            reader=UpdateReader(
                forms={name: ArrayForm.of(value) for name, value in sent.items()},
                kind=self.config.train.update_kind,
                aggregation=self.config.server.aggregation,
                round=instruction.round,
                senders=senders,
                tells_loss=not self.config.defense.is_private,
                max_norm=self.config.server.max_update_norm,
                # It takes a tenth of a small network's round, and simulated clients
                # are as honest as whoever started them.
                measures_norms=not self.clients.simulated,
            ),
            sizes=list(sizes.values()),
            timeout=self.config.train.timeout,
            side_by_side=self._side_by_side(grid, len(cohort)),
            rule=robust_rule(self.config.server),
            keep_updates=self.recorder.records_round(instruction.round),
        )

    def _learning_rate_factor(self, round_number: int, mode: str) -> float:
        """Return the schedule's factor for the side that steps in `mode`; else 1.

        In mode gradient the server takes the steps, in mode update the clients do.
        """
        train = self.config.train
        return train.learning_rate_factor(round_number) if train.mode == mode else 1.0

    def _side_by_side(self, grid: Grid, cohort: int) -> int:
        """Return how many clients compute at once: all real ones, few simulated."""
        if isinstance(side_by_side := getattr(grid, "side_by_side", None), int):
            return side_by_side
        if not self.clients.simulated:
            return cohort
        return min(cohort, self.config.resources.local_workers)


def stand_out(norms: Mapping[str, float | None]) -> dict[str, float]:
    """Return the norms far beyond the others', as multiples of the median.

    Args:
        norms: Norms by client key; None where none was measured.

    Returns:
        The norm over the median norm, by client key, where it is at least
        `MIN_MULTIPLE_OF_MEDIAN`; infinite if the median is 0. Nothing for fewer than
        three clients, of whom it cannot be said who stands out.
    """
    measured = {client: norm for client, norm in norms.items() if norm is not None}
    if len(measured) < 3:
        return {}
    middle = median(measured.values())
    multiples = {
        client: norm / middle if middle else math.inf if norm else 0.0
        for client, norm in measured.items()
    }
    return {c: m for c, m in multiples.items() if m >= MIN_MULTIPLE_OF_MEDIAN}


def combine_exposures(
    contributions: Mapping[str, Contribution], images_held: Mapping[str, int]
) -> dict[str, float]:
    """Combine the clients' figures about the exposures of their images.

    Args:
        contributions: The figures of each valid update, by client key.
        images_held: Number of images, by client key.

    Returns:
        max and mean over all images of these clients; with a limit also `beyond`, the
        number of images beyond instahide.max-exposures. Empty if no client sends any.
    """
    figures = [
        (update.metrics, images_held[client])
        for client, update in contributions.items()
        if "exposures_max" in update.metrics
    ]
    if not figures:
        return {}
    total_images = sum(images for _, images in figures)
    total = sum(metrics["exposures_mean"] * images for metrics, images in figures)
    exposures = {
        "max": max(metrics["exposures_max"] for metrics, _ in figures),
        "mean": total / total_images,
    }
    if all("exposures_beyond" in metrics for metrics, _ in figures):
        exposures["beyond"] = sum(metrics["exposures_beyond"] for metrics, _ in figures)
    return exposures


def _check_enough(
    cohort: int, failures: Mapping[str, str], config: Config, round_number: int
) -> None:
    """Refuse a round that lacks updates; a cohort may be smaller, or empty, by chance.

    Raises:
        RoundError: too few updates came; with the first client's reason.
    """
    min_updates = config.train.min_updates or cohort
    came, needed = cohort - len(failures), min(min_updates, cohort)
    if came >= max(1, needed) or cohort == 0:
        return
    client, reason = next(iter(failures.items()))
    text = (
        f"round {round_number}: {came} of {cohort} clients sent a valid update, "
        f"{needed} are needed (train.min-updates); client {client}: {reason}"
    )
    raise failed_round(text, failures, config)
