"""What a real client tells a server of its failures: a code of a fixed list.

The texts of errors name files, folders and numbers of images. They stay in the client's
log. What travels is a code with its text, and names of the run's settings, which the
server has sent itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from instahide_fl.config import Config
from instahide_fl.errors import InstaHideError

Error = TypeVar("Error", bound=InstaHideError)

REASONS = {
    "limits": "its client.toml does not allow settings of this run",
    "other-code": "the server sent other code than the one that it has pinned",
    "settings": "the run's settings or its own are not valid, or do not fit together",
    "data": "its images cannot be read, or do not fit the run's settings",
    "image-shape": (
        "its images have another shape than the run's: agree on data.image-size and "
        "data.channels"
    ),
    "classes": (
        "its images have classes that are not among the `classes` of its client.toml"
    ),
    "pool": "its pool is missing, damaged, not the run's or of another size",
    "output": "it cannot write its own folder",
    "protocol": "the server sent a message that is not of this protocol",
    "normalisation": (
        "the run's constants of normalisation lie outside the range that its "
        "client.toml allows"
    ),
    "parameters": (
        "the parameters sent are not those of the run's network for its images and "
        "classes, or have values that it does not accept"
    ),
    "round": (
        "the server asked for a round twice, for one that the settings lack, or with "
        "another learning rate than they say"
    ),
    "too-few-images": "it has too few images for this round, by its client.toml",
    "exposures": (
        "too few of its images are left that have not reached instahide.max-exposures: "
        "end the run here, or set train.min-updates so that it goes on without such "
        "clients"
    ),
    "exposure-ledger": "its counters of exposures are damaged or of other images",
    "rounds-a-day": "it has taken part in as many rounds as it allows in a day",
    "privacy": "the run would spend more differential privacy than it has left",
    "busy": "it is busy with another run",
    "cohort": (
        "the clients of this round of secure aggregation are too few, or not those "
        "whose keys it has pinned"
    ),
    "weights": "the largest weight of this round is not one that it accepts",
    "secure-aggregation": "the server does not keep to secure aggregation",
    "not-finite": (
        "its training gives values that are not finite or too large: lower the "
        "learning rate"
    ),
    "largest-value": (
        "its update has values beyond secure-aggregation.largest-value: raise it or "
        "lower the learning rate"
    ),
    "internal": "an error of its software or its machine",
}
"""The texts that may travel, by code."""


class RefusedError(InstaHideError):
    """What a server gets to read of a client's failure."""


def refused(error: Error, code: str, settings: Sequence[str] = ()) -> Error:
    """Give an error the code under which it may travel, and return it.

    Args:
        error: The error, whose text stays with the client.
        code: A key of `REASONS`.
        settings: Dotted names of the run's settings that the error is about.
    """
    error.refusal = code
    error.settings = tuple(settings)
    return error


def public_error(client: str, error: BaseException) -> RefusedError:
    """Return what a server may read of a client's error.

    Args:
        client: The client's name; empty if it is not known.
        error: Anything that was raised on the client.
    """
    code, names = "internal", ""
    if isinstance(error, InstaHideError) and error.refusal in REASONS:
        code = error.refusal
        settings = set(Config().to_run_config()) & set(error.settings)
        names = f" ({', '.join(sorted(settings))})" if settings else ""
    # The reason comes last: the server looks for the remedy at its end.
    return RefusedError(
        f"client {client or 'without a name'} refuses, code {code}{names}, details "
        f"are in its own log: {REASONS[code]}"
    )
