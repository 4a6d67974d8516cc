"""Every error that instahide-fl raises on purpose.

The text of each says the rule, the value it got and the remedy. The command line
prints it and ends with `exit_code`: 2 for a user's mistake, 1 for a run that failed.
"""

from __future__ import annotations


class InstaHideError(Exception):
    """Base of all errors of this package.

    Attributes:
        exit_code: The exit code of a command that ends with it.
        refusal: The code under which a real client tells a server of it
            (`wire.refusals`); the text stays with the client.
        settings: Names of the run's settings that it is about, which may travel.
    """

    exit_code = 1
    refusal = "internal"
    settings: tuple[str, ...] = ()


class ConfigError(InstaHideError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""

    exit_code = 2
    refusal = "settings"


class DataError(InstaHideError, ValueError):
    """A data set is missing, unreadable, or does not fit the settings."""

    exit_code = 2
    refusal = "data"


class PoolError(InstaHideError, ValueError):
    """A mixing pool is missing, corrupt, or does not fit the data."""

    exit_code = 2
    refusal = "pool"


class ShapeError(InstaHideError, ValueError):
    """Tensors disagree in shape or dtype."""


class OutputError(InstaHideError, OSError):
    """A result cannot be written, or would overwrite another."""

    exit_code = 2
    refusal = "output"


class TranscriptError(InstaHideError, ValueError):
    """A recorded round, or the truth about it, is missing or damaged."""

    exit_code = 2


class ThreatModelError(InstaHideError, ValueError):
    """An attack needs what its threat model does not give."""

    exit_code = 2


class AttackError(InstaHideError, ValueError):
    """An attack does not apply to this run."""

    exit_code = 2


class RoundError(InstaHideError, RuntimeError):
    """A round of training failed: too few valid updates came back."""


class DivergenceError(RoundError):
    """Training has left the finite numbers: a loss, an update or a step is NaN."""


class ProtocolError(InstaHideError, RuntimeError):
    """Server and client disagree on code, pool or message schema."""

    refusal = "protocol"


class PolicyError(InstaHideError, RuntimeError):
    """A client refuses a run that its own policy does not allow."""

    refusal = "limits"


class EngineError(InstaHideError, RuntimeError):
    """The runtime that carries the apps failed (Flower, Ray, a child process)."""


class StudyError(InstaHideError, RuntimeError):
    """Runs of a study failed."""


def error_named(name: str, message: str) -> InstaHideError:
    """Rebuild an error from its class name, as read back from a run folder.

    Args:
        name: The class name, for instance "RoundError"; unknown names become
            EngineError.
        message: The text of the error.
    """
    for kind in (
        ConfigError,
        DataError,
        PoolError,
        ShapeError,
        OutputError,
        TranscriptError,
        ThreatModelError,
        AttackError,
        RoundError,
        DivergenceError,
        ProtocolError,
        PolicyError,
    ):
        if kind.__name__ == name:
            return kind(message)
    return EngineError(message)
