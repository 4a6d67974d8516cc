"""Mixtures of private images alone: a complete dictionary, found exactly.

Encodings of n images are Y = A X. However many they are, they span n dimensions, and so
do the columns of A: each is a vector of that span with few entries that are not zero.
Independent component analysis finds such vectors, whatever the images look like;
each is then made exact with the zeros that it shows. Neither labels nor coefficients
are needed.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

SMALLEST_SINGULAR_VALUE = 1e-4  # of the largest; below is rounding
ITERATIONS = 500
REFINEMENTS = 8
OFF_SUPPORT = 0.003  # of a column's largest entry; a coefficient below is lost

Floats = NDArray[np.float64]


def span(encodings: NDArray[np.float32], rank: int = 0) -> Floats:
    """Return an orthonormal basis of what the columns of encodings span.

    Args:
        encodings: f32[E,D].
        rank: number of dimensions, the strongest; 0 for all but those of rounding.

    Returns:
        f64[E,r].
    """
    values = encodings.astype(np.float64)
    wide = values.shape[0] <= values.shape[1]
    gram = values @ values.T if wide else values.T @ values
    squares, vectors = np.linalg.eigh(gram)
    strong = squares > squares[-1] * SMALLEST_SINGULAR_VALUE**2
    kept = np.flatnonzero(strong)[::-1][: rank or None]
    basis = vectors[:, kept]
    if not wide:
        basis = values @ basis / np.sqrt(squares[kept])
    return np.asarray(basis)


def sparse_mixing(basis: Floats, num_mixed: int, exact: bool, seed: int) -> Floats:
    """Find the coefficients: sparse non-negative vectors in a span.

    Args:
        basis: f64[E,n], orthonormal.
        num_mixed: k, images in each encoding.
        exact: whether encodings hold nothing else, so that zeros are zeros.
        seed: of the start.

    Returns:
        f64[E,n], one column an image, in no order; rows sum to about 1.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    count, images = basis.shape
    white = basis * np.sqrt(count)
    analysis = FastICA(
        whiten=False, fun="cube", max_iter=ITERATIONS, tol=1e-5, random_state=seed
    )
    with warnings.catch_warnings():
        # What has not converged is refined below, or fails to be exact and is told so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = white @ analysis.fit(white).components_.T
    found *= np.sign((found**3).mean(0))
    if exact:
        found = _with_zeros(basis, found, max(1, round(count * num_mixed / images)))
    return _summing_to_one(found)


def _with_zeros(basis: Floats, found: Floats, expected: int) -> Floats:
    """Replace each column by the vector of the span that is zero where it is.

    Among unit vectors basis @ v, the one with least weight outside of a support is the
    leading eigenvector of the support's own rows.
    """
    support = found >= -np.partition(-found, expected - 1, axis=0)[expected - 1]
    for _ in range(REFINEMENTS):
        columns = []
        for chosen in support.T:
            rows = basis[chosen]
            vector = np.linalg.eigh(rows.T @ rows)[1][:, -1]
            column = basis @ vector
            columns.append(column * np.sign(column.sum()))
        found = np.stack(columns, 1)
        changed = found > OFF_SUPPORT * found.max(0)
        if (changed == support).all():
            break
        support = changed
    return found


def _summing_to_one(found: Floats) -> Floats:
    """Scale columns such that the coefficients of an encoding sum to 1."""
    scale = np.linalg.lstsq(found, np.ones(len(found)), rcond=None)[0]
    # Noise may ask for a negative scale, which no image has.
    usual = np.median(scale[scale > 0]) if (scale > 0).any() else 1.0
    return np.asarray(found * np.where(scale > 0, scale, usual))
