"""The tables `[record]`, `[resources]` and `[output]`: what is kept, and where."""

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
    """Rounds whose transcript the server keeps, the parameters sent and every update as
    received: "1, 5-10", or `all`; empty keeps none."""
    truth: bool = False
    """Simulation only: clients write the images, encodings and keys of those rounds
    into the run's `truth/`, so that attacks can be scored. A real client refuses."""
    crafted: Literal["none", "imprint"] = "none"
    """Simulation only: in those rounds the server sends crafted parameters instead of
    the global ones, and drops what comes back. `imprint` (Fowl et al., ICLR 2022): a
    first layer that makes clients send single images."""

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
        return self

    def includes_round(self, round_number: int) -> bool:
        """Tell whether a round (1, 2, ...) is recorded."""
        ranges = parse_rounds(self.rounds)
        return any(first <= round_number <= last for first, last in ranges)


def parse_rounds(text: str) -> list[tuple[int, float]]:
    """Return the ranges in a text such as "1, 5-10"; `all` is everything.

    Raises:
        ValueError: the text is something else.
    """
    if text.strip() == "all":
        return [(1, math.inf)]
    ranges: list[tuple[int, float]] = []
    for part in text.replace(",", " ").split():
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(one.isdecimal() and int(one) > 0 for one in ends) or (
            int(ends[0]) > int(ends[1])
        ):
            raise ValueError('rounds and ranges of rounds, for instance "1, 5-10"')
        ranges.append((int(ends[0]), int(ends[1])))
    return ranges


class ResourcesConfig(Table):
    """What a simulation may use of the machine, or of a Ray cluster."""

    section = "resources"

    workers: CountOrZero = 0
    """Processes that run clients side by side; 0 takes as many as fit."""
    cpus_per_client: Count = 1
    """CPUs reserved for a running client, that is for a worker."""
    gpus_per_client: Annotated[float, Field(ge=0)] = 0.0
    """GPU share reserved for a running client; 0 trains on the CPU."""
    ray_address: str = ""
    """HOST:PORT of a Ray cluster to use (engine ray), or `auto` for the one that runs
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
        """Workers on this machine's CPUs alone."""
        return self.workers or max(1, (os.cpu_count() or 1) // self.cpus_per_client)


class OutputConfig(Table):
    """Where the server writes; no part of an experiment, and not in its config.toml."""

    section = "output"

    folder: str = ""
    """The run folder; empty: `runs/<name>` below the server's working directory."""
    resume: bool = False
    """Continue from the checkpoint in the folder."""
    tensorboard: bool = False
    """Write event files into the run folder, for `tensorboard --logdir runs`."""
    mlflow: str = ""
    """Log to MLflow: the file of a database (`mlflow.db`) or the address of a tracking
    server (`http://HOST:PORT`); empty for none."""

    @field_validator("mlflow")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if "://" in value and "@" in value:
            raise ValueError(
                "must hold no password, because it is written into run folders: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return value
