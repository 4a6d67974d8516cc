"""The encodings that are to be linked and decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from instahide_fl.attacks.carlini.matching_pursuit import PublicPart
from instahide_fl.attacks.decoding.mixtures import Mixtures


@dataclass(frozen=True)
class DecodingProblem:
    """M encodings whose labels tell the coefficient of each private image.

    Attributes:
        encodings: f32[M,C,H,W], normalised.
        classes: i64[M,p], the classes of the private images.
        coefficients: f32[M,p], the coefficients of the private images.
        prior: f32[M,p,n], how much each label entry looks like each image by
            clustering, in standard deviations; minus infinity for images of other
            classes.
        image_classes: i64[n], the class of each image that is to be decoded.
        largest_pixel: f32[C], the largest magnitude of a normalised pixel.
    """

    encodings: Tensor
    classes: Tensor
    coefficients: Tensor
    prior: Tensor
    image_classes: Tensor
    largest_pixel: Tensor

    def __len__(self) -> int:
        return len(self.encodings)

    @cached_property
    def magnitudes(self) -> Tensor:
        """f32[M,D]: the absolute values of pixels."""
        return self.encodings.flatten(1).abs()  # [M,C,H,W] -> [M,D]

    def private_part(self, images: Tensor, links: Tensor) -> Tensor:
        """Return the weighted sum of the private images of each encoding.

        Args:
            images: f32[n,D].
            links: i64[M,p], the image of each label entry.

        Returns:
            f32[M,D].
        """
        # Summed in the order of the entries: float sums depend on it.
        mixed = torch.zeros(len(links), images.shape[1])
        for weight, link in zip(self.coefficients.T, links.T, strict=True):
            mixed += weight[:, None] * images[link]
        return mixed

    def private_variance(self, errors: Tensor, links: Tensor) -> Tensor:
        """Return the variance of a pixel's error in `private_part`.

        Args:
            errors: f32[n], the variance of a pixel's error in each image.
            links: i64[M,p], the image of each label entry.

        Returns:
            f32[M].
        """
        return (self.coefficients.square() * errors[links]).sum(1)

    def rows(self, rows: Tensor) -> DecodingProblem:
        """Return the problem of some of the encodings, i64[m]."""
        return replace(
            self,
            encodings=self.encodings[rows],
            classes=self.classes[rows],
            coefficients=self.coefficients[rows],
            prior=self.prior[rows],
        )

    def mixtures(self, links: Tensor, public: PublicPart) -> Mixtures:
        """Return the encodings in the form that decoders take.

        Args:
            links: i64[M,p], the image of each label entry.
            public: What is known of the public part.
        """
        shape = self.encodings.shape
        return Mixtures(
            self.encodings,
            links,
            self.coefficients,
            len(self.image_classes),
            public=public.total.view(shape) if public.has_images else None,
            unknown_variance=public.variance,
        )
