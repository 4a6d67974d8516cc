"""The server's optimizer: applies an aggregate to the global arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor

from instahide_fl.aggregation.moving_average import MovingAverage
from instahide_fl.aggregation.reduction import is_finite
from instahide_fl.aggregation.yogi import Yogi
from instahide_fl.config import Config
from instahide_fl.defenses.transforms import clip
from instahide_fl.errors import OutputError
from instahide_fl.training.scaffold import split_control_variates, with_control_variates
from instahide_fl.types import UpdateKind

# By train.mode; 0.99 for the second moment in mode update is that of Reddi et al.,
# section 5.
ADAPTIVE_BETAS = {"gradient": (0.9, 0.999), "update": (0.9, 0.99)}


class ServerOptimizer:
    """Holds the global arrays and moves them by aggregates.

    A gradient is a step's direction as it is. The difference that clients trained is
    its negative: "pseudo-gradient" of Reddi et al., "Adaptive Federated Optimization",
    ICLR 2021 (arXiv:2003.00295); with sgd, step size 1 and no momentum it is FedAvg.
    Running statistics and control variates are not optimized: they move by the mean of
    the clients' differences.

    Args:
        arrays: The model's initial arrays by name, which are copied.
        config: Optimizer, step size, momentum, weight decay, largest norm of an
            aggregated gradient, and decay of the moving average.
        buffers: Names of the arrays that are running statistics.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        config: Config,
        buffers: Collection[str] = (),
    ) -> None:
        self._parameters = {
            name: torch.nn.Parameter(value.clone())
            for name, value in arrays.items()
            if name not in buffers
        }
        self._buffers = {name: arrays[name].clone() for name in buffers}
        self._control = (
            {name: torch.zeros_like(p.data) for name, p in self._parameters.items()}
            if config.train.control_variates
            else {}
        )
        self._average = (
            MovingAverage(self.model_arrays, config.server.ema)
            if config.server.ema
            else None
        )
        # In mode update the clients clip, each of their own steps.
        clips = config.train.mode == "gradient"
        self._clip_norm = config.train.clip_norm if clips else 0.0
        self._rate = config.server_learning_rate
        self._optimizer = _optimizer(self._parameters.values(), config)

    @property
    def model_arrays(self) -> dict[str, Tensor]:
        """The model's arrays by name; valid until the next `step`."""
        parameters = {name: value.detach() for name, value in self._parameters.items()}
        return {**parameters, **self._buffers}

    @property
    def evaluated_arrays(self) -> dict[str, Tensor]:
        """The arrays to evaluate and to save, by name; valid until the next `step`.

        They are the moving average of the model's arrays if the settings ask for one
        (`server.ema`), else the model's arrays.
        """
        return self.model_arrays if self._average is None else self._average.arrays

    @property
    def arrays(self) -> dict[str, Tensor]:
        """All that clients receive: the model's arrays and control variates, if any."""
        return with_control_variates(self.model_arrays, self._control)

    def step(
        self,
        aggregate: Mapping[str, Tensor],
        kind: UpdateKind,
        learning_rate_factor: float = 1.0,
        share: float = 1.0,
    ) -> None:
        """Move the global arrays.

        Args:
            aggregate: The result of an aggregation rule, by name.
            kind: Whether the parameters' aggregates are gradients or differences.
            learning_rate_factor: Factor of this round's schedule.
            share: The part of all clients whose updates are in the aggregate, by which
                SCAFFOLD scales the step of the control variates.
        """
        for group in self._optimizer.param_groups:
            group["maximize"] = kind == "delta"
            group["lr"] = self._rate * learning_rate_factor
        model, control = split_control_variates(aggregate)
        gradients = {name: model[name] for name in self._parameters}
        if self._clip_norm:
            # Contiguous, because a sum in another layout has other bits.
            gradients = {name: g.contiguous() for name, g in gradients.items()}
            gradients = clip(gradients, self._clip_norm)
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        self._optimizer.step()
        for parameter in self._parameters.values():
            parameter.grad = None  # or the aggregate would stay in memory
        for name, buffer in self._buffers.items():
            buffer.add_(model[name])
        for name, variate in self._control.items():
            variate.add_(control[name], alpha=share)
        if self._average is not None:
            self._average.update(self.model_arrays)

    def is_finite(self) -> bool:
        """Tell whether all arrays and all of the optimizer's moments are."""
        moments = (
            value
            for state in self._optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        arrays = chain(self.arrays.values(), self.evaluated_arrays.values())
        return all(map(is_finite, chain(arrays, moments)))

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to go on later, as flat named tensors."""
        tensors = {f"parameter/{name}": v for name, v in self.model_arrays.items()}
        tensors |= {f"control/{name}": v for name, v in self._control.items()}
        if self._average is not None:
            tensors |= self._average.state()
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{name}/{key}"] = value
        return tensors

    def load_state(
        self, tensors: Mapping[str, Tensor], control_variates: bool = True
    ) -> None:
        """Restore what `state` returned.

        Args:
            tensors: The state of an optimizer with the same arrays and settings.
            control_variates: Whether to restore the control variates too. They belong
                to the clients' own: where those are gone, the server's start again at
                zero.

        Raises:
            OutputError: the tensors are of another model.
        """
        restored = {f"parameter/{name}": v for name, v in self.model_arrays.items()}
        if control_variates:
            restored |= {f"control/{name}": v for name, v in self._control.items()}
        if self._average is not None:
            restored |= self._average.state()
        for name, array in restored.items():
            if name not in tensors or tensors[name].shape != array.shape:
                raise OutputError(
                    f"the checkpoint does not hold this run's {name}: it is of another "
                    f"model; start the run anew"
                )
        with torch.no_grad():
            for name, array in restored.items():
                array.copy_(tensors[name])
            for name, parameter in self._parameters.items():
                prefix = f"optimizer/{name}/"
                self._optimizer.state[parameter] = {
                    key.removeprefix(prefix): value.clone()
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                }


def _optimizer(parameters: Iterable[Tensor], config: Config) -> torch.optim.Optimizer:
    rate, epsilon = config.server_learning_rate, config.server_epsilon
    # In mode update the clients have decayed the weights already.
    decay = config.train.weight_decay if config.train.mode == "gradient" else 0.0
    betas = ADAPTIVE_BETAS[config.train.mode]
    name = config.server.optimizer
    if name == "adam":
        return torch.optim.Adam(
            parameters, rate, betas=betas, eps=epsilon, weight_decay=decay
        )
    if name == "adamw":
        return torch.optim.AdamW(
            parameters, rate, betas=betas, eps=epsilon, weight_decay=decay
        )
    if name == "yogi":
        return Yogi(parameters, rate, betas, epsilon, decay)
    if name == "adagrad":
        return torch.optim.Adagrad(parameters, rate, eps=epsilon, weight_decay=decay)
    return torch.optim.SGD(
        parameters, rate, momentum=config.server_momentum, weight_decay=decay
    )
