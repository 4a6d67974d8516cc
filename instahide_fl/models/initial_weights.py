"""Initial weights from an earlier run or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from instahide_fl.errors import ConfigError
from instahide_fl.models.arrays import live_arrays, load_arrays
from instahide_fl.run_folder import CONFIG, MODEL, RunFolder


def load_initial_weights(
    model: nn.Module, source: str, *, sign_invariant: bool = False
) -> str:
    """Copy the weights of an earlier run or of a file into a model.

    The last layer may have been made for another number of classes: then it keeps its
    random start, as is usual when a network moves to another data set.

    Args:
        model: The network whose arrays are overwritten.
        source: a run folder, or a .safetensors file (`model.initial-weights`).
        sign_invariant: Whether the network sees absolute values only. A run folder
            tells whether its own did; a file elsewhere does not.

    Returns:
        The file's sha256.

    Raises:
        ConfigError: the file cannot be read, or holds another network's arrays.
    """
    path = Path(source).expanduser()
    path = path / MODEL if path.is_dir() else path
    _check_same_input(path, sign_invariant)
    try:
        data = path.read_bytes()
        stored = safetensors.torch.load(data)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"model.initial-weights: cannot read {path} ({reason}): give the folder of "
            f"a finished run, or a .safetensors file"
        ) from None
    initial = live_arrays(model)
    head = _last_layer(model)
    # The head's weight and bias go together: if one has another shape, both stay.
    random_start = head if _changed_shapes(initial, stored) & head else set[str]()
    misfits = sorted(initial.keys() ^ stored.keys()) or sorted(
        _changed_shapes(initial, stored) - random_start
    )
    if misfits:
        more = ", ..." if len(misfits) > 3 else ""
        raise ConfigError(
            f"model.initial-weights: {path} is of another network than [model] names: "
            f"they differ in {', '.join(misfits[:3])}{more}"
        )
    load_arrays(
        model,
        {
            name: array if name in random_start else stored[name]
            for name, array in initial.items()
        },
    )
    return hashlib.sha256(data).hexdigest()


def _check_same_input(path: Path, sign_invariant: bool) -> None:
    """Refuse weights for signed images where signs are dropped, and the reverse.

    Args:
        path: The file of weights, which may lie in a run folder.
        sign_invariant: Whether the new network sees absolute values only.

    Raises:
        ConfigError: the run that made the weights had another `model.sign-invariant`.
    """
    folder = RunFolder(path.parent)
    if path.name != MODEL or not (folder.path / CONFIG).is_file():
        return
    recorded = folder.config().sign_invariant
    if recorded != sign_invariant:
        was, now = (str(value).lower() for value in (recorded, sign_invariant))
        raise ConfigError(
            f"model.initial-weights: the run in {folder.path} had model.sign-invariant "
            f"= {was} and this one has {now}, so the weights are for other inputs: set "
            f"model.sign-invariant = {was}, or start from other weights"
        )


def _changed_shapes(
    initial: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> set[str]:
    """Name the arrays that both hold, in different shapes."""
    return {
        name
        for name in initial.keys() & stored.keys()
        if initial[name].shape != stored[name].shape
    }


def _last_layer(model: nn.Module) -> set[str]:
    """Name the parameters of the last linear layer."""
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    return {f"{linear[-1]}.{part}" for part in ("weight", "bias")} if linear else set()
