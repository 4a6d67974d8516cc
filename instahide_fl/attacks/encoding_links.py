"""Which private image an attack takes each part of an encoding for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LinkedEncodings:
    """Evidence of an attack that had to find out which encodings share an image.

    The attack says what it believes; how much of it is right, the scorer computes
    (`audit.scoring.link_scores`). A slot is one class in the soft label of an encoding.

    Attributes:
        encodings: i64[S], the encoding of each slot. Encodings are numbered through the
            client's observations, joined in the order of the view.
        classes: i64[S], of each slot.
        vectors: f32[E,d], of encodings: a large product means a shared image. Rows are
            numbered as `places` says.
        places: i64[S], the row of `vectors` of each slot.
        clusters: i64[n,m], for each image the m slots that are nearest to its cluster,
            nearest first; -1 where a class has fewer.
        clustered: i64[S], image of each slot by clustering and assignment alone, as a
            row of the reconstructed images; -1 for none.
        refined: i64[S], the same in the end.
    """

    encodings: Tensor
    classes: Tensor
    vectors: Tensor
    places: Tensor
    clusters: Tensor
    clustered: Tensor
    refined: Tensor
