"""The tables `[record]`, `[resources]` and `[output]`: what is kept, by what, where."""

from __future__ import annotations

import math
import os
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from instahide_fl.config.base import Count, CountOrZero, Table


class RecordConfig(Table):
    """What is kept of a run for attacks on it (`instahide-fl attack`)."""

    section = "record"

    rounds: str = ""
    """The rounds to record, for instance "1, 5-10", or `all`; empty for none. Of these
    the server keeps a transcript: the parameters it sent and every update it
    received."""
    truth: bool = False
    """Whether clients write the images, encodings and keys of the recorded rounds into
    the run's folder `truth/`, so that attacks can be scored. In a simulation only: real
    clients refuse."""
    holdout_share: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Share of the training images that no client receives, drawn from every class, so
    that attacks which ask who was trained on have images to tell members from. Needs
    `truth`, for the scorer alone knows which they are. 0 holds out none."""
    crafted: Literal["none", "imprint"] = "none"
    """Crafted parameters that the server sends in the recorded rounds instead of the
    global ones; it drops the updates that come back. `imprint` (Fowl et al., ICLR
    2022): a first layer that makes clients send single images. In a simulation only."""

    @field_validator("rounds", mode="before")
    @classmethod
    def _one_round(cls, value: object) -> object:
        return str(value) if type(value) is int else value

    @field_validator("rounds", mode="after")
    @classmethod
    def _rounds_in_text(cls, value: str) -> str:
        parse_rounds(value)
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if not self.rounds.strip() and (self.truth or self.crafted != "none"):
            name = "truth" if self.truth else "crafted"
            raise ValueError(f'{name} needs rounds to record: set rounds = "1"')
        if self.holdout_share and not self.truth:
            raise ValueError(
                f"holdout-share holds images out for a scorer who knows the truth: set "
                f"truth = true, or holdout-share = 0, got {self.holdout_share:g}"
            )
        return self

    def includes_round(self, round_number: int) -> bool:
        """Tell whether a round is recorded.

        Args:
            round_number: 1, 2, ...
        """
        ranges = parse_rounds(self.rounds)
        return any(first <= round_number <= last for first, last in ranges)


def parse_rounds(text: str) -> list[tuple[int, float]]:
    """Return the first and last round of each range in a text such as "1, 5-10".

    The text `all` is the range from 1 to infinity.

    Raises:
        ValueError: the text is something else.
    """
    if text.strip() == "all":
        return [(1, math.inf)]
    ranges: list[tuple[int, float]] = []
    for part in text.replace(",", " ").split():
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(end.isdecimal() and int(end) > 0 for end in ends) or (
            int(ends[0]) > int(ends[1])
        ):
            raise ValueError('rounds and ranges of rounds, for instance "1, 5-10"')
        ranges.append((int(ends[0]), int(ends[1])))
    return ranges


class ResourcesConfig(Table):
    """What a simulation may use of the machine, or of a Ray cluster."""

    section = "resources"

    workers: CountOrZero = 0
    """Number of processes that run clients at the same time; 0 takes as many as fit."""
    cpus_per_client: Count = 1
    """Number of CPUs reserved for each running client, that is for a worker process."""
    gpus_per_client: Annotated[float, Field(ge=0)] = 0.0
    """Number of GPUs, or the share of one, reserved for each running client; 0 trains
    on the CPU."""
    ray_address: str = ""
    """HOST:PORT of the Ray cluster to use (engine ray), or `auto` for the one that runs
    on this machine; empty starts a private one."""

    @field_validator("ray_address")
    @classmethod
    def _no_ray_client(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                "must be HOST:PORT of a node of the cluster this machine belongs to, "
                "or auto; an address with :// is for Ray's remote client"
            )
        return value

    @property
    def local_workers(self) -> int:
        """The number of workers, as far as this machine's CPUs decide it."""
        return self.workers or max(1, (os.cpu_count() or 1) // self.cpus_per_client)


class OutputConfig(Table):
    """Where the server writes; no part of an experiment, and not in its config.toml."""

    section = "output"

    folder: str = ""
    """The run folder; if empty, `runs/<name>` below the server's working directory."""
    resume: bool = False
    """Whether to continue from the checkpoint in the run folder."""
    tensorboard: bool = False
    """Whether to write event files into the run folder, for `tensorboard --logdir
    runs`."""
    mlflow: str = ""
    """Where to log to MLflow: a database file (`mlflow.db`) or the address of a
    tracking server (`http://HOST:PORT`); empty for nowhere."""

    @field_validator("mlflow")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if "://" in value and "@" in value:
            raise ValueError(
                "must hold no password, because it is written into run folders: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return value
