"""The mathematics of instance hiding, as pure batched functions.

Source: Huang et al., "InstaHide", ICML 2020 (arXiv:2010.02772) and its authors' code.
Two departures mend what was reported as weaknesses of that code: the images of an
encoding are distinct (there, an image could be mixed with itself), and public images
come from the whole pool (there, from a fixed part of it).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.config import EncoderConfig
from instahide_fl.errors import ConfigError, ShapeError

MIN_ACCEPTANCE = 1e-3  # below this share of accepted draws, rejection takes for ever


def draw_coefficients(
    count: int, config: EncoderConfig, rng: np.random.Generator
) -> Tensor:
    """Draw the mixing coefficients of `count` encodings.

    Rows are drawn from the law and redrawn, as a whole, until every coefficient is at
    most c1 and (cross) the private ones sum to at least c2. Both bounds hold jointly.

    Args:
        count: Number of encodings, B.
        config: k, p, c1, c2 and the coefficient law.
        rng: The source of randomness.

    Returns:
        f32[B,k], private coefficients first; rows are non-negative and sum to 1.

    Raises:
        ConfigError: fewer than one draw in a thousand is acceptable.
    """
    mixed, private = config.num_mixed, config.private_count
    if mixed == 1:
        return torch.ones(count, 1)
    share = check_acceptance(config)
    accepted = np.empty((count, mixed), np.float32)
    filled = 0
    while filled < count:
        # A few more than needed on average: one pass is nearly always enough.
        tries = int((count - filled) / share * 1.1) + 8
        drawn = _draw(tries, mixed, config.coefficient_law, rng)
        acceptable = _is_acceptable(
            drawn, private, config.max_coefficient, config.min_private_weight
        )
        rows = drawn[acceptable][: count - filled]
        accepted[filled : filled + len(rows)] = rows
        filled += len(rows)
    return torch.from_numpy(accepted)


def check_acceptance(config: EncoderConfig) -> float:
    """Estimate the share of draws that satisfy c1 and c2.

    Raises:
        ConfigError: the share is below `MIN_ACCEPTANCE`: the bounds can be met, but
            drawing would hardly ever end.
    """
    share = _acceptance(
        config.num_mixed,
        config.private_count,
        config.max_coefficient,
        config.min_private_weight,
        config.coefficient_law,
    )
    if share < MIN_ACCEPTANCE:
        raise ConfigError(
            f"instahide.max-coefficient = {config.max_coefficient} and "
            f"instahide.min-private-weight = {config.min_private_weight} accept only "
            f"{share:.4%} of random coefficients for num-mixed = {config.num_mixed}: "
            f"raise the first or lower the second"
        )
    return share


@lru_cache
def _acceptance(mixed: int, private: int, c1: float, c2: float, law: str) -> float:
    drawn = _draw(20_000, mixed, law, np.random.default_rng(0))
    return float(_is_acceptable(drawn, private, c1, c2).mean())


def _draw(
    count: int, mixed: int, law: str, rng: np.random.Generator
) -> NDArray[np.float32]:
    if law == "abs-normal":
        weights = np.abs(rng.standard_normal((count, mixed)))
    else:
        # Normalised gamma variates are Dirichlet(3, 1, ..., 1).
        shape = np.ones(mixed)
        shape[0] = 3
        weights = rng.standard_gamma(shape, (count, mixed))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def _is_acceptable(
    drawn: NDArray[np.float32], private: int, c1: float, c2: float
) -> NDArray[np.bool_]:
    """Tell for each row [k] whether it satisfies both bounds."""
    acceptable: NDArray[np.bool_] = drawn.max(axis=1) <= c1
    if private < drawn.shape[1]:
        acceptable &= drawn[:, :private].sum(axis=1) >= c2
    return acceptable


def draw_distinct(
    count: int,
    columns: int,
    population: int,
    rng: np.random.Generator,
    exclude: Tensor | None = None,
) -> Tensor:
    """Draw `columns` distinct numbers below `population`, for each of `count` rows.

    Every ordered choice is equally likely. No draw is rejected: the j-th draw counts
    only the numbers that are not used yet, then steps over the used ones.

    Args:
        count: Number of rows, B.
        columns: Numbers in a row, m.
        population: n; a row uses m of the numbers, plus one if `exclude` is given.
        rng: The source of randomness.
        exclude: i64[B], one number per row that must not be drawn.

    Returns:
        i64[B,m].

    Raises:
        ShapeError: the population is too small.
    """
    first = 0 if exclude is None else 1
    if columns + first > population:
        raise ShapeError(
            f"cannot draw {columns} distinct numbers from {population - first}"
        )
    used = np.empty((count, first + columns), np.int64)
    if exclude is not None:
        used[:, 0] = exclude.cpu().numpy()
    for column in range(first, first + columns):
        drawn = rng.integers(0, population - column, size=count)
        before = used[:, :column]
        # In rising order, so that each step over a used number counts those below it.
        for smaller in (np.sort(before, axis=1) if column > 1 else before).T:
            drawn += drawn >= smaller
        used[:, column] = drawn
    return torch.from_numpy(used[:, first:])


def draw_sign_bits(count: int, pixels: int, rng: np.random.Generator) -> Tensor:
    """Draw independent fair signs, one random bit each, eight to a byte.

    Args:
        count: Number of encodings, B.
        pixels: Signs of one encoding, C*H*W.
        rng: The source of randomness.

    Returns:
        u8[B,ceil(pixels/8)] for `types.unpack_signs`; bits beyond `pixels` are unused.
    """
    width = (pixels + 7) // 8  # each encoding starts with a byte of its own
    # The generator makes 64-bit words: drawn so, no random bit is thrown away. Each
    # word is cut into eight bytes, and the last word may be used in part.
    words = rng.integers(0, 2**64, size=(count * width + 7) // 8, dtype=np.uint64)
    return torch.from_numpy(words.view(np.uint8)[: count * width]).view(count, width)


def mix_and_flip(
    sources: Iterable[Tensor], coefficients: Tensor, signs: Tensor | None = None
) -> Tensor:
    """Encode a batch: signs * sum_j coefficients[:, j] * sources[j].

    Args:
        sources: k tensors f32[B,C,H,W] of normalised images, private ones first. They
            are consumed one by one, so a generator never holds all k in memory.
        coefficients: Mixing coefficients f32[B,k] whose rows sum to 1.
        signs: i8[B,C,H,W] of -1 and +1; None leaves signs alone (Mixup).

    Returns:
        f32[B,C,H,W], on the device of the sources.

    Raises:
        ShapeError: the shapes disagree.
    """
    mixed: Tensor | None = None
    used = 0
    for source in sources:
        if len(source) != len(coefficients) or used >= coefficients.shape[1]:
            raise ShapeError(
                f"coefficients {tuple(coefficients.shape)} need that many sources of "
                f"that many images, source {used} is {tuple(source.shape)}"
            )
        weight = coefficients[:, used, None, None, None].to(source.device)  # [B,1,1,1]
        # Not in place: the caller may still need its source.
        mixed = source * weight if mixed is None else mixed.addcmul_(source, weight)
        used += 1
    if mixed is None or used != coefficients.shape[1]:
        raise ShapeError(
            f"coefficients {tuple(coefficients.shape)} need {coefficients.shape[1]} "
            f"sources, got {used}"
        )
    if signs is None:
        return mixed
    if signs.shape != mixed.shape:
        raise ShapeError(
            f"signs must have the shape of the images {tuple(mixed.shape)}, got "
            f"{tuple(signs.shape)}"
        )
    return mixed.mul_(signs.to(mixed.device))


def mix_targets(coefficients: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the soft targets: the coefficient of each private image at its label.

    As in the authors' code they are not renormalised: a row sums to the private weight.

    Args:
        coefficients: Coefficients f32[B,p] of the private images.
        labels: Labels i64[B,p] of the private images.
        num_classes: K.

    Returns:
        f32[B,K].
    """
    targets = torch.zeros(len(labels), num_classes, device=labels.device)
    # Added, not set: two images of one encoding may have the same label.
    return targets.scatter_add_(1, labels, coefficients.to(labels.device))
