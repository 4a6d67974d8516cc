"""SCAFFOLD: control variates that correct the drift of clients' local steps.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020 (arXiv:1910.06378), algorithm 1 with option II. The server's control variate
c travels with the global arrays; a client's c_i stays with the client.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PREFIX = "control/"
"""The start of control variates' names among the arrays that travel."""


def split_control_variates(
    arrays: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide the arrays that travel into a model's arrays and control variates.

    Args:
        arrays: All arrays by name; control variates' names carry the prefix.

    Returns:
        The model's arrays, and the control variates by parameter name.
    """
    model, control = {}, {}
    for name, array in arrays.items():
        if name.startswith(PREFIX):
            control[name.removeprefix(PREFIX)] = array
        else:
            model[name] = array
    return model, control


def with_control_variates(
    arrays: Mapping[str, Tensor], control: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Put a model's arrays and control variates together for the way.

    Args:
        arrays: The model's arrays by name.
        control: The control variates by parameter name.

    Returns:
        All of them by name; `split_control_variates` divides them again.
    """
    return {**arrays, **{PREFIX + name: array for name, array in control.items()}}


def gradient_correction(
    server: Mapping[str, Tensor], client: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what a client adds to each gradient: c - c_i.

    Args:
        server: The server's control variate c, by parameter name.
        client: The client's control variate c_i; empty, which means zero, for a client
            that takes part for the first time.
    """
    if not client:
        return dict(server)
    return {name: c - client[name].to(c.device) for name, c in server.items()}


def control_variate_difference(
    server: Mapping[str, Tensor],
    difference: Mapping[str, Tensor],
    steps: int,
    learning_rate: float,
) -> dict[str, Tensor]:
    """Return how far a client's control variate moves: -c + (x - y) / (steps * rate).

    Args:
        server: The server's control variate c, by parameter name.
        difference: Local minus global parameters, y - x.
        steps: Number of local optimizer steps; with none, nothing moves.
        learning_rate: Step size of these steps; positive.
    """
    if steps == 0:
        return {name: c * 0 for name, c in server.items()}
    scale = -1 / (steps * learning_rate)
    return {
        name: difference[name].to(c.device).contiguous() * scale - c
        for name, c in server.items()
    }
