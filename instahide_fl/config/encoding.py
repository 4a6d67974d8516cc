"""The table `[instahide]`: how images are encoded."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from instahide_fl.config.base import Count, CountOrZero, Table


class EncoderConfig(Table):
    """How images are encoded (Huang et al., ICML 2020, arXiv:2010.02772).

    Raises:
        ValidationError: (pydantic's) a value is out of range, or k, p, c1 and c2 leave
            no coefficients to draw.

    Example:
        >>> from instahide_fl import EncoderConfig
        >>> config = EncoderConfig(num_mixed=6)
        >>> config.private_count, config.public_count, config.uses_pool
        (2, 4, True)
    """

    section = "instahide"

    method: Literal["none", "mixup", "instahide"] = "instahide"
    """`instahide` mixes and flips signs, `mixup` only mixes, `none` does neither."""
    scope: Literal["inside", "cross"] = "cross"
    """`inside` mixes private images only; `cross` adds images of the public pool."""
    num_mixed: Count = 4
    """k: images in one encoding."""
    num_private: Count | Literal["auto"] = "auto"
    """Private images among the k. `auto`: 2 in cross, all k in inside."""
    max_coefficient: Annotated[float, Field(gt=0, le=1)] = 0.65
    """c1: bound on every coefficient. It does not apply to k = 1."""
    min_private_weight: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """c2: least sum of the private coefficients (cross)."""
    coefficient_law: Literal["abs-normal", "dirichlet"] = "abs-normal"
    """`abs-normal`: |N(0,1)| divided by their sum, as the authors' code draws them.
    `dirichlet`: Dirichlet(3, 1, ..., 1), as GradAttack draws them."""
    refresh: Literal["epoch"] | Count = "epoch"
    """`epoch` draws fresh keys every time an image is used; a number T reuses T fixed
    encodings of each image."""
    keys: Literal["seeded", "secure"] = "seeded"
    """In a simulation: `seeded` keys and batches repeat with the run's seed, and
    whoever finds the seed has them all; `secure` ones come from the operating system,
    and no run repeats. Those of real clients are always secure."""
    max_exposures: CountOrZero = 0
    """Distinct encodings that a private image may take part in, over all rounds and as
    partner of others too; 0 for no limit. See `exposure_action`."""
    exposure_action: Literal["warn", "stop"] = "warn"
    """What follows when an image reaches `max_exposures`: `warn` reports how many are
    beyond it; `stop` leaves the image out from the next round on, and a client that
    has too few left takes no further part."""

    @field_validator("refresh", mode="before")
    @classmethod
    def _number_in_text(cls, value: object) -> object:
        # A Flower run config that lists the default "epoch" hands numbers on as text.
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.private_count > self.num_mixed:
            raise ValueError(
                f"num-private must be in 1..{self.num_mixed} (num-mixed), got "
                f"{self.num_private}"
            )
        if self.scope == "inside" and self.private_count != self.num_mixed:
            raise ValueError(
                f"scope inside mixes private images only, so num-private must equal "
                f"num-mixed ({self.num_mixed}), got {self.num_private}: set "
                f'num-private = "auto" or scope = "cross"'
            )
        if (
            self.max_exposures
            and self.exposure_action == "stop"
            and (self.refresh != "epoch")
        ):
            raise ValueError(
                f'exposure-action = "stop" leaves images out of fresh encodings, and '
                f"refresh = {self.refresh} makes no more of them: set refresh = "
                f'"epoch" or exposure-action = "warn"'
            )
        if self.method != "none":
            _check_feasible(
                self.num_mixed,
                self.private_count,
                self.max_coefficient,
                self.min_private_weight,
            )
        return self

    @property
    def private_count(self) -> int:
        """Private images in one encoding: p."""
        if self.num_private != "auto":
            return self.num_private
        return self.num_mixed if self.scope == "inside" else min(2, self.num_mixed)

    @property
    def public_count(self) -> int:
        """Images of the pool in one encoding: k - p."""
        return self.num_mixed - self.private_count

    @property
    def uses_pool(self) -> bool:
        """Whether encodings contain public images."""
        return self.method != "none" and self.public_count > 0


def _check_feasible(
    mixed: int, private: int, max_coefficient: float, min_private_weight: float
) -> None:
    if mixed == 1:
        return
    if max_coefficient * mixed <= 1:
        raise ValueError(
            f"max-coefficient (c1) must exceed 1/num-mixed = {1 / mixed:.4g}, got "
            f"{max_coefficient}: {mixed} coefficients that sum to 1 cannot all stay "
            f"below it"
        )
    reachable = 1.0 if private == mixed else min(1.0, private * max_coefficient)
    if private < mixed and min_private_weight >= reachable:
        raise ValueError(
            f"min-private-weight (c2) must be below {reachable:.4g}, the most that "
            f"{private} private coefficients of at most {max_coefficient} "
            f"(max-coefficient) can sum to, got {min_private_weight}"
        )
