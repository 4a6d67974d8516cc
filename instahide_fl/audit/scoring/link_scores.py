"""How much of what an attack believes about shared images is right.

The attack itself never sees the truth; the scorer compares its evidence
(`attacks.encoding_links`) with the keys of a simulation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.encoding_links import LinkedEncodings
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.originals import ClientImages
from instahide_fl.errors import ShapeError
from instahide_fl.transcript.truth import ClientTruth

MAX_COMPARED = 1500  # encodings, of which all pairs are judged


def score_links(
    links: LinkedEncodings, truths: Sequence[ClientTruth]
) -> dict[str, float]:
    """Compare the stages of an attack with the keys of one client.

    Args:
        links: What the attack believes.
        truths: The client's truth in each recorded round, in their order.

    Returns:
        Figures by name. `pair_auc`, `pair_average_precision` and `pair_share` say how
        well pairs of encodings that share an image are told from others, by similarity
        and labels. The same names with `_in_class` say it of pairs of label entries of
        one class, where labels do not help. Both are absent where there is only one
        kind of pair. `cluster_purity` and `images_found` are about clusters;
        `link_accuracy_clustered` and `link_accuracy`, before and after refinement, are
        for a one-to-one matching of clusters and images.

    Raises:
        ShapeError: links name encodings that the truth does not have.
    """
    visible = _visible_images(links, truths)
    return {
        **_pairs(links, visible),
        **_clusters(links, visible),
        "link_accuracy_clustered": _accuracy(links.clustered, links, visible),
        "link_accuracy": _accuracy(links.refined, links, visible),
    }


def score_client_links(
    links: LinkedEncodings | None, client: str, ground_truth: GroundTruth | None
) -> dict[str, float]:
    """Score a client's links; return nothing without links or without the truth."""
    if links is None or ground_truth is None:
        return {}
    return score_links(links, ground_truth.of_client(client))


def _visible_images(links: LinkedEncodings, truths: Sequence[ClientTruth]) -> Tensor:
    """Return which private images each label entry shows, bool[L,n]."""
    images = ClientImages.of(truths)
    mixed = torch.cat([images.located(truth.key.private_index) for truth in truths])
    if len(links.encodings) and int(links.encodings.max()) >= len(mixed):
        raise ShapeError(
            f"links name encoding {int(links.encodings.max())}, the truth has "
            f"{len(mixed)}"
        )
    member = torch.zeros(len(mixed), len(images.rows), dtype=torch.bool)
    member.scatter_(1, mixed, True)
    same_class = links.classes[:, None] == images.targets  # [S,n]
    return member[links.encodings] & same_class


def _pairs(links: LinkedEncodings, visible: Tensor) -> dict[str, float]:
    """Return how well pairs that share an image are told from others."""
    rng = np.random.default_rng(0)  # chooses what is judged, nothing else
    encodings = torch.unique(links.encodings)
    order = torch.from_numpy(rng.permutation(len(encodings))[:MAX_COMPARED])
    chosen = encodings[order]
    entries = torch.isin(links.encodings, chosen).nonzero()[:, 0]
    vectors, classes = links.vectors[links.vector_rows[entries]], links.classes[entries]
    similarity = vectors @ vectors.T
    similarity[classes[:, None] != classes] = -1.0
    judged = visible[entries].float()
    same = judged @ judged.T > 0
    other = links.encodings[entries]
    # Pairs of label entries of two encodings and one class, each pair once.
    apart = (other[:, None] < other) & (classes[:, None] == classes)
    # From pairs of entries [l,l] to pairs of encodings [e,e]: their best entries.
    index = torch.searchsorted(chosen.sort().values, other)
    count = len(chosen)
    best = torch.full((count, count), -1.0)
    share = torch.zeros(count, count)
    cells = (index[:, None] * count + index).flatten()
    best.view(-1).scatter_reduce_(0, cells, similarity.flatten(), "amax")
    share.view(-1).scatter_reduce_(0, cells, same.float().flatten(), "amax")
    upper = torch.ones(count, count, dtype=torch.bool).triu(1)
    return {
        **_ranked("", best[upper], share[upper] > 0),
        **_ranked("_in_class", similarity[apart], same[apart]),
    }


def _ranked(suffix: str, scores: Tensor, same: Tensor) -> dict[str, float]:
    """Return how well scores tell pairs that share an image from others."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if not len(same) or bool(same.all()) or not bool(same.any()):
        return {}
    truth, value = same.numpy(), scores.numpy()
    return {
        f"pair_auc{suffix}": float(roc_auc_score(truth, value)),
        f"pair_average_precision{suffix}": float(average_precision_score(truth, value)),
        f"pair_share{suffix}": float(truth.mean()),
    }


def _clusters(links: LinkedEncodings, visible: Tensor) -> dict[str, float]:
    """Return how pure clusters are, and how many images they are of."""
    purity, images = [], set()
    for nearest in links.clusters:
        entries = nearest[nearest >= 0]
        if len(entries):
            shares = visible[entries].float().mean(0)
            purity.append(float(shares.max()))
            images.add(int(shares.argmax()))
    return {
        "cluster_purity": float(np.mean(purity)) if purity else 0.0,
        "clusters": float(len(purity)),
        "images_found": float(len(images)),
        "images_in_truth": float(visible.shape[1]),
    }


def _accuracy(chosen: Tensor, links: LinkedEncodings, visible: Tensor) -> float:
    """Return the share of entries linked to an image they show."""
    from scipy.optimize import linear_sum_assignment

    linked = chosen >= 0
    counts = torch.zeros(len(links.clusters), visible.shape[1])
    counts.index_add_(0, chosen[linked], visible[linked].float())
    clusters, images = linear_sum_assignment(counts.numpy(), maximize=True)
    right = counts[torch.from_numpy(clusters), torch.from_numpy(images)].sum()
    return float(right) / max(1, len(chosen))
