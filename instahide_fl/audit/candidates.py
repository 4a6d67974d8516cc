"""The images that the true image of a reconstruction is told from."""

from __future__ import annotations

from collections.abc import Sequence

from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset, load_dataset
from instahide_fl.errors import DataError, OutputError
from instahide_fl.metrics.candidates import Candidates
from instahide_fl.rng import stream
from instahide_fl.types import ChannelStatistics, PrivateSplit


def load_candidates(
    config: Config, statistics: ChannelStatistics, image_shape: tuple[int, int, int]
) -> Candidates | None:
    """Draw images of a run's data set that no client trained on.

    Args:
        config: The run's settings.
        statistics: Constants that private images are normalised with.
        image_shape: C, H, W of the private images.

    Returns:
        The images; None if the data set is no longer there, or has changed its shape.
    """
    try:
        dataset = load_dataset(config.data, config.seed, config.record.holdout_share)
    except (DataError, OutputError):
        return None
    if dataset.image_shape != image_shape:
        return None
    return draw_candidates(dataset, statistics, config.seed)


def draw_candidates(
    dataset: ImageDataset, statistics: ChannelStatistics, seed: int
) -> Candidates:
    """Draw test images, and training images that were held out, in random order.

    Args:
        dataset: The data set that clients hold the training images of.
        statistics: Constants that private images are normalised with.
        seed: The seed of the order.
    """
    held_out = [dataset.train.subset(rows) for rows in dataset.held_out.rows.values()]
    return in_random_order((dataset.test, *held_out), statistics, seed)


def in_random_order(
    splits: Sequence[PrivateSplit], statistics: ChannelStatistics, seed: int
) -> Candidates:
    """Put images in random order.

    Args:
        splits: Images of one shape.
        statistics: Constants that private images are normalised with.
        seed: The seed of the order.
    """
    order = stream(seed, "candidates").permutation(sum(map(len, splits)))
    return Candidates.of(splits, order, statistics)
