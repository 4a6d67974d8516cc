"""The server's optimizer: applies an aggregate to the global parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.types import UpdateKind


class ServerOptimizer:
    """Holds the global parameters and moves them by aggregates.

    A gradient is a step's direction as it is. The difference that clients trained is
    its negative: "pseudo-gradient" of Reddi et al., "Adaptive Federated Optimization",
    ICLR 2021 (arXiv:2003.00295); with sgd, step size 1 and no momentum it is FedAvg.

    Args:
        parameters: the initial global ones, by name; copied.
        config: optimizer, step size, momentum and weight decay.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: Config) -> None:
        self._parameters = {
            name: torch.nn.Parameter(value.clone())
            for name, value in parameters.items()
        }
        rate = config.server_learning_rate
        # In mode update the clients have decayed the weights already.
        decay = config.train.weight_decay if config.train.mode == "gradient" else 0.0
        self._optimizer: torch.optim.Optimizer
        if config.server.optimizer == "adam":
            self._optimizer = torch.optim.Adam(
                self._parameters.values(), lr=rate, weight_decay=decay
            )
        else:
            self._optimizer = torch.optim.SGD(
                self._parameters.values(),
                lr=rate,
                momentum=config.server_momentum,
                weight_decay=decay,
            )

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The global parameters by name; valid until the next `step`."""
        return {name: value.detach() for name, value in self._parameters.items()}

    def step(self, aggregate: Mapping[str, Tensor], kind: UpdateKind) -> None:
        """Move the global parameters.

        Args:
            aggregate: by parameter name, from an aggregation rule.
            kind: what the aggregate is.
        """
        for group in self._optimizer.param_groups:
            group["maximize"] = kind == "delta"
        for name, parameter in self._parameters.items():
            parameter.grad = aggregate[name]
        self._optimizer.step()
        for parameter in self._parameters.values():
            parameter.grad = None  # or the aggregate would stay in memory

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to go on later, as flat named tensors."""
        tensors = {f"parameter/{name}": v for name, v in self.parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{name}/{key}"] = value
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Args:
            tensors: of an optimizer with the same parameters and settings.
        """
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                prefix = f"optimizer/{name}/"
                self._optimizer.state[parameter] = {
                    key.removeprefix(prefix): value.clone()
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                }
