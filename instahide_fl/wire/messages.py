"""The messages between server and clients: the one module both agree on.

Nothing here can hold an `EncodingKey`, an original image, a label or a coefficient.
The classes are plain values; `clients/records.py` and `server/records.py` put them into
Flower records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from instahide_fl.errors import ProtocolError
from instahide_fl.types import ChannelStatistics
from instahide_fl.wire.refusals import refused

SCHEMA = 5
ARRAYS = "arrays"  # name of the record with global parameters, or with an update
ABOUT = "about"  # name of the record with one of the classes below
METRICS = "metrics"  # name of the record with a client's numbers
NUM_EXAMPLES = "num-examples"
MAX_NAME_LENGTH = 100  # characters of a client's name
MAX_IMAGES = 2**40  # images of a client; beyond, its answer makes no sense
MAX_ROUNDS = 2**40
MAX_SIDE = 2**20  # pixels of an image

Value: TypeAlias = int | float | str | list[float] | list[int]


@dataclass(frozen=True, slots=True)
class DescriptionQuery:
    """The server's first question to a client.

    Attributes:
        image_shape: (C, H, W) of the run's images.
    """

    image_shape: tuple[int, int, int]

    def to_values(self) -> dict[str, Value]:
        """Return the values of the message's record."""
        return {"schema": SCHEMA, "image-shape": list(self.image_shape)}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Read the message from its record's values.

        Raises:
            ProtocolError: the other side speaks another version, or a value cannot be.
        """
        check_schema(values)
        shape = _numbers(values, "image-shape")
        if len(shape) != 3 or any(side not in range(1, MAX_SIDE + 1) for side in shape):
            raise ProtocolError(
                f"image-shape must be channels, height and width, a message says "
                f"{_shown(shape)}"
            )
        channels, height, width = map(int, shape)
        return cls((channels, height, width))

    def check_images(self, client: str, image_shape: tuple[int, int, int]) -> None:
        """Refuse a run whose images have another shape.

        Args:
            client: The client's name.
            image_shape: (C, H, W) of the client's images.

        Raises:
            ProtocolError: The shapes differ.
        """
        if image_shape == self.image_shape:
            return
        channels, height, width = self.image_shape
        if image_shape[0] != channels:
            remedy = f"data.channels = {channels}"
        else:
            remedy = f"data.image-size = {min(height, width)}"
        error = ProtocolError(
            f"client {client} holds images of {'x'.join(map(str, image_shape))} "
            f"(channels x height x width), the run's are of "
            f"{channels}x{height}x{width}: set {remedy} in the run's settings"
        )
        raise refused(error, "image-shape", [remedy.partition(" ")[0]])


@dataclass(frozen=True, slots=True)
class ClientDescription:
    """A client's answer to the server's first question.

    Attributes:
        client: Stable key: the partition number in simulation, a name when deployed.
        num_examples: Number of images that it holds.
        imported_code_hash: Hash of the code that it runs (see `provenance`).
        pool_sha256: sha256 of the pool that it mixes with; empty if its encodings use
            none.
    """

    client: str
    num_examples: int
    imported_code_hash: str
    pool_sha256: str

    def to_values(self) -> dict[str, Value]:
        """Return the values of the message's record."""
        return {
            "schema": SCHEMA,
            "client": self.client,
            NUM_EXAMPLES: self.num_examples,
            "code-hash": self.imported_code_hash,
            "pool-sha256": self.pool_sha256,
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Read the message from its record's values.

        Raises:
            ProtocolError: the other side speaks another version, or a value cannot be.
        """
        check_schema(values)
        return cls(
            _client_name(_text(values, "client")),
            _integer(values, NUM_EXAMPLES, 1, MAX_IMAGES),
            _text(values, "code-hash"),
            _text(values, "pool-sha256"),
        )


@dataclass(frozen=True, slots=True)
class RoundInstruction:
    """What the server sends with the global parameters.

    Attributes:
        round: The round's number, from 1.
        pool_sha256: sha256 of the pool that the run agreed on; empty if encodings use
            none.
        statistics: The constants with which all clients normalise private images.
        learning_rate_factor: Factor of the schedule, for clients that train (mode
            update).
    """

    round: int
    pool_sha256: str
    statistics: ChannelStatistics
    learning_rate_factor: float = 1.0

    def to_values(self) -> dict[str, Value]:
        """Return the values of the message's record."""
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
        """Read the message from its record's values.

        Raises:
            ProtocolError: the other side speaks another version, or a value cannot be.
        """
        check_schema(values)
        statistics = ChannelStatistics(
            _numbers(values, "mean"), _numbers(values, "std")
        )
        if min(statistics.std, default=0.0) <= 0:
            raise ProtocolError(
                f"std must be positive, a message says {statistics.std}"
            )
        return cls(
            _integer(values, "round", 1, MAX_ROUNDS),
            _text(values, "pool-sha256"),
            statistics,
            _number(values, "learning-rate-factor"),
        )


@dataclass(frozen=True, slots=True)
class UpdateHeader:
    """What a client sends with its update.

    Attributes:
        client: The client's stable key.
        kind: "gradient" or "delta".
        round: The round that the update was computed for.
    """

    client: str
    kind: str
    round: int

    def to_values(self) -> dict[str, Value]:
        """Return the values of the message's record."""
        return {
            "schema": SCHEMA,
            "client": self.client,
            "kind": self.kind,
            "round": self.round,
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Read the message from its record's values.

        Raises:
            ProtocolError: the other side speaks another version, or a value cannot be.
        """
        check_schema(values)
        return cls(
            _text(values, "client"),
            _text(values, "kind"),
            _integer(values, "round", 1, MAX_ROUNDS),
        )


def check_schema(values: Mapping[str, Any]) -> None:
    """Check that a message is of this version.

    Raises:
        ProtocolError: the other side speaks another version.
    """
    if values.get("schema") != SCHEMA:
        raise ProtocolError(
            f"a message of schema {_shown(values.get('schema'))} came, this side "
            f"speaks {SCHEMA}: run the same version of instahide-fl on both sides"
        )


def _text(values: Mapping[str, Any], name: str) -> str:
    value = _value(values, name)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} must be a text, a message says {_shown(value)}")
    return value


def _client_name(name: str) -> str:
    """Check a name that will stand in logs, in tables and in names of files."""
    if 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and "/" not in name:
        return name
    raise ProtocolError(
        f"a client's name must have 1 to {MAX_NAME_LENGTH} printable characters and no "
        f"slash, a client says {_shown(name)}"
    )


def _integer(values: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = _value(values, name)
    # Not isinstance: True is an instance of int.
    if type(value) is int and low <= value <= high:
        return value
    raise ProtocolError(
        f"{name} must be a whole number from {low} to {high}, a message says "
        f"{_shown(value)}"
    )


def _number(values: Mapping[str, Any], name: str) -> float:
    return finite_number(name, _value(values, name))


def _numbers(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    numbers = _value(values, name)
    if not isinstance(numbers, list | tuple) or not numbers:
        raise ProtocolError(f"{name} must be numbers, a message says {_shown(numbers)}")
    return tuple(finite_number(name, number) for number in numbers)


def finite_number(name: str, value: object) -> float:
    """Return a message's value as a float.

    Args:
        name: The value's name, for the error's text.
        value: Anything that the other side may have sent.

    Raises:
        ProtocolError: the value is no number, or not finite.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        # An integer may be too large for a float.
        if isinstance(value, int) and abs(value) < 2**63:
            return float(value)
        if isinstance(value, float) and math.isfinite(value):
            return value
    raise ProtocolError(
        f"{name} must be a finite number, a message says {_shown(value)}"
    )


def _value(values: Mapping[str, Any], name: str) -> object:
    if name not in values:
        raise ProtocolError(f"a message lacks {name}")
    return values[name]


def _shown(value: object) -> str:
    """Return a value of unknown origin as a text of bounded length."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a number of more than 63 bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
