"""Threat models: who knows which part of a run.

An attack works on an `AdversaryView` (module `view`), which `build_view` makes from a
run's transcript by one of these models.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from instahide_fl.errors import ConfigError


class Knowledge(StrEnum):
    """Something that an adversary may know, beyond the run's settings and its code."""

    PARAMETERS = "parameters"
    UPDATES = "single updates of clients"
    BUFFERS = "running statistics of BatchNorm"
    AGGREGATE = "aggregates of rounds"
    CRAFTED = "a choice of the parameters that clients train on"
    POOL = "the public pool"
    LABELS = "soft labels"
    ENCODINGS = "encodings"
    MAPPING = "mapping and coefficients of the key"


@dataclass(frozen=True)
class ThreatModel:
    """An adversary.

    Attributes:
        name: The name on the command line.
        who: The adversary, in one sentence.
        knows: The knowledge that the adversary is given.
        ordinary: Whether somebody in every federation, or everybody the encodings are
            released to, is in this position; an auditor is not.
    """

    name: str
    who: str
    knows: frozenset[Knowledge]
    ordinary: bool


_SEEN_BY_SERVER = frozenset(
    {
        Knowledge.PARAMETERS,
        Knowledge.UPDATES,
        Knowledge.BUFFERS,
        Knowledge.AGGREGATE,
        Knowledge.POOL,
    }
)
_SEEN_IN_SUMS = frozenset({Knowledge.PARAMETERS, Knowledge.AGGREGATE, Knowledge.POOL})

THREAT_MODELS: dict[str, ThreatModel] = {
    model.name: model
    for model in (
        ThreatModel(
            "honest-server",
            "The server follows the protocol and keeps what it receives.",
            _SEEN_BY_SERVER,
            ordinary=True,
        ),
        ThreatModel(
            "malicious-server",
            "The server sends parameters of its own choice and keeps what it receives.",
            _SEEN_BY_SERVER | {Knowledge.CRAFTED},
            ordinary=False,
        ),
        ThreatModel(
            "eavesdropper",
            "Somebody reads the messages between server and clients.",
            _SEEN_BY_SERVER - {Knowledge.POOL},
            ordinary=True,
        ),
        ThreatModel(
            "participant",
            "Another client, who receives the parameters of every round.",
            _SEEN_IN_SUMS,
            ordinary=True,
        ),
        ThreatModel(
            "secure-aggregation-server",
            "The server under secure aggregation, which learns sums of updates only.",
            _SEEN_IN_SUMS,
            ordinary=True,
        ),
        ThreatModel(
            "encodings-holder",
            "Somebody who was given the encodings with their soft labels, to train on.",
            frozenset({Knowledge.ENCODINGS, Knowledge.LABELS, Knowledge.POOL}),
            ordinary=True,
        ),
        ThreatModel(
            "label-holder",
            "The honest server, and it knows the soft labels of each update.",
            _SEEN_BY_SERVER | {Knowledge.LABELS},
            ordinary=False,
        ),
        ThreatModel(
            "auditor",
            "Sees what the server sees and is given mapping, coefficients and labels: "
            "a measure of what they are worth, not a likely adversary.",
            _SEEN_BY_SERVER | {Knowledge.LABELS, Knowledge.MAPPING},
            ordinary=False,
        ),
        ThreatModel(
            "auditor-of-encodings",
            "Holds the encodings and is given mapping, coefficients and labels.",
            frozenset(
                {
                    Knowledge.ENCODINGS,
                    Knowledge.LABELS,
                    Knowledge.MAPPING,
                    Knowledge.POOL,
                }
            ),
            ordinary=False,
        ),
    )
}


def threat_model(name: str) -> ThreatModel:
    """Return the threat model of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in THREAT_MODELS:
        raise ConfigError(
            f"--threat-model must be one of {', '.join(THREAT_MODELS)}, got {name!r}"
        )
    return THREAT_MODELS[name]
