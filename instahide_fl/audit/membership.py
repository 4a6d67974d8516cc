"""Who was trained on in a recorded run: what the scorer of membership knows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset, load_dataset
from instahide_fl.data.held_out import MEMBERSHIP
from instahide_fl.errors import DataError, OutputError
from instahide_fl.rng import stream
from instahide_fl.run_folder import PARTITION, PROVENANCE, RunFolder
from instahide_fl.transcript.candidates import CandidateImages

MAX_CANDIDATES = 10_000  # of large data sets, to bound memory


@dataclass(frozen=True)
class Membership:
    """Candidates, and which of them were trained on.

    Attributes:
        candidates: Members and held-out images, in random order.
        is_member: bool[N], whether a client holds the image.
        owners: The client that holds each candidate, by its key; empty for held-out
            images.
        test_accuracy: The test accuracy of the global model in the last attacked round,
            or in the evaluation next to it, in [0, 1]; None if there was none.
        chance_bound: The accuracy that a network without knowledge may reach; None if
            the run does not say.
    """

    candidates: CandidateImages
    is_member: Tensor
    owners: tuple[str, ...]
    test_accuracy: float | None = None
    chance_bound: float | None = None

    @property
    def is_at_chance(self) -> bool:
        """Whether the network has learned nothing, as far as the run says."""
        accuracy, bound = self.test_accuracy, self.chance_bound
        return accuracy is not None and bound is not None and accuracy <= bound


def read_membership(
    folder: RunFolder, config: Config, last_round: int
) -> Membership | None:
    """Read who was trained on, from a simulation's folder and its data set.

    There are as many members as held-out images of each class (fewer where clients
    hold fewer), so that a class says nothing.

    Args:
        folder: The run's folder.
        config: The run's settings.
        last_round: The last round that is attacked.

    Returns:
        The candidates; None if the run held nothing out, was no simulation, or its data
        set has changed or is no longer there.
    """
    share = config.record.holdout_share
    clients = folder.read_json(PARTITION).get("clients") if share else None
    if clients is None:
        return None
    try:
        dataset = load_dataset(config.data, config.seed, share)
    except (DataError, OutputError):
        return None
    if dataset.digest != folder.read_json(PROVENANCE).get("dataset_digest"):
        return None
    membership = draw_candidates(
        dataset, [torch.tensor(c) for c in clients], config.seed
    )
    summary = folder.summary()
    return replace(
        membership,
        test_accuracy=_accuracy(folder, last_round),
        chance_bound=summary.get("chance_bound"),
    )


def draw_candidates(
    dataset: ImageDataset, partition: list[Tensor], seed: int
) -> Membership:
    """Draw members like the held-out images, and mix both; at most `MAX_CANDIDATES`.

    Args:
        dataset: The data set, of which images are held out.
        partition: i64[N_i], the rows of each client's images.
        seed: The seed of the draw.
    """
    rng = stream(seed, "membership-candidates")
    targets = dataset.train.targets
    held_out = dataset.held_out.rows[MEMBERSHIP]
    held = torch.cat(partition)
    owner = torch.full((len(targets),), -1)
    for client, rows in enumerate(partition):
        owner[rows] = client
    shuffled = held[torch.from_numpy(rng.permutation(len(held)))]
    members = torch.cat(
        [
            shuffled[targets[shuffled] == number][:count]
            for number, count in enumerate(targets[held_out].bincount().tolist())
        ]
    )
    rows = torch.cat([members, held_out])
    order = torch.from_numpy(rng.permutation(len(rows)))
    rows = rows[order[:MAX_CANDIDATES]]
    split = dataset.train.subset(rows)
    located = dataset.train.image_rows(rows)
    return Membership(
        candidates=CandidateImages(
            images=torch.as_tensor(split.images[located]), targets=targets[rows]
        ),
        is_member=owner[rows] >= 0,
        owners=tuple(str(n) if n >= 0 else "" for n in owner[rows].tolist()),
    )


def _accuracy(folder: RunFolder, last_round: int) -> float | None:
    """Return the test accuracy in a round, or in the evaluation next to it."""
    evaluated = {
        row["round"]: float(row["test_accuracy"])
        for row in folder.metrics()
        if row["test_accuracy"] is not None
    }
    if not evaluated:
        return None
    return evaluated[min(evaluated, key=lambda number: abs(number - last_round))]
