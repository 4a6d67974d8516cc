"""Figures that sum up a comparison: the mean, and the worst case for the victims."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from instahide_fl.metrics.comparison import Comparison

RECOGNISABLE = 0.5
"""SSIM above which images are counted: a convention, no threshold of perception."""


@dataclass(frozen=True)
class Summary:
    """One metric over all pairs.

    Attributes:
        mean: over pairs.
        best: for the attacker, so the worst case for the victims.
        spread: standard deviation between pairs.
        share_above_half: of pairs, for SSIM only.
    """

    mean: float
    best: float
    spread: float
    share_above_half: float | None = None

    @classmethod
    def of_ssim(cls, values: Tensor) -> Summary:
        """Sum up SSIM.

        Args:
            values: [R], at least one.
        """
        above = float((values > RECOGNISABLE).double().mean())
        return cls(*_mean_and_spread(values, float(values.max())), above)

    @classmethod
    def of_psnr(cls, values: Tensor) -> Summary:
        """Sum up PSNR in dB ([R], at least one)."""
        return cls(*_mean_and_spread(values, float(values.max())))

    @classmethod
    def of_error(cls, values: Tensor) -> Summary:
        """Sum up what is better for the attacker the lower it is ([R])."""
        return cls(*_mean_and_spread(values, float(values.min())))

    def to_json(self) -> dict[str, float]:
        """Return it as it is written into an attack's file."""
        share = self.share_above_half
        above = {} if share is None else {"share_above_0.5": share}
        return {"mean": self.mean, "best": self.best, **above, "spread": self.spread}


def _mean_and_spread(values: Tensor, best: float) -> tuple[float, float, float]:
    return float(values.mean()), best, float(values.std(correction=0))


@dataclass(frozen=True)
class ImageScores:
    """All figures of reconstructed images against one kind of truth.

    Attributes:
        count: pairs compared.
        ssim, psnr, mse: as reconstructed.
        sign_ssim, sign_psnr: in the better sign.
        affine_ssim, affine_psnr: after the oracle's fit of the colours.
        each: f64[R], SSIM in the better sign, pair by pair.
    """

    count: int
    ssim: Summary
    psnr: Summary
    mse: Summary
    sign_ssim: Summary
    sign_psnr: Summary
    affine_ssim: Summary
    affine_psnr: Summary
    each: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, compared: Comparison) -> ImageScores:
        """Sum up a comparison of at least one pair."""
        return cls(
            len(compared),
            Summary.of_ssim(compared.ssim),
            Summary.of_psnr(compared.psnr),
            Summary.of_error(compared.mse),
            Summary.of_ssim(compared.sign_ssim),
            Summary.of_psnr(compared.sign_psnr),
            Summary.of_ssim(compared.affine_ssim),
            Summary.of_psnr(compared.affine_psnr),
            compared.sign_ssim,
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written into an attack's file."""
        return {
            "count": self.count,
            "ssim": self.ssim.to_json(),
            "psnr": self.psnr.to_json(),
            "mse": self.mse.to_json(),
            "sign_best": _both(self.sign_ssim, self.sign_psnr),
            "affine_oracle": _both(self.affine_ssim, self.affine_psnr),
        }


def _both(ssim: Summary, psnr: Summary) -> dict[str, dict[str, float]]:
    return {"ssim": ssim.to_json(), "psnr": psnr.to_json()}
