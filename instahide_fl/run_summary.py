"""What summary.json of a finished run says, checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class RunSummary(BaseModel):
    """The figures of summary.json that commands and reports read.

    A summary of an older version lacks some; what is not listed here is kept unchecked.

    Attributes:
        rounds: The number of rounds.
        final_accuracy: The accuracy on clean test images at the end, in [0, 1].
        best_accuracy: The highest accuracy of any evaluated round, in [0, 1].
        final_accuracy_encoded: The accuracy at the end on the average prediction over
            encodings of each test image, in [0, 1].
        final_loss: The test loss at the end.
        trained: Whether the network has learned more than the largest class.
        chance_bound: The accuracy that chance reaches, in [0, 1].
        validation_accuracy: The accuracy on validation images at the end, in [0, 1].
        best_validation_accuracy: The highest of any evaluated round, in [0, 1].
        best_validation_round: The round that reached it.
        test_accuracy_at_best_validation: The accuracy on clean test images after it.
        seconds: The duration of all rounds together, in seconds.
        bytes_up: The bytes that clients sent.
        bytes_down: The bytes that the server sent.
        failures: The number of replies that failed.
        epsilon: The epsilon of differential privacy.
        epsilon_rdp: The same by the Renyi accountant alone.
        delta: The delta of differential privacy.
        privacy_unit: The unit that differential privacy protects.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    rounds: int | None = None
    final_accuracy: float | None = None
    best_accuracy: float | None = None
    final_accuracy_encoded: float | None = None
    final_loss: float | None = None
    trained: bool | None = None
    chance_bound: float | None = None
    validation_accuracy: float | None = None
    best_validation_accuracy: float | None = None
    best_validation_round: int | None = None
    test_accuracy_at_best_validation: float | None = None
    seconds: float | None = None
    bytes_up: float | None = None
    bytes_down: float | None = None
    failures: int | None = None
    epsilon: float | None = None
    epsilon_rdp: float | None = None
    delta: float | None = None
    privacy_unit: str | None = None

    @model_validator(mode="after")
    def _chance_is_told(self) -> RunSummary:
        if self.trained is False and None in (self.final_accuracy, self.chance_bound):
            raise ValueError("trained is false without final_accuracy or chance_bound")
        return self


def check_summary(content: Mapping[str, Any]) -> None:
    """Check that the figures of a summary are what commands and reports expect.

    Args:
        content: The content of summary.json.

    Raises:
        ValueError: a figure has another type, or is missing beside one that needs it.
    """
    try:
        RunSummary(**content)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        raise ValueError(": ".join(filter(None, [name, message]))) from None
