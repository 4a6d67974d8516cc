"""The attacker's own encodings, of images that are not the victim's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.clustering.slots import conditions_of
from instahide_fl.config import Config
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.encoding.encoder import MixingEncoder, build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import AdversaryView
from instahide_fl.types import EncodingKey, PrivateSplit


@dataclass(frozen=True)
class Proxies:
    """Images to encode in place of the victim's.

    Attributes:
        split: the images; normalised as the victim's are.
        encoder: as in the run, but without signs, which the absolute value removes.
        classes_known: whether their classes are those of the victim. Otherwise they are
            given random ones.
    """

    split: PrivateSplit
    encoder: MixingEncoder
    classes_known: bool

    @classmethod
    def of(cls, view: AdversaryView, images: Tensor, targets: Tensor | None) -> Proxies:
        """Take these images.

        Args:
            view: of the adversary; tells how the run encodes.
            images: u8[N,C,H,W].
            targets: i64[N], classes of the run; None if they have none.

        Raises:
            AttackError: their shape is not that of the run's images, or they are too
                few.
        """
        if tuple(images.shape[1:]) != view.image_shape:
            raise AttackError(
                f"proxy images must be {'x'.join(map(str, view.image_shape))} as those "
                f"of the run, got {'x'.join(map(str, images.shape[1:]))}: choose "
                f"another data set (carlini.proxy)"
            )
        private = view.config.instahide.private_count
        if len(images) < max(FEWEST, 2 * private):
            raise AttackError(
                f"learning from proxies needs at least {FEWEST} of them, there are "
                f"{len(images)}: name a data set (carlini.proxy)"
            )
        known = targets is not None
        given = torch.zeros(len(images), dtype=torch.int64)
        split = PrivateSplit(
            images, given if targets is None else targets, view.num_classes
        ).normalised_with(view.statistics)
        return cls(split, encoder_without_signs(view), known)

    def pairs(
        self, count: int, classes: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode `count` images twice, each time with other partners and coefficients.

        Args:
            count: pairs wanted; a multiple of `classes`.
            classes: how many classes the shared images are of, at most: those of one
                class are harder to tell apart.
            rng: draws images and keys.

        Returns:
            Absolute values of the encodings, f32[2*count,C,H,W], pair i at i and
            count + i; conditions f32[2*count,2K+2]; classes i64[count].
        """
        split = self.with_classes(rng)
        shared = _of_few_classes(split.targets, count, classes, rng)
        own = split.targets[shared]
        encodings, conditions = [], []
        for _ in range(2):
            key = _with_shared(self.encoder.draw_key(shared, split, rng), shared, rng)
            batch = self.encoder.apply_key(key, split)
            encodings.append(batch.images.abs_())
            conditions.append(conditions_of(batch.soft_targets, own))
        return torch.cat(encodings), torch.cat(conditions), own

    def with_classes(self, rng: np.random.Generator) -> PrivateSplit:
        """Return the images; with classes drawn at random where none are known."""
        if self.classes_known:
            return self.split
        drawn = rng.integers(0, self.split.num_classes, len(self.split.images))
        return replace(self.split, targets=torch.from_numpy(drawn))


FEWEST = 64  # images; fewer than one batch needs teach the network these images


def encoder_without_signs(view: AdversaryView) -> MixingEncoder:
    """Return the run's encoder, but for the sign mask."""
    config: Config = view.config
    settings = config.instahide.model_copy(update={"method": "mixup"})
    augmentation = augmentation_for(config.data, view.image_shape)
    return build_encoder(settings, view.pool, augmentation)


def _of_few_classes(
    targets: Tensor, count: int, classes: int, rng: np.random.Generator
) -> Tensor:
    """Draw rows, i64[count], as many of each of a few classes that are drawn first."""
    present = torch.unique(targets).numpy()
    drawn = rng.permutation(present)[:classes]
    rows = []
    for number, one in enumerate(drawn):
        own = (targets == int(one)).nonzero()[:, 0]
        wanted = count // len(drawn) + (number < count % len(drawn))
        # With repetition only where a class is too small.
        chosen = rng.choice(len(own), wanted, replace=wanted > len(own))
        rows.append(own[torch.from_numpy(chosen)])
    return torch.cat(rows)


def _with_shared(
    key: EncodingKey, shared: Tensor, rng: np.random.Generator
) -> EncodingKey:
    """Move the first image of each encoding to a random one of its private places."""
    index = key.private_index.clone()
    rows = torch.arange(len(index))
    place = torch.from_numpy(rng.integers(0, index.shape[1], len(index)))
    index[:, 0] = index[rows, place]
    index[rows, place] = shared
    return replace(key, private_index=index)
