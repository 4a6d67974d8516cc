"""The Yogi optimizer, which torch.optim lacks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Yogi(torch.optim.Optimizer):
    """Adam with another second moment, whose steps do not grow with its distance.

    Zaheer et al., "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018; on a
    server it is FedYogi (Reddi et al., ICLR 2021, arXiv:2003.00295, algorithm 2):
    v <- v - (1 - beta2) * g^2 * sign(v - g^2). Both moments are corrected for their
    start at zero, as in torch's Adam.

    Args:
        params: The parameters to optimize.
        lr: Step size.
        betas: Decay of the first and of the second moment.
        eps: Number added to the root of the second moment.
        weight_decay: Factor of the L2 penalty, which is added to the gradient.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters by their gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, object]) -> None:
        assert parameter.grad is not None
        sign = -1.0 if group["maximize"] else 1.0
        gradient = parameter.grad * sign
        gradient = gradient.add(parameter, alpha=group["weight_decay"])  # type: ignore[arg-type]
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        first, second = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]  # type: ignore[misc]
        state["step"] += 1
        count = state["step"].item()
        first.lerp_(gradient, 1 - beta1)  # type: ignore[has-type]
        squared = gradient.square()
        change = squared * torch.sign(second - squared)
        second.sub_(change, alpha=1 - beta2)  # type: ignore[has-type]
        root = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])  # type: ignore
        rate = group["lr"] / (1 - beta1**count)  # type: ignore
        parameter.addcdiv_(first, root, value=-rate)
