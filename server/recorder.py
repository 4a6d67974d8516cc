"""The recorder of transcripts: what the server sent and received in some rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset
from instahide_fl.transcript.recorded import RoundTranscript, write_transcript
from instahide_fl.types import ClientUpdate
from instahide_fl.wire.messages import RoundInstruction


@dataclass(frozen=True)
class Recorder:
    """Writes transcripts: what crossed the wire and nothing else.

    Attributes:
        folder: The run folder.
        config: The run's settings, which name the rounds.
        image_shape: C, H, W; the server knows it from its test images.
        num_classes: K.
    """

    folder: Path
    config: Config
    image_shape: tuple[int, int, int]
    num_classes: int

    @classmethod
    def of(cls, folder: Path, config: Config, dataset: ImageDataset) -> Recorder:
        """Return a run's recorder."""
        return cls(folder, config, dataset.image_shape, dataset.train.num_classes)

    def records_round(self, round_number: int) -> bool:
        """Tell whether a round is recorded."""
        return self.config.record.includes_round(round_number)

    def crafts_round(self, round_number: int) -> bool:
        """Tell whether a round's parameters are crafted by a malicious server."""
        return self.config.record.crafted != "none" and self.records_round(round_number)

    def record(
        self,
        instruction: RoundInstruction,
        sent: Mapping[str, Tensor],
        updates: Mapping[str, ClientUpdate],
        aggregate: Mapping[str, Tensor],
        images_held: Mapping[str, int],
    ) -> None:
        """Write a round.

        Args:
            instruction: The instruction that was sent with the parameters.
            sent: The parameters, as clients received them.
            updates: The updates as they came, by client key in order.
            aggregate: The aggregate that the server steps with.
            images_held: Number of images by client, as clients said before the first
                round.

        Raises:
            OutputError: the transcript cannot be written.
        """
        transcript = RoundTranscript(
            round=instruction.round,
            parameters=sent,
            updates=updates,
            aggregate=aggregate,
            kind=self.config.train.update_kind,
            statistics=instruction.statistics,
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            learning_rate_factor=instruction.learning_rate_factor,
            pool_sha256=instruction.pool_sha256,
            images_held={client: images_held[client] for client in updates},
        )
        write_transcript(self.folder, transcript)
