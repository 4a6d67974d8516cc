"""Which truth each reconstruction is held against.

Encodings are matched one-to-one to those of their client and round; each is then also
held against the private images in the encoding that it was matched to. Private images
are matched to all that their client used in recorded rounds, or taken row by row where
the adversary says which they are. Baselines go through the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instahide_fl.audit.scoring.originals import ClientImages
from instahide_fl.data.augment import Augmentation
from instahide_fl.metrics.comparison import Comparer, Comparison
from instahide_fl.metrics.folding import folded_correlation, folded_ssim
from instahide_fl.metrics.identification import Identification, identify
from instahide_fl.metrics.matching import match_one_to_one
from instahide_fl.transcript.truth import ClientTruth
from instahide_fl.types import ChannelStatistics


@dataclass(frozen=True)
class Pairing:
    """Reconstructions, each with the truth that it is held against.

    Attributes:
        index: i64[R], the rows of the reconstructions that were paired.
        candidates: f32[R,p,C,H,W] in [0, 1], the private images behind each.
        components: i64[R,p], which of the client's images the candidates are.
        encodings: f32[R,C,H,W], in units of [0, 1], not clipped: the encoding matched,
            or the one in which the private image weighs most.
        order: i64[R], which encodings (or private images) were matched.
        private: The comparison with the best of the candidates.
        encoding: The comparison with the encodings; None if private images were
            recovered.
        identification: How often a reconstruction points at the right image of the
            client; None where the matching by similarity would decide it.
    """

    index: Tensor
    candidates: Tensor
    components: Tensor
    encodings: Tensor
    order: Tensor
    private: Comparison
    encoding: Comparison | None
    identification: Identification | None

    @property
    def originals(self) -> Tensor:
        """f32[R,C,H,W]: the candidates that reconstructions were compared with."""
        return self.candidates[torch.arange(len(self.index)), self.private.choice]


@dataclass(frozen=True)
class FoldedPairing:
    """Reconstructions, each with the truth that its absolute values resemble most.

    Attributes:
        index: i64[R], the rows of the reconstructions that were paired.
        candidates: f32[R,p,C,H,W] in [0, 1], the private images behind each.
        components: i64[R,p], which of the client's images the candidates are.
        encodings: f32[R,C,H,W], in units of [0, 1], not clipped; None if private images
            were recovered.
        order: i64[R], which encodings (or private images) were matched.
        private: f64[R], the folded SSIM with the best of the candidates.
        encoding: f64[R], the folded SSIM with the encodings; None if private images
            were recovered.
    """

    index: Tensor
    candidates: Tensor
    components: Tensor
    encodings: Tensor | None
    order: Tensor
    private: Tensor
    encoding: Tensor | None


@dataclass(frozen=True)
class EncodingTruth:
    """What recovered encodings are held against.

    Attributes:
        encodings: f32[E,C,H,W], in units of [0, 1], not clipped.
        sources: f32[E,p,C,H,W] in [0, 1], the private images as they were mixed.
        components: i64[E,p], the rows of the sources in `client_images`.
        client_images: All images of the client.
        statistics: Constants that images are normalised with.
        by_absolute_values: Whether encodings are matched, and images pointed at, by
            absolute values: an update of a sign-invariant network holds no others.
    """

    encodings: Tensor
    sources: Tensor
    components: Tensor
    client_images: ClientImages
    statistics: ChannelStatistics
    by_absolute_values: bool = False

    @classmethod
    def of(
        cls,
        truths: Sequence[ClientTruth],
        client_images: ClientImages,
        statistics: ChannelStatistics,
        augmentation: Augmentation | None,
        by_absolute_values: bool,
    ) -> EncodingTruth:
        """Prepare the truth of a client, of one round or several."""
        private = [truth.key.private_index for truth in truths]
        encodings = [statistics.restore(truth.encodings) for truth in truths]
        return cls(
            encodings=torch.cat(encodings),
            sources=torch.cat([_as_mixed(truth, augmentation) for truth in truths]),
            components=torch.cat([client_images.located(rows) for rows in private]),
            client_images=client_images,
            statistics=statistics,
            by_absolute_values=by_absolute_values,
        )

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def num_choices(self) -> int:
        """The number of private images that a matching may choose from."""
        return len(self.client_images.images)

    def pair(self, images: Tensor) -> Pairing:
        """Match f32[M,C,H,W], in units of [0, 1], to the encodings."""
        unclipped = Comparer(self.statistics, clip=False)
        clipped = Comparer(self.statistics, clip=True)
        index, order = match_one_to_one(
            self._similarity(unclipped, images, self.encodings)
        )
        paired, encodings = images[index], self.encodings[order]
        candidates, components = self.sources[order], self.components[order]
        similarity = self._similarity(clipped, paired, self.client_images.images)
        return Pairing(
            index=index,
            candidates=candidates,
            components=components,
            encodings=encodings,
            order=order,
            private=clipped.compare(paired, candidates),
            # [R,C,H,W] -> [R,1,C,H,W]: one candidate each
            encoding=unclipped.compare(paired, encodings[:, None]),
            identification=identify(similarity, components, self.client_images.targets),
        )

    def pair_folded(self, images: Tensor) -> FoldedPairing:
        """Match f32[M,C,H,W], in units of [0, 1], by absolute values."""
        statistics = self.statistics
        similarity = folded_correlation(images, self.encodings, statistics)
        index, order = match_one_to_one(similarity)
        paired, encodings = images[index], self.encodings[order]
        candidates = self.sources[order]
        return FoldedPairing(
            index=index,
            candidates=candidates,
            components=self.components[order],
            encodings=encodings,
            order=order,
            private=folded_ssim(paired, candidates, statistics),
            # [R,C,H,W] -> [R,1,C,H,W]: one candidate each
            encoding=folded_ssim(paired, encodings[:, None], statistics),
        )

    def _similarity(
        self, comparer: Comparer, images: Tensor, originals: Tensor
    ) -> Tensor:
        """Return f64[M,N], by absolute values where signs cannot be recovered."""
        if self.by_absolute_values:
            return folded_correlation(images, originals, self.statistics)
        return comparer.pairwise(images, originals)


@dataclass(frozen=True)
class PrivateTruth:
    """What recovered private images are held against.

    Attributes:
        client_images: All images of the client.
        rows: i64[M], which of `client_images` the recovered images are; None to match
            them by similarity.
        encodings: f32[n,C,H,W], of each image the encoding in which it weighs most, in
            units of [0, 1], not clipped.
        statistics: Constants that images are normalised with.
    """

    client_images: ClientImages
    rows: Tensor | None
    encodings: Tensor
    statistics: ChannelStatistics

    @classmethod
    def of(
        cls,
        truths: Sequence[ClientTruth],
        client_images: ClientImages,
        statistics: ChannelStatistics,
        rows: Tensor | None,
    ) -> PrivateTruth:
        """Prepare the truth of a client.

        Args:
            truths: The client's truth in all rounds.
            client_images: All images of the client.
            statistics: Constants that images are normalised with.
            rows: i64[M], which images of the client were recovered, if that is known.
        """
        encodings = torch.cat([truth.encodings for truth in truths])
        strongest = encodings[_strongest(truths, client_images)]
        return cls(
            client_images,
            None if rows is None else client_images.located(rows),
            statistics.restore(strongest),
            statistics,
        )

    def __len__(self) -> int:
        return len(self.client_images.images)

    @property
    def num_choices(self) -> int:
        """The number of private images that a matching may choose from."""
        return len(self) if self.rows is None else 1

    def pair(self, images: Tensor) -> Pairing:
        """Match f32[M,C,H,W], in units of [0, 1], to the private images."""
        clipped = Comparer(self.statistics, clip=True)
        similarity = clipped.pairwise(images, self.client_images.images)
        identification = None
        if self.rows is None:
            index, order = match_one_to_one(similarity)
        else:
            index, order = torch.arange(len(images)), self.rows
            identification = identify(
                similarity, order[:, None], self.client_images.targets
            )
        # [R,C,H,W] -> [R,1,C,H,W]: one candidate each
        candidates = self.client_images.images[order][:, None]
        return Pairing(
            index=index,
            candidates=candidates,
            components=order[:, None],
            encodings=self.encodings[order],
            order=order,
            private=clipped.compare(images[index], candidates),
            encoding=None,
            identification=identification,
        )

    def pair_folded(self, images: Tensor) -> FoldedPairing:
        """Match f32[M,C,H,W], in units of [0, 1], by absolute values."""
        originals, statistics = self.client_images.images, self.statistics
        if self.rows is None:
            similarity = folded_correlation(images, originals, statistics)
            index, order = match_one_to_one(similarity)
        else:
            index, order = torch.arange(len(images)), self.rows
        candidates = originals[order][:, None]  # [R,C,H,W] -> [R,1,C,H,W]
        return FoldedPairing(
            index=index,
            candidates=candidates,
            components=order[:, None],
            encodings=None,
            order=order,
            private=folded_ssim(images[index], candidates, statistics),
            encoding=None,
        )


def _as_mixed(truth: ClientTruth, augmentation: Augmentation | None) -> Tensor:
    """Return f32[E,p,C,H,W] in [0, 1], after crop and mirroring if they are known."""
    sources = truth.images[truth.components.flatten()]  # [n,C,H,W] -> [E*p,C,H,W]
    if augmentation is not None and truth.key.augmentation is not None:
        sources = augmentation.apply(sources, truth.key.augmentation)
    # [E*p,C,H,W] -> [E,p,C,H,W]
    return sources.view(*truth.components.shape, *sources.shape[1:]).float() / 255


def _strongest(truths: Sequence[ClientTruth], client_images: ClientImages) -> Tensor:
    """Return i64[n], the encoding of all rounds in which each image weighs most."""
    num_encodings = sum(len(truth.encodings) for truth in truths)
    weights = torch.zeros(num_encodings, len(client_images.images))
    private = torch.cat([truth.key.private_index for truth in truths])
    coefficients = torch.cat([truth.key.coefficients for truth in truths])
    weights.scatter_(
        1, client_images.located(private), coefficients[:, : private.shape[1]]
    )
    return weights.argmax(dim=0)
