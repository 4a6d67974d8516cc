"""TensorBoard: event files in the run's folder, for `tensorboard --logdir runs`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instahide_fl.files import explained
from instahide_fl.tracking.tracker import State, round_figures

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EventFiles:
    """Writes a run's event files.

    There is a file for the training, one more for each time that it was continued, and
    one for each set of results, which is replaced when they are made again.

    Args:
        folder: The run's folder.
        last_round: The last round that stays; TensorBoard drops what earlier files say
            about later rounds. None where no training follows.
    """

    def __init__(self, folder: Path, last_round: int | None) -> None:
        self._folder = folder
        self._writer = None
        if last_round is not None:
            self._writer = _writer(folder, purge_step=last_round + 1)

    def log_settings(self, toml: str) -> None:
        """Show the run's settings as text."""
        if self._writer is not None:
            text = "\n".join(f"    {line}" for line in toml.splitlines())
            _call(self._writer.add_text, "settings", text, 0)

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Add a point to every curve, on disk at once."""
        if self._writer is None:
            return
        with explained(self._folder):
            for name, value in round_figures(row).items():
                _call(self._writer.add_scalar, name, value, int(row["round"]))
            _call(self._writer.flush)

    def log_results(
        self,
        name: str,
        figures: Mapping[str, float],
        files: Sequence[Path],
        step: int,
    ) -> None:
        """Show figures and pictures; see `Tracker.log_results`."""
        if self._writer is not None:
            # In the same file: TensorBoard leaves a file for a younger one for good.
            _write(self._writer, name, figures, files, step)
            return
        suffix = "." + re.sub(r"[^A-Za-z0-9_]+", "-", name)
        with explained(self._folder):
            for old in self._folder.glob(f"events.out.tfevents.*{suffix}"):
                old.unlink()
            writer = _writer(self._folder, filename_suffix=suffix)
            _write(writer, name, figures, files, step)
            _call(writer.close)

    def close(self, state: State | None) -> None:
        """Close the training's file."""
        if self._writer is not None:
            _call(self._writer.close)


def _writer(folder: Path, **options: Any) -> SummaryWriter:
    # Imported here: it takes seconds, and most runs are not tracked.
    from torch.utils.tensorboard import SummaryWriter

    with explained(folder):
        return SummaryWriter(str(folder), **options)


def _write(
    writer: SummaryWriter,
    name: str,
    figures: Mapping[str, float],
    files: Sequence[Path],
    step: int,
) -> None:
    for figure, value in figures.items():
        _call(writer.add_scalar, f"{name}/{figure}", value, step)
    for path in files:
        if path.suffix == ".png":
            tag = name if path.stem == Path(name).name else f"{name}/{path.stem}"
            _call(writer.add_image, tag, _pixels(path), step, dataformats="HWC")


def _call(method: Any, *arguments: Any, **options: Any) -> None:
    """Call a method of the writer, which has no types."""
    method(*arguments, **options)


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
