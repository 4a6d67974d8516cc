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
from instahide_fl.metrics.identification import Identification, identify
from instahide_fl.metrics.matching import match_one_to_one
from instahide_fl.transcript.truth import ClientTruth
from instahide_fl.types import ChannelStatistics


@dataclass(frozen=True)
class Pairing:
    """Reconstructions, each with the truth that it is held against.

    Attributes:
        index: i64[R], which reconstructions.
        candidates: f32[R,p,C,H,W] in [0, 1], the private images behind each.
        components: i64[R,p], which of the client's images these are.
        encodings: f32[R,C,H,W], in units of [0, 1], not clipped: the one matched, or
            one in which the private image has weight.
        order: i64[R], which encodings (or private images) were matched.
        private: against the best of the candidates.
        encoding: against the encodings; None if private images were recovered.
        identification: among the client's images; None where matching would decide it.
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
class EncodingTruth:
    """What recovered encodings are held against.

    Attributes:
        encodings: f32[E,C,H,W], in units of [0, 1], not clipped.
        sources: f32[E,p,C,H,W] in [0, 1], the private images as they were mixed.
        components: i64[E,p] in `own`.
        own: all images of the client.
        statistics: constants that images are normalised with.
    """

    encodings: Tensor
    sources: Tensor
    components: Tensor
    own: ClientImages
    statistics: ChannelStatistics

    @classmethod
    def of(
        cls,
        truths: Sequence[ClientTruth],
        own: ClientImages,
        statistics: ChannelStatistics,
        augmentation: Augmentation | None,
    ) -> EncodingTruth:
        """Prepare the truth of a client, of one round or several."""
        return cls(
            torch.cat([statistics.restore(truth.encodings) for truth in truths]),
            torch.cat([_as_mixed(truth, augmentation) for truth in truths]),
            torch.cat([own.located(truth.key.private_index) for truth in truths]),
            own,
            statistics,
        )

    def __len__(self) -> int:
        return len(self.encodings)

    def pair(self, images: Tensor) -> Pairing:
        """Match f32[M,C,H,W], in units of [0, 1], to the encodings."""
        mixed = Comparer(self.statistics, clip=False)
        plain = Comparer(self.statistics, clip=True)
        index, truth = match_one_to_one(mixed.pairwise(images, self.encodings))
        found, encodings = images[index], self.encodings[truth]
        candidates, components = self.sources[truth], self.components[truth]
        neighbours = plain.pairwise(found, self.own.images)
        return Pairing(
            index=index,
            candidates=candidates,
            components=components,
            encodings=encodings,
            order=truth,
            private=plain.compare(found, candidates),
            encoding=mixed.compare(found, encodings[:, None]),
            identification=identify(neighbours, components, self.own.targets),
        )


@dataclass(frozen=True)
class PrivateTruth:
    """What recovered private images are held against.

    Attributes:
        own: all images of the client.
        place: i64[M] in `own`, which they are; None to match them.
        encodings: f32[n,C,H,W], of each image the encoding in which it weighs most, in
            units of [0, 1], not clipped.
        statistics: constants that images are normalised with.
    """

    own: ClientImages
    place: Tensor | None
    encodings: Tensor
    statistics: ChannelStatistics

    @classmethod
    def of(
        cls,
        truths: Sequence[ClientTruth],
        own: ClientImages,
        statistics: ChannelStatistics,
        rows: Tensor | None,
    ) -> PrivateTruth:
        """Prepare the truth of a client.

        Args:
            truths: of all its rounds.
            own: its images.
            statistics: constants that images are normalised with.
            rows: i64[M], which images of the client were recovered, if that is known.
        """
        every = torch.cat([truth.encodings for truth in truths])
        place = None if rows is None else own.located(rows)
        strongest = every[_strongest(truths, own)]
        return cls(own, place, statistics.restore(strongest), statistics)

    def __len__(self) -> int:
        return len(self.own.images)

    def pair(self, images: Tensor) -> Pairing:
        """Match f32[M,C,H,W], in units of [0, 1], to the private images."""
        plain = Comparer(self.statistics, clip=True)
        similarity = plain.pairwise(images, self.own.images)
        identification = None
        if self.place is None:
            index, truth = match_one_to_one(similarity)
        else:
            index, truth = torch.arange(len(images)), self.place
            identification = identify(similarity, truth[:, None], self.own.targets)
        candidates = self.own.images[truth][:, None]
        return Pairing(
            index=index,
            candidates=candidates,
            components=truth[:, None],
            encodings=self.encodings[truth],
            order=truth,
            private=plain.compare(images[index], candidates),
            encoding=None,
            identification=identification,
        )


def _as_mixed(truth: ClientTruth, augmentation: Augmentation | None) -> Tensor:
    """Return f32[E,p,C,H,W] in [0, 1], after crop and mirroring if they are known."""
    sources = truth.images[truth.components.flatten()]
    if augmentation is not None and truth.key.augmentation is not None:
        sources = augmentation.apply(sources, truth.key.augmentation)
    return sources.view(*truth.components.shape, *sources.shape[1:]).float() / 255


def _strongest(truths: Sequence[ClientTruth], own: ClientImages) -> Tensor:
    """Return i64[n], the encoding of all rounds in which each image weighs most."""
    weight = torch.zeros(sum(len(t.encodings) for t in truths), len(own.images))
    private = torch.cat([truth.key.private_index for truth in truths])
    coefficients = torch.cat([truth.key.coefficients for truth in truths])
    weight.scatter_(1, own.located(private), coefficients[:, : private.shape[1]])
    return weight.argmax(dim=0)
