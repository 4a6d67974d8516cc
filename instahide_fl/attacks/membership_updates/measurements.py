"""What a network's loss and gradients say of candidate images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from instahide_fl.models.arrays import shared_buffers
from instahide_fl.transcript.candidates import CandidateImages
from instahide_fl.types import ChannelStatistics

BATCH_SIZE = 256
MAX_GRADIENT_VALUES = 2**23
"""Values of single images' gradients that are held at once (32 MB)."""


class CandidateMeasurements:
    """A network in evaluation mode, and the candidates that it is asked about.

    Args:
        network: The network, whose own parameters are not used.
        statistics: Constants that images are normalised with.
        candidates: The N candidates.
    """

    def __init__(
        self,
        network: nn.Module,
        statistics: ChannelStatistics,
        candidates: CandidateImages,
    ) -> None:
        self._network = network.eval()
        self._statistics = statistics
        self._candidates = candidates
        self._parameters = [name for name, _ in network.named_parameters()]
        self._buffers = shared_buffers(network).keys()

    @torch.no_grad()
    def confidences(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return log(p / (1 - p)) of each candidate's class, f64[N], in nats.

        The scale is that of Carlini et al. (IEEE S&P 2022, section IV-C): a loss ends
        at 0 and can only rise from there, while confidences vary alike at any height.
        The loss is log(1 + exp(-confidence)).

        Args:
            arrays: The network's arrays by name.
        """
        parts = []
        for images, targets in self._batches(BATCH_SIZE):
            logits = functional_call(self._network, dict(arrays), (images,)).double()
            own = logits.gather(1, targets[:, None])[:, 0]
            others = logits.scatter(1, targets[:, None], -torch.inf)
            parts.append(own - others.logsumexp(dim=1))
        return torch.cat(parts)

    def cosines(self, arrays: Mapping[str, Tensor], directions: Tensor) -> Tensor:
        """Return the cosine of directions and the gradient of each candidate's loss.

        Args:
            arrays: The network's arrays by name.
            directions: f32[C,P], directions in the space of all parameters, in the
                order of `flat`.

        Returns:
            f64[C,N], in [-1, 1]; 0 where a direction or a gradient is 0.
        """
        unit = F.normalize(directions, dim=1)
        gradients = vmap(grad(self._loss_of(arrays)), in_dims=(None, 0, 0))
        parameters = {name: arrays[name] for name in self._parameters}
        batch = max(1, MAX_GRADIENT_VALUES // directions.shape[1])
        parts = []
        for images, targets in self._batches(min(BATCH_SIZE, batch)):
            by_name = gradients(parameters, images, targets)
            # {name: [b,...]} -> [b,P]
            flat = torch.cat([by_name[n].flatten(1) for n in self._parameters], dim=1)
            parts.append(unit @ F.normalize(flat, dim=1).T)
        return torch.cat(parts, dim=1).double()

    def flat(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return the parameters among a network's arrays as one vector, f32[P]."""
        return torch.cat([arrays[name].flatten() for name in self._parameters])

    def stepped(
        self, arrays: Mapping[str, Tensor], update: Mapping[str, Tensor], scale: float
    ) -> dict[str, Tensor]:
        """Return the arrays after a client's own step.

        Args:
            arrays: The global arrays by name.
            update: What the client sent, by name.
            scale: The factor of the update of parameters: 1 for a difference, minus
                the learning rate for a gradient. Running statistics are differences.
        """
        return {
            name: array + (1.0 if name in self._buffers else scale) * update[name]
            for name, array in arrays.items()
        }

    def _batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images f32[b,C,H,W] and their classes."""
        chosen = self._candidates
        for start in range(0, len(chosen), size):
            rows = slice(start, start + size)
            yield self._statistics.normalise(chosen.images[rows]), chosen.targets[rows]

    def _loss_of(
        self, arrays: Mapping[str, Tensor]
    ) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
        buffers = {name: arrays[name] for name in self._buffers}

        def loss(
            parameters: dict[str, Tensor], image: Tensor, target: Tensor
        ) -> Tensor:
            state = {**parameters, **buffers}
            # [C,H,W] -> [1,C,H,W]
            logits = functional_call(self._network, state, (image[None],))
            return F.cross_entropy(logits, target[None])

        return loss
