"""What decoding was conjectured to cost, and what attacks really cost.

The conjecture counts tries of an adversary who guesses public images one combination
after the other. No attack does that, and so it bounds nothing.

Sources: the conjecture of about N^(k-2): Arora, offconvex.org, 2020-11-11, for the
authors of InstaHide. Reported costs: the challenge's leaderboard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide_fl.challenge.leaderboard import LEADERBOARD
from instahide_fl.errors import ConfigError, DataError
from instahide_fl.transcript.threat_model import THREAT_MODELS, Knowledge

NO_PROTECTION = (
    "These counts are no measure of safety, and the hardness of k-sum protects nobody "
    "here: no attack tries combinations. Attacks find encodings that share an image, "
    "and solve for the image."
)


@dataclass(frozen=True)
class Conjecture:
    """A count of tries.

    Attributes:
        what: is tried.
        formula: in words.
        log10: of the count.
    """

    what: str
    formula: str
    log10: float

    @property
    def count(self) -> str:
        """The count, as a power of ten where it is large."""
        if self.log10 < 7:
            return f"{round(10**self.log10):,}"
        exponent = math.floor(self.log10)
        return f"{10 ** (self.log10 - exponent):.1f}e{exponent}"


@dataclass(frozen=True)
class Measured:
    """What an attack took, and what it reached.

    Attributes:
        attack: its name.
        cost: in words.
        reached: in words.
        where: who measured it, on what.
    """

    attack: str
    cost: str
    reached: str
    where: str


def conjectured(
    num_mixed: int, num_private: int, pool_size: int, images: int
) -> tuple[Conjecture, ...]:
    """Return what guessing would take.

    Args:
        num_mixed: k.
        num_private: p.
        pool_size: N, public images.
        images: n, private images.

    Raises:
        ConfigError: p is not in 1..k.
    """
    if not 1 <= num_private <= num_mixed:
        raise ConfigError(
            f"--num-private must be in 1..{num_mixed} (--num-mixed), got {num_private}"
        )
    public = num_mixed - num_private
    return (
        Conjecture(
            "combinations of public images",
            f"N^(k-{num_private}), N = {pool_size:,}, k = {num_mixed}",
            public * math.log10(pool_size),
        ),
        Conjecture(
            "combinations of private images",
            f"n^{num_private}, n = {images:,}",
            num_private * math.log10(images),
        ),
    )


def counted(images: int, encodings_per_image: int, num_private: int) -> dict[str, int]:
    """Return the counts that attacks' work does grow with.

    Args:
        images: n.
        encodings_per_image: T.
        num_private: p.
    """
    total = images * encodings_per_image
    return {
        "encodings E = n T": total,
        "encodings that show an image, on average p T": num_private
        * encodings_per_image,
        "pairs of encodings to compare": total * (total - 1) // 2,
    }


def published_costs() -> tuple[Measured, ...]:
    """Return what the authors of attacks reported on the original challenge."""
    return tuple(
        Measured(
            one.attack,
            one.cost,
            f"Max_SSIM {one.max_ssim:.2f}",
            "reported on the InstaHide Challenge's leaderboard, k = 6, E = 5,000",
        )
        for one in LEADERBOARD
    )


def measured_costs(folders: Iterable[Path]) -> tuple[Measured, ...]:
    """Read what attacks took from the folders of challenges or runs.

    Args:
        folders: with `attacks/NAME.json`, or such a folder of results itself.

    Raises:
        DataError: a folder holds no results, or one is damaged.
    """
    found: list[Measured] = []
    for folder in folders:
        files = sorted({*folder.glob("attacks/*.json"), *folder.glob("*.json")})
        results = [
            one for file in files if (one := _result(file, folder.name)) is not None
        ]
        if not results:
            raise DataError(
                f"--results {folder}: no results of attacks (attacks/NAME.json) in it"
            )
        found += results
    return tuple(found)


def _result(path: Path, where: str) -> Measured | None:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the result {path}: {error}") from None
    if not isinstance(content, dict) or not {"attack", "seconds"} <= content.keys():
        return None
    try:
        return Measured(
            str(content["attack"]),
            f"{float(content['seconds']):,.1f} s",
            _reached(content["metrics"], str(content["verdict"])),
            f"measured on {where}, {content['method']} {content['scope']}, "
            f"k = {content['num_mixed']}, as {content['threat_model']}"
            + _given(str(content["threat_model"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not the result of an attack: {error!r}") from None


def _given(adversary: str) -> str:
    """Say what finding the mapping would have cost on top."""
    known = THREAT_MODELS.get(adversary)
    told = known is not None and Knowledge.MAPPING in known.knows
    return ", who is told which images were mixed: finding out is extra" if told else ""


def _reached(metrics: dict[str, Any], verdict: str) -> str:
    private = metrics.get("private")
    if private is None:
        return verdict
    ssim = private["sign_best"]["ssim"]
    return f"SSIM {ssim['mean']:.2f} (best {ssim['best']:.2f}); {verdict}"


def costs_to_json(
    guesses: Sequence[Conjecture], counts: dict[str, int], costs: Sequence[Measured]
) -> dict[str, Any]:
    """Return all of it for `--json`."""
    return {
        "conjectured": [
            {"what": one.what, "formula": one.formula, "log10_tries": one.log10}
            for one in guesses
        ],
        "counts": counts,
        "attacks": [vars(one) for one in costs],
        "note": NO_PROTECTION,
    }
