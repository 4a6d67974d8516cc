"""Starting from weights that were trained before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from instahide_fl.errors import ConfigError
from instahide_fl.models.arrays import live_arrays, load_arrays

MODEL = "model.safetensors"


def load_initial_weights(model: nn.Module, source: str) -> str:
    """Copy the weights of an earlier run or of a file into a model.

    The last layer may have been made for another number of classes: then it keeps the
    random start it has, as is usual when a network moves to another data set.

    Args:
        model: whose arrays are overwritten.
        source: a run folder, or a .safetensors file (`model.initial-weights`).

    Returns:
        sha256 of the file.

    Raises:
        ConfigError: it cannot be read, or is of another network.
    """
    path = Path(source).expanduser()
    path = path / MODEL if path.is_dir() else path
    try:
        data = path.read_bytes()
        given = safetensors.torch.load(data)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"model.initial-weights: cannot read {path} ({reason}): give the folder of "
            f"a finished run, or a .safetensors file"
        ) from None
    own = live_arrays(model)
    head = _last_layer(model)
    kept = {n for n in head & own.keys() & given.keys() if _differ(own[n], given[n])}
    # Of a head, weight and bias go together.
    kept = head if kept else kept
    wrong = sorted(own.keys() ^ given.keys()) or sorted(
        name for name in own.keys() - kept if _differ(own[name], given[name])
    )
    if wrong:
        raise ConfigError(
            f"model.initial-weights: {path} is of another network than [model] names: "
            f"they differ in {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}"
        )
    load_arrays(model, {n: (own if n in kept else given)[n] for n in own})
    return hashlib.sha256(data).hexdigest()


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape


def _last_layer(model: nn.Module) -> set[str]:
    """Name the parameters of the last linear layer."""
    linear = [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    return {f"{linear[-1]}.{part}" for part in ("weight", "bias")} if linear else set()
