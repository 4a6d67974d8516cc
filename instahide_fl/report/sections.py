"""What the reports of studies, of single runs and of several runs are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from instahide_fl.attacks.registry import ATTACKS
from instahide_fl.report import settings_tables
from instahide_fl.report import study_tables as tables
from instahide_fl.report.attack_rows import AttackFile
from instahide_fl.report.image_grid import reconstruction_grids
from instahide_fl.report.leakage_figures import exposures, image_distributions
from instahide_fl.report.page import Card, Item, Picture, Section
from instahide_fl.report.results import Run, Study
from instahide_fl.report.study_figures import (
    curves,
    sweeps,
    trade_off,
)
from instahide_fl.run_folder import EVALUATION_PICTURE, PARTITION_PICTURE
from instahide_fl.transcript.threat_model import THREAT_MODELS


def trade_offs(study: Study) -> Section:
    """Accuracy against leakage; twice, if some adversaries are not ordinary ones."""
    ordinary, every = trade_off(study, True), trade_off(study, False)
    differ = every and (ordinary is None or ordinary.alternative != every.alternative)
    return _section(
        "trade-off", "Accuracy against leakage", [ordinary, every if differ else None]
    )


def methods(study: Study) -> Section:
    """Methods beside each other."""
    return _section("methods", "Methods", [tables.by_method(study)])


def training(study: Study) -> Section:
    """Curves, and what varied settings do."""
    return _section("training", "Training", [curves(study), *sweeps(study)])


def leakage(study: Study) -> Section:
    """All attacks, and how leakage grows."""
    items = [tables.by_attack(study), *exposures(study), image_distributions(study)]
    return _section("attacks", "Attacks", items)


def reconstructions(study: Study) -> Section:
    """Images that were kept, the same for all methods."""
    grids = list(reconstruction_grids(study))
    return _section("images", "What the attacker sees", grids)


def clients(study: Study) -> Section:
    """Who held what: one picture for each way in which runs divided the data."""
    pictures: dict[tuple[object, ...], Picture] = {}
    for run in _runs(study):
        path = run.path / PARTITION_PICTURE
        if path.is_file():
            config = run.config
            key = config.data, config.partition, config.seed
            caption = (
                f"Images of each class on each client: {config.partition.scheme}, "
                f"{config.partition.num_clients} clients, seed {config.seed}."
            )
            pictures.setdefault(key, Picture(path, caption))
    kept = list(pictures.values())
    note = (
        [
            f"The first of {len(kept)} divisions; for others see {PARTITION_PICTURE} "
            "of the runs."
        ]
        if len(kept) > 1
        else []
    )
    return Section("clients", "Who held what", note if kept else [], kept[:1])


def adversaries(study: Study) -> Section:
    """A card for each attack with the adversary that it was run as."""
    used = {(file.data["attack"], file.data["threat_model"]) for file in _files(study)}
    return Section(
        "adversaries",
        "Who attacks, and what they know",
        (),
        [_card(attack, model) for attack, model in sorted(used)],
    )


def _card(attack: str, threat_model: str) -> Card:
    kind, model = ATTACKS.get(attack), THREAT_MODELS.get(threat_model)
    facts = []
    if kind is not None:
        facts.append(("recovers", kind.summary))
    if model is not None:
        facts.append((f"adversary: {model.name}", model.who))
        facts.append(("knows", ", ".join(sorted(model.knows))))
    if kind is not None:
        facts.append(("needs", ", ".join(sorted(kind.needs))))
        facts.append(("cost", kind.cost))
        facts.append(("source", kind.source))
    return Card(attack, facts or [("adversary", threat_model)])


def stages(study: Study) -> Section:
    """Diagnostics of attacks, and what to know when reading their figures."""
    caveats = dict.fromkeys(
        f"{file.data['attack']}: {caveat}"
        for file in _files(study)
        for caveat in file.data.get("caveats", [])
    )
    found = tables.diagnostics(study)
    return Section(
        "stages", "How the attacks went", list(caveats), [found] if found else []
    )


def shortfalls(study: Study) -> Section:
    """Runs and attacks that are not there."""
    return _section(
        "not-there",
        "What is not there, and why",
        [tables.failures(study), tables.left_out(study)],
    )


def settings(study: Study) -> Section:
    """Settings, those that differ first."""
    return _section("settings", "Settings", settings_tables.settings(study))


def provenance(study: Study) -> Section:
    """What runs were made with."""
    told = settings_tables.provenance(_runs(study))
    return _section("provenance", "Provenance", [told])


def pictures(run: Run) -> Section:
    """What commands drew of a run."""
    found = [
        Picture(path, f"{file.data['attack']}: {file.data['verdict']}")
        for file in run.attack_files
        for path in _drawn(file)
    ]
    evaluation = run.path / EVALUATION_PICTURE
    if evaluation.is_file():
        caption = "Accuracy by the number of encodings that are averaged."
        found.append(Picture(evaluation, caption))
    return Section("pictures", "Pictures of the attacks", (), found)


def _drawn(file: AttackFile) -> Iterator[Path]:
    if file.picture:
        yield file.picture
    rounds = file.path.with_name(f"{file.path.stem}-rounds.png")
    if rounds.is_file():
        yield rounds


def _section(name: str, title: str, items: Iterable[Item | None]) -> Section:
    return Section(name, title, (), [one for one in items if one is not None])


def _runs(study: Study) -> list[Run]:
    return [one.run for one in study.members if one.run]


def _files(study: Study) -> list[AttackFile]:
    return [file for run in _runs(study) for file in run.attack_files]
