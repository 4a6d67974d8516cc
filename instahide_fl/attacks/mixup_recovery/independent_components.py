"""Find the coefficients in mixtures of private images alone.

The encodings Y of n images X are Y = A X, with coefficients A. However many encodings
there are, they span n dimensions, and the columns of A span the same ones: each column
is a vector of that span in which few entries are not zero. Independent component
analysis finds such vectors, whatever the images look like, and the positions of their
zeros then make them exact. Neither labels nor coefficients have to be known.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

MIN_SINGULAR_VALUE = 1e-4  # share of the largest one; below are rounding errors
MAX_ITERATIONS = 500
MAX_REFINEMENTS = 8
OFF_SUPPORT = 0.003  # share of a column's largest entry; smaller coefficients are lost

Floats = NDArray[np.float64]


def span(encodings: NDArray[np.float32], rank: int = 0) -> Floats:
    """Return an orthonormal basis of the span of the encodings' columns.

    Args:
        encodings: The encodings, f32[E,D].
        rank: The number of dimensions, the strongest first; 0 for all that exceed
            rounding errors.

    Returns:
        The basis, f64[E,r].
    """
    values = encodings.astype(np.float64)
    wide = values.shape[0] <= values.shape[1]
    # The smaller of the two Gram matrices has the same eigenvalues.
    gram = values @ values.T if wide else values.T @ values
    squares, vectors = np.linalg.eigh(gram)
    strong = squares > squares[-1] * MIN_SINGULAR_VALUE**2
    chosen = np.flatnonzero(strong)[::-1][: rank or None]
    basis = vectors[:, chosen]
    if not wide:
        basis = values @ basis / np.sqrt(squares[chosen])  # [D,r] -> [E,r]
    return np.asarray(basis)


def sparse_mixing(basis: Floats, num_mixed: int, exact: bool, seed: int) -> Floats:
    """Find the coefficients: sparse non-negative vectors in a span.

    Args:
        basis: An orthonormal basis of the span, f64[E,n].
        num_mixed: k, the number of images in each encoding.
        exact: Whether encodings hold nothing else, so that the zeros are exact.
        seed: The seed of the starting point.

    Returns:
        The coefficients, a column for each image in no particular order, f64[E,n]; rows
        sum to about 1.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    count, images = basis.shape
    white = basis * np.sqrt(count)
    analysis = FastICA(
        whiten=False, fun="cube", max_iter=MAX_ITERATIONS, tol=1e-5, random_state=seed
    )
    with warnings.catch_warnings():
        # What has not converged is refined below, or stays inexact, which shows in the
        # diagnostics.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixing = white @ analysis.fit(white).components_.T
    # Components come in either sign; coefficients are positive, so skewed upwards.
    mixing *= np.sign((mixing**3).mean(0))
    if exact:
        mixing = _with_zeros(basis, mixing, max(1, round(count * num_mixed / images)))
    return _summing_to_one(mixing)


def _with_zeros(basis: Floats, mixing: Floats, expected: int) -> Floats:
    """Replace each column by the vector of the span that is zero where the column is.

    Among unit vectors basis @ v, the one with least weight outside of a support is
    given by the leading eigenvector v of the Gram matrix of the support's rows.

    Args:
        basis: An orthonormal basis of the span, f64[E,n].
        mixing: Approximate columns, f64[E,n].
        expected: The number of entries of a column that are not zero, to begin with.
    """
    support = mixing >= -np.partition(-mixing, expected - 1, axis=0)[expected - 1]
    for _ in range(MAX_REFINEMENTS):
        columns = []
        for chosen in support.T:
            rows = basis[chosen]
            vector = np.linalg.eigh(rows.T @ rows)[1][:, -1]
            column = basis @ vector
            columns.append(column * np.sign(column.sum()))
        mixing = np.stack(columns, 1)
        new_support = mixing > OFF_SUPPORT * mixing.max(0)
        if (new_support == support).all():
            break
        support = new_support
    return mixing


def _summing_to_one(mixing: Floats) -> Floats:
    """Scale columns so that the coefficients of each encoding sum to about 1."""
    scale = np.linalg.lstsq(mixing, np.ones(len(mixing)), rcond=None)[0]
    # Noise may lead to a negative scale, which no image can have.
    usual = np.median(scale[scale > 0]) if (scale > 0).any() else 1.0
    return np.asarray(mixing * np.where(scale > 0, scale, usual))
