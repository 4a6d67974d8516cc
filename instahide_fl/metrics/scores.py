"""Summaries of a comparison: the mean, and the worst case for the victims."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from instahide_fl.metrics.comparison import Comparison
from instahide_fl.metrics.intervals import Interval, bootstrap_interval

RECOGNISABLE = 0.5
"""SSIM above which images are counted: a convention, no threshold of perception."""


@dataclass(frozen=True)
class Summary:
    """One metric over all pairs.

    Attributes:
        mean: The mean over pairs.
        best: The best value for the attacker, so the worst case for the victims.
        spread: The standard deviation between pairs.
        share_above_half: The share of pairs above 0.5, for SSIM only.
        count: The number of pairs.
        interval: The 95% interval of the mean, by a bootstrap over pairs; None where it
            was not computed.
    """

    mean: float
    best: float
    spread: float
    share_above_half: float | None = None
    count: int = 0
    interval: Interval | None = None

    @classmethod
    def of_ssim(cls, values: Tensor) -> Summary:
        """Sum up SSIM, f64[R], at least one value."""
        above = float((values > RECOGNISABLE).double().mean())
        return cls._of(values, best=float(values.max()), share_above_half=above)

    @classmethod
    def of_psnr(cls, values: Tensor) -> Summary:
        """Sum up PSNR in dB, f64[R], at least one value."""
        return cls._of(values, best=float(values.max()))

    @classmethod
    def of_error(cls, values: Tensor) -> Summary:
        """Sum up errors, f64[R], at least one value: low is good for the attacker."""
        return cls._of(values, best=float(values.min()))

    @classmethod
    def _of(
        cls, values: Tensor, best: float, share_above_half: float | None = None
    ) -> Summary:
        return cls(
            mean=float(values.mean()),
            best=best,
            spread=float(values.std(correction=0)),
            share_above_half=share_above_half,
            count=len(values),
            interval=bootstrap_interval(values),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        share = self.share_above_half
        above = {} if share is None else {"share_above_0.5": share}
        interval = {"interval": list(self.interval)} if self.interval else {}
        return {
            "mean": self.mean,
            **interval,
            "n": self.count,
            "best": self.best,
            **above,
            "spread": self.spread,
        }


@dataclass(frozen=True)
class SsimScores:
    """One kind of SSIM over all pairs.

    Attributes:
        count: The number of pairs compared.
        ssim: The summary of SSIM.
    """

    count: int
    ssim: Summary

    @classmethod
    def of(cls, values: Tensor) -> SsimScores:
        """Sum up SSIM, f64[R], at least one value."""
        return cls(len(values), Summary.of_ssim(values))

    @property
    def above_half(self) -> int:
        """The number of pairs above 0.5."""
        return round((self.ssim.share_above_half or 0.0) * self.count)

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        return {"count": self.count, "ssim": self.ssim.to_json()}


@dataclass(frozen=True)
class ImageScores:
    """All figures of reconstructed images against one kind of truth.

    Attributes:
        count: The number of pairs compared.
        ssim: SSIM as reconstructed.
        psnr: PSNR as reconstructed, in dB.
        mse: Mean squared error as reconstructed.
        sign_ssim: SSIM in the better sign.
        sign_psnr: PSNR in the better sign, in dB.
        affine_ssim: SSIM after the oracle's fit of the colours.
        affine_psnr: PSNR after the oracle's fit of the colours, in dB.
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
            count=len(compared),
            ssim=Summary.of_ssim(compared.ssim),
            psnr=Summary.of_psnr(compared.psnr),
            mse=Summary.of_error(compared.mse),
            sign_ssim=Summary.of_ssim(compared.sign_ssim),
            sign_psnr=Summary.of_psnr(compared.sign_psnr),
            affine_ssim=Summary.of_ssim(compared.affine_ssim),
            affine_psnr=Summary.of_psnr(compared.affine_psnr),
            each=compared.sign_ssim,
        )

    @property
    def in_better_sign(self) -> SsimScores:
        """SSIM in the better sign alone, which verdicts go by."""
        return SsimScores(self.count, self.sign_ssim)

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        return {
            "count": self.count,
            "ssim": self.ssim.to_json(),
            "psnr": self.psnr.to_json(),
            "mse": self.mse.to_json(),
            "sign_best": _both(self.sign_ssim, self.sign_psnr),
            "affine_oracle": _both(self.affine_ssim, self.affine_psnr),
        }


def _both(ssim: Summary, psnr: Summary) -> dict[str, dict[str, Any]]:
    return {"ssim": ssim.to_json(), "psnr": psnr.to_json()}
