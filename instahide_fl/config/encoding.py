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
    """The encoding: `instahide` mixes images and flips signs, `mixup` only mixes,
    `none` leaves images as they are."""
    scope: Literal["inside", "cross"] = "cross"
    """Images that are mixed: `inside` mixes private images only, `cross` adds images of
    the public pool."""
    num_mixed: Count = 4
    """k, the number of images mixed in one encoding."""
    num_private: Count | Literal["auto"] = "auto"
    """p, the number of private images among the k. `auto`: 2 in scope cross, all k in
    scope inside."""
    max_coefficient: Annotated[float, Field(gt=0, le=1)] = 0.65
    """c1, the upper bound of every coefficient. It does not apply to k = 1."""
    min_private_weight: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """c2, the lower bound of the sum of the private coefficients (scope cross)."""
    coefficient_law: Literal["abs-normal", "dirichlet"] = "abs-normal"
    """Distribution of the coefficients. `abs-normal`: |N(0,1)| divided by their sum, as
    in the authors' code. `dirichlet`: Dirichlet(3, 1, ..., 1), as in GradAttack."""
    refresh: Literal["epoch"] | Count = "epoch"
    """How often images are encoded anew: `epoch` encodes with fresh keys every time an
    image is used; a number T reuses T fixed encodings of each image."""
    keys: Literal["seeded", "secure"] = "seeded"
    """Source of keys and batches in a simulation. `seeded`: they repeat with the run's
    seed, and whoever finds the seed has them all. `secure`: they come from the
    operating system, and no run repeats. Those of real clients are always secure."""
    max_exposures: CountOrZero = 0
    """Largest number of distinct encodings that a private image takes part in, over all
    rounds and also as the partner of another image; 0 for no limit. See
    `exposure_action`."""
    exposure_action: Literal["warn", "stop"] = "warn"
    """What happens when an image reaches `max_exposures`: `warn` reports how many
    images are beyond it; `stop` leaves the image out from the next round on, and a
    client that has too few images left takes no further part."""

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
            self._check_feasible()
        return self

    def _check_feasible(self) -> None:
        """Refuse bounds on the coefficients that no draw can meet."""
        mixed, private = self.num_mixed, self.private_count
        if mixed == 1:
            return
        if self.max_coefficient * mixed <= 1:
            raise ValueError(
                f"max-coefficient (c1) must exceed 1/num-mixed = {1 / mixed:.4g}, got "
                f"{self.max_coefficient}: {mixed} coefficients that sum to 1 cannot "
                f"all stay below it"
            )
        reachable = min(1.0, private * self.max_coefficient)
        if private < mixed and self.min_private_weight >= reachable:
            raise ValueError(
                f"min-private-weight (c2) must be below {reachable:.4g}, the most that "
                f"{private} private coefficients of at most {self.max_coefficient} "
                f"(max-coefficient) can sum to, got {self.min_private_weight}"
            )

    @property
    def private_count(self) -> int:
        """The number of private images in one encoding, p, with `auto` resolved."""
        if self.num_private != "auto":
            return self.num_private
        return self.num_mixed if self.scope == "inside" else min(2, self.num_mixed)

    @property
    def public_count(self) -> int:
        """K - p, the number of images of the pool in one encoding."""
        return self.num_mixed - self.private_count

    @property
    def uses_pool(self) -> bool:
        """Whether encodings contain public images."""
        return self.method != "none" and self.public_count > 0
