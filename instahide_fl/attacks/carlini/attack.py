"""The attack of Carlini et al. on encodings, end to end, without any key.

The squares of encodings tell which of them share an image. Images are then decoded,
and images, links and public parts correct each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
)
from instahide_fl.attacks.carlini.client_attack import ClientAttack
from instahide_fl.attacks.carlini.client_encodings import collect_encodings
from instahide_fl.attacks.carlini.held_out import MIN_HELD_OUT_STATISTIC
from instahide_fl.attacks.carlini.matching_pursuit import PublicMatchingPursuit
from instahide_fl.attacks.carlini.stage_cache import StageCache, digest_of
from instahide_fl.config.base import Count, CountOrZero
from instahide_fl.errors import AttackError
from instahide_fl.rng import stream
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView


class Carlini(Attack):
    """Cluster the encodings of each client, link, decode and refine."""

    name: ClassVar[str] = "carlini"
    summary: ClassVar[str] = (
        "private images from encodings and soft labels: similarity, clustering, "
        "assignment, decoding; no key is known"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.ENCODINGS, Knowledge.LABELS}
    )
    cost: ClassVar[str] = "about a minute for 1,000 encodings of 32 x 32"
    source: ClassVar[str] = (
        "Carlini et al., Is Private Learning Possible with Instance Encoding?, "
        "IEEE S&P 2021; the similarity, the search of the pool and the refinement are "
        "of this project"
    )
    by_default: ClassVar[bool] = False
    threat_model: ClassVar[str] = "encodings-holder"
    no_reference: ClassVar[str] = "a run that hides nothing shows the images"

    images: CountOrZero = 0
    """The number of private images of each client; 0 estimates it."""
    rounds: Count = 8
    """The largest number of rounds of refinement."""
    search_pool: bool = True
    """Whether public images are searched in the pool."""
    stages: str = ""
    """The folder where each stage is kept, to resume and inspect; empty keeps none."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Attack the clients one by one.

        Args:
            view: The view of the adversary, with encodings and soft labels.
            rng: The generator whose first number seeds every stage.
            progress: The callback told how far the attack is.

        Raises:
            AttackError: The run does not hide signs, or there is not enough
                information.
        """
        _check_signs_hidden(view)
        seed = int(rng.integers(2**62))
        attacks = [
            ClientAttack.of(self, view, encodings, seed)
            for encodings in collect_encodings(view)
        ]
        pursuit = self._pursuit(view, seed)
        cache = self._cache(view, seed)
        recovered: list[Recovered] = []
        for number, attack in enumerate(attacks):
            before = number * 100

            def client_progress(
                completed: int, total: int, before: int = before
            ) -> None:
                progress(before + 100 * completed // total, 100 * len(attacks))

            recovered.append(attack.run(pursuit, cache, client_progress))
        if all(client.images is None for client in recovered):
            highest = max(client.diagnostics["evidence"] for client in recovered)
            raise AttackError(
                f"not enough information: encodings that were held out do not fit the "
                f"decoded images better than mirrored ones ({highest:.1f} standard "
                f"deviations, {MIN_HELD_OUT_STATISTIC:.0f} are needed): record more "
                f"rounds"
            )
        return Reconstruction("private", tuple(recovered))

    def _pursuit(self, view: AdversaryView, seed: int) -> PublicMatchingPursuit | None:
        """Return the search of the pool; None if encodings contain none of it."""
        config, pool = view.config.instahide, view.pool
        if pool is None or not config.uses_pool or not self.search_pool:
            return None
        return PublicMatchingPursuit(pool, config, stream(seed, "carlini", "pool"))

    def _cache(self, view: AdversaryView, seed: int) -> StageCache:
        """Return the cache of stages, which depend on all that is hashed here."""
        settings = view.config.model_dump_json(include={"instahide", "data"})
        return StageCache(
            Path(self.stages) if self.stages else None,
            digest_of(
                settings,
                str(seed),
                str(view.statistics),
                view.pool.sha256 if view.pool else "",
                str(self.search_pool),
            ),
        )


def _check_signs_hidden(view: AdversaryView) -> None:
    """Refuse runs that do not flip signs.

    Raises:
        AttackError: The run flips none; the text names the attack for it.
    """
    encoding = view.config.instahide.method
    if encoding != "instahide":
        raise AttackError(
            f"attack carlini undoes random signs, which this run does not have "
            f"(instahide.method = {encoding!r}): mixup_recovery attacks mixtures "
            f"without them"
        )
