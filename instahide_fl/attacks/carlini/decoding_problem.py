"""Encodings that are to be linked and decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from instahide_fl.attacks.carlini.matching_pursuit import PublicPart
from instahide_fl.attacks.decoding.mixtures import Mixtures


@dataclass(frozen=True)
class Problem:
    """Encodings whose labels tell the coefficient of each private image.

    Attributes:
        encodings: f32[M,C,H,W], normalised.
        classes: i64[M,p], of the private images.
        coefficients: f32[M,p].
        prior: f32[M,p,n], how much each slot looks like each image by clustering, in
            standard deviations; minus infinity for images of other classes.
        image_classes: i64[n].
        largest: f32[C], magnitude of a pixel.
    """

    encodings: Tensor
    classes: Tensor
    coefficients: Tensor
    prior: Tensor
    image_classes: Tensor
    largest: Tensor

    def __len__(self) -> int:
        return len(self.encodings)

    @cached_property
    def magnitudes(self) -> Tensor:
        """f32[M,D]: absolute values of pixels."""
        return self.encodings.flatten(1).abs()

    def private(self, images: Tensor, links: Tensor) -> Tensor:
        """Return the private parts, f32[M,D].

        Args:
            images: f32[n,D].
            links: i64[M,p].
        """
        mixed = torch.zeros(len(links), images.shape[1])
        for weight, link in zip(self.coefficients.T, links.T, strict=True):
            mixed += weight[:, None] * images[link]
        return mixed

    def private_variance(self, errors: Tensor, links: Tensor) -> Tensor:
        """Return the variance of a pixel of the error of `private`, f32[M].

        Args:
            errors: f32[n], variance of a pixel of each image's error.
            links: i64[M,p].
        """
        return (self.coefficients.square() * errors[links]).sum(1)

    def rows(self, rows: Tensor) -> Problem:
        """Return the problem of some of the encodings, i64[m]."""
        return replace(
            self,
            encodings=self.encodings[rows],
            classes=self.classes[rows],
            coefficients=self.coefficients[rows],
            prior=self.prior[rows],
        )

    def mixtures(self, links: Tensor, public: PublicPart) -> Mixtures:
        """Return the encodings as decoders take them.

        Args:
            links: i64[M,p], the image of each slot.
            public: what is known of the public part.
        """
        return Mixtures(
            self.encodings,
            links,
            self.coefficients,
            len(self.image_classes),
            public=public.total.view(self.encodings.shape) if public.found else None,
            unknown_variance=public.variance,
        )
