"""Images of a challenge's data set that none of its encodings mixes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from instahide_fl.audit.candidates import in_random_order
from instahide_fl.challenge.make import ORIGIN
from instahide_fl.config import Config
from instahide_fl.data.datasets import load_dataset
from instahide_fl.errors import DataError, OutputError
from instahide_fl.metrics.candidates import Candidates
from instahide_fl.transcript.truth import TRUTH, ClientTruth
from instahide_fl.types import ChannelStatistics, PrivateSplit


def other_images(
    folder: Path, config: Config, statistics: ChannelStatistics, truth: ClientTruth
) -> Candidates | None:
    """Draw images among which the true image of a reconstruction is ranked.

    Args:
        folder: The challenge's folder.
        config: The settings that were published, as those of a run.
        statistics: Constants that private images are normalised with.
        truth: What the challenge hides.

    Returns:
        Test and training images; None if nothing says which data set it was, or it is
        not there.
    """
    try:
        origin = json.loads((folder / TRUTH / ORIGIN).read_text(encoding="utf-8"))
        named = config.with_values({"data.dataset": origin["dataset"]})
        dataset = load_dataset(named.data)
    except (OSError, ValueError, KeyError, DataError, OutputError):
        return None
    if dataset.image_shape != tuple(truth.images.shape[1:]):
        return None
    splits = [_without(split, truth) for split in (dataset.test, dataset.train)]
    return in_random_order(splits, statistics, seed=0)


def _without(split: PrivateSplit, truth: ClientTruth) -> PrivateSplit:
    """Return the images that are not private, wherever a seed may have put them."""
    private = {image.numpy().tobytes() for image in truth.images}
    others = [image.numpy().tobytes() not in private for image in split.images]
    return split.subset(torch.tensor(others).nonzero()[:, 0])
