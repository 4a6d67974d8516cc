"""Which private image an attack takes each class of an encoding's label for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LinkedEncodings:
    """What an attack believes about which encodings share a private image.

    How much of it is right is computed by the scorer (`audit.scoring.link_scores`). A
    label entry is one class in the soft label of one encoding.

    Attributes:
        encodings: i64[L], the encoding of each label entry. Encodings are numbered
            through the client's observations, concatenated in the order of the view.
        classes: i64[L], the class of each label entry.
        vectors: f32[E,d], one row for each encoding; a large scalar product means a
            shared image. Rows are numbered as `vector_rows` says.
        vector_rows: i64[L], the row of `vectors` for each label entry.
        clusters: i64[n,m], for each image the m label entries nearest to its cluster,
            nearest first; -1 where a class has fewer.
        clustered: i64[L], the image of each label entry by clustering and assignment
            alone, as a row of the reconstructed images; -1 for none.
        refined: i64[L], the image of each label entry after refinement; -1 for none.
    """

    encodings: Tensor
    classes: Tensor
    vectors: Tensor
    vector_rows: Tensor
    clusters: Tensor
    clustered: Tensor
    refined: Tensor
