"""The images that an attack asks about where it asks what encodings mix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from instahide_fl.audit.scoring.originals import Originals
from instahide_fl.metrics.candidates import Candidates
from instahide_fl.rng import stream
from instahide_fl.transcript.candidates import CandidateImages

MAX_BYTES = 2**28  # of images that nobody trained on; photographs are large


@dataclass(frozen=True)
class MixedCandidates:
    """Candidates, and which of them a client's encodings mix.

    Attributes:
        candidates: Private images of all clients, and images that nobody trained on, in
            random order.
        positions: i64[n] by client, where its images are among the candidates, in the
            order of `rows`.
        rows: i64[n] by client, ascending: which of its images they are.
        others: i64[N], where the images that nobody trained on are, in random order.
    """

    candidates: CandidateImages
    positions: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    others: Tensor

    def located(self, client: str, rows: Tensor) -> Tensor:
        """Return where the client's images `rows` (i64, any shape) are."""
        return self.positions[client][
            torch.searchsorted(self.rows[client], rows.contiguous())
        ]


def mix_candidates(originals: Originals, others: Candidates) -> MixedCandidates:
    """Put private images among images that nobody trained on.

    Args:
        originals: The private images in the recorded encodings.
        others: Images that nobody trained on.
    """
    pixels = [
        (client.images * 255).round().to(torch.uint8)
        for client in originals.clients.values()
    ]
    count = max(1, min(len(others), MAX_BYTES // pixels[0][0].numel()))
    pixels.append(others.pixels(0, count))
    targets = [client.targets for client in originals.clients.values()]
    targets.append(others.targets[:count])
    images = torch.cat(pixels)
    # The order says nothing, and is the same each time.
    order = torch.from_numpy(stream(0, "mixed-candidates").permutation(len(images)))
    place = order.argsort()
    parts = torch.split(place, [len(part) for part in pixels])
    return MixedCandidates(
        candidates=CandidateImages(images[order], torch.cat(targets)[order]),
        positions=dict(zip(originals.clients, parts[:-1], strict=True)),
        rows={name: client.rows for name, client in originals.clients.items()},
        others=parts[-1],
    )
