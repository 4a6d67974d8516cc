"""The attack of Carlini et al. on encodings, end to end, without any key.

Which encodings share an image is told by their squares; then images are decoded, and
images, links and public parts correct each other.
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
from instahide_fl.attacks.carlini.client_encodings import join_clients
from instahide_fl.attacks.carlini.held_out import MIN_EVIDENCE
from instahide_fl.attacks.carlini.matching_pursuit import PublicPursuit
from instahide_fl.attacks.carlini.stage_cache import Stages, digest_of
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
    """Private images of each client; 0 takes what it says, or estimates it."""
    rounds: Count = 8
    """Of refinement, at most."""
    search_pool: bool = True
    """Whether public images are searched in the pool."""
    stages: str = ""
    """Folder where each stage is kept, to resume and inspect; empty keeps none."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Attack the clients one by one.

        Args:
            view: with encodings and soft labels.
            rng: its first number seeds every stage.
            progress: told how far it is.

        Raises:
            AttackError: the run does not hide signs, or there is not enough
                information.
        """
        _check_method(view)
        seed = int(rng.integers(2**62))
        clients = join_clients(view)
        attacks = [ClientAttack.of(self, view, one, seed) for one in clients]
        pursuit = self._pursuit(view, seed)
        stages = self._stages(view, seed)
        recovered: list[Recovered] = []
        for number, one in enumerate(attacks):
            before = number * 100

            def ahead(done: int, total: int, before: int = before) -> None:
                progress(before + 100 * done // total, 100 * len(attacks))

            recovered.append(one.run(pursuit, stages, ahead))
        if all(one.images is None for one in recovered):
            most = max(one.diagnostics["evidence"] for one in recovered)
            raise AttackError(
                f"not enough information: encodings that were held out do not fit the "
                f"decoded images better than mirrored ones ({most:.1f} standard "
                f"deviations, {MIN_EVIDENCE:.0f} are needed): record more rounds"
            )
        return Reconstruction("private", tuple(recovered))

    def _pursuit(self, view: AdversaryView, seed: int) -> PublicPursuit | None:
        """Return the pool, ready to be searched, if encodings contain it."""
        config, pool = view.config.instahide, view.pool
        if pool is None or not config.uses_pool or not self.search_pool:
            return None
        return PublicPursuit(pool, config, stream(seed, "carlini", "pool"))

    def _stages(self, view: AdversaryView, seed: int) -> Stages:
        known = view.config.model_dump_json(include={"instahide", "data"})
        return Stages(
            Path(self.stages) if self.stages else None,
            digest_of(
                known,
                str(seed),
                str(view.statistics),
                view.pool.sha256 if view.pool else "",
                str(self.search_pool),
            ),
        )


def _check_method(view: AdversaryView) -> None:
    """Refuse runs that do not flip signs.

    Raises:
        AttackError: and names the attack for them.
    """
    method = view.config.instahide.method
    if method != "instahide":
        raise AttackError(
            f"attack carlini undoes random signs, which this run does not have "
            f"(instahide.method = {method!r}): mixup_recovery attacks mixtures without "
            f"them"
        )
