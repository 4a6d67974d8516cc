"""What server and clients say to each other: the one module both agree on.

Nothing here can hold an `EncodingKey`, an original image, a label or a coefficient.
The classes are plain values; `clients/records.py` and `server/records.py` put them into
Flower records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from instahide_fl.errors import ProtocolError
from instahide_fl.types import ChannelStatistics

SCHEMA = 2
ARRAYS = "arrays"  # name of the record with global parameters, or with an update
ABOUT = "about"  # name of the record with one of the classes below
METRICS = "metrics"  # name of the record with a client's numbers
NUM_EXAMPLES = "num-examples"

Value: TypeAlias = int | float | str | list[float]


@dataclass(frozen=True, slots=True)
class ClientDescription:
    """A client's answer to the server's first question.

    Attributes:
        client: stable key: the partition number in simulation, a name when deployed.
        num_examples: images it holds.
        code_hash: of the code it runs.
        pool_sha256: of the pool it mixes with; empty if its encodings use none.
    """

    client: str
    num_examples: int
    code_hash: str
    pool_sha256: str

    def to_values(self) -> dict[str, Value]:
        """Return the content of its record."""
        return {
            "schema": SCHEMA,
            "client": self.client,
            NUM_EXAMPLES: self.num_examples,
            "code-hash": self.code_hash,
            "pool-sha256": self.pool_sha256,
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Read it back.

        Raises:
            ProtocolError: the other side speaks another version.
        """
        check_schema(values)
        return cls(
            str(values["client"]),
            int(values[NUM_EXAMPLES]),
            str(values["code-hash"]),
            str(values["pool-sha256"]),
        )


@dataclass(frozen=True, slots=True)
class RoundInstruction:
    """What accompanies the global parameters.

    Attributes:
        round: 1, 2, ...
        pool_sha256: the pool that the run agreed on; empty if encodings use none.
        statistics: constants that all clients normalise private images with.
        learning_rate_factor: of the schedule, for clients that train (mode update).
    """

    round: int
    pool_sha256: str
    statistics: ChannelStatistics
    learning_rate_factor: float = 1.0

    def to_values(self) -> dict[str, Value]:
        """Return the content of its record."""
        return {
            "schema": SCHEMA,
            "round": self.round,
            "pool-sha256": self.pool_sha256,
            "mean": list(self.statistics.mean),
            "std": list(self.statistics.std),
            "learning-rate-factor": self.learning_rate_factor,
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Read it back.

        Raises:
            ProtocolError: the other side speaks another version.
        """
        check_schema(values)
        statistics = ChannelStatistics(tuple(values["mean"]), tuple(values["std"]))
        return cls(
            int(values["round"]),
            str(values["pool-sha256"]),
            statistics,
            float(values["learning-rate-factor"]),
        )


@dataclass(frozen=True, slots=True)
class UpdateHeader:
    """What accompanies a client's update.

    Attributes:
        client: stable key.
        kind: "gradient" or "delta".
    """

    client: str
    kind: str

    def to_values(self) -> dict[str, Value]:
        """Return the content of its record."""
        return {"schema": SCHEMA, "client": self.client, "kind": self.kind}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Read it back.

        Raises:
            ProtocolError: the other side speaks another version.
        """
        check_schema(values)
        return cls(str(values["client"]), str(values["kind"]))


def check_schema(values: Mapping[str, Any]) -> None:
    """Check that a message is of this version.

    Raises:
        ProtocolError: the other side speaks another one.
    """
    if values.get("schema") != SCHEMA:
        raise ProtocolError(
            f"a message of schema {values.get('schema')} came, this side speaks "
            f"{SCHEMA}: run the same version of instahide-fl on both sides"
        )
