"""The sections that reports of studies, single runs and several runs are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from instahide_fl.attacks.registry import ATTACKS
from instahide_fl.data.data_report import DataReport
from instahide_fl.data.report_text import class_facts, data_facts, warning_lines
from instahide_fl.report import settings_tables
from instahide_fl.report import study_tables as tables
from instahide_fl.report.attack_rows import AttackFile
from instahide_fl.report.image_grid import reconstruction_grids
from instahide_fl.report.leakage_figures import exposures, image_distributions
from instahide_fl.report.membership import membership_table, roc_curves
from instahide_fl.report.page import Card, Item, Picture, Section
from instahide_fl.report.reference import find_reference
from instahide_fl.report.results import Run, Study
from instahide_fl.report.study_figures import curves, sweeps, trade_off
from instahide_fl.report.tuning_tables import choice_note, tuning_notes, tuning_table
from instahide_fl.report.variants import NOT_TRAINED, Variant
from instahide_fl.run_folder import EVALUATION_PICTURE, PARTITION_PICTURE
from instahide_fl.terminal import printable
from instahide_fl.transcript.threat_model import THREAT_MODELS


def trade_offs(study: Study, variants: Sequence[Variant]) -> Section:
    """Show accuracy against leakage; twice, if not all adversaries are ordinary."""
    reference = find_reference(study, variants)
    ordinary = trade_off(variants, ordinary=True, reference=reference)
    everybody = trade_off(variants, ordinary=False, reference=reference)
    differ = everybody and (
        ordinary is None or ordinary.alternative != everybody.alternative
    )
    return _section(
        "trade-off",
        "Accuracy against leakage",
        [ordinary, everybody if differ else None],
    )


def methods(study: Study, variants: Sequence[Variant]) -> Section:
    """Show the methods beside each other."""
    reference = find_reference(study, variants)
    table = tables.by_method(variants, reference, choice_note(study))
    return _section("methods", "Methods", [table])


def tuning(study: Study) -> Section:
    """Show how the settings of each method were chosen."""
    table = tuning_table(study)
    items = [] if table is None else [table]
    return Section("tuning", "Tuning", tuning_notes(study), items)


def data(study: Study) -> Section:
    """Show what was read of each data set, and what to look at.

    Of runs that differ in their seed, the first stands for all.
    """
    reports: dict[str, DataReport] = {}
    for run in _runs(study):
        if run.data_report is not None:
            settings = run.config.data.model_copy(update={"augment": "auto"})
            key = repr((settings, run.data_report.parts))
            reports.setdefault(key, run.data_report)
    warnings = dict.fromkeys(
        f"{printable(report.dataset)}: {line}"
        for report in reports.values()
        for line in warning_lines(report)
    )
    cards = [_data_card(report) for report in reports.values()]
    return Section("data", "Data", list(warnings), cards)


def _data_card(report: DataReport) -> Card:
    """Show a report's facts; texts that continue one another are joined."""
    facts: dict[str, str] = {}
    term = ""
    for name, text in data_facts(report):
        term = name or term
        facts[term] = f"{facts[term]}; {text}" if term in facts else text
    names, counts = list(report.classes), list(report.classes.values())
    classes = class_facts(names, counts)
    return Card(printable(report.dataset), [*facts.items(), *classes])


def training(study: Study, variants: Sequence[Variant]) -> Section:
    """Show accuracy over rounds, and what the varied settings do."""
    figures = [curves(study, variants), *sweeps(study, variants)]
    return _section("training", "Training", figures)


def leakage(study: Study, variants: Sequence[Variant]) -> Section:
    """Show all attacks, and how leakage grows."""
    items = [
        tables.by_attack(variants),
        *exposures(study, variants),
        image_distributions(study, variants),
    ]
    notes = [
        f"{variant.label}: the network has learned nothing ({NOT_TRAINED}), so attacks "
        f"on its trained parameters do not show what a trained network gives away."
        for variant in variants
        if not variant.is_ranked and len(variant.attacks)
    ]
    shown = [item for item in items if item is not None]
    return Section("attacks", "Attacks", notes if shown else [], shown)


def membership(variants: Sequence[Variant]) -> Section:
    """Show how well members of the training set are told from held-out images."""
    items = [membership_table(variants), roc_curves(variants)]
    return _section("membership", "Membership", items)


def reconstructions(variants: Sequence[Variant]) -> Section:
    """Show the recovered images that were saved, the same for all methods."""
    grids = list(reconstruction_grids(variants))
    return _section("images", "What the attacker sees", grids)


def clients(study: Study) -> Section:
    """Show which client held what: the first way in which runs divided the data."""
    by_division: dict[tuple[object, ...], Picture] = {}
    for run in _runs(study):
        path = run.path / PARTITION_PICTURE
        if path.is_file():
            config = run.config
            division = config.data, config.partition, config.seed
            caption = (
                f"Images of each class on each client: {config.partition.scheme}, "
                f"{config.partition.num_clients} clients, seed {config.seed}."
            )
            by_division.setdefault(division, Picture(path, caption))
    pictures = list(by_division.values())
    note = (
        f"The first of {len(pictures)} divisions; for others see {PARTITION_PICTURE} "
        "of the runs."
    )
    paragraphs = [note] if len(pictures) > 1 else []
    return Section("clients", "Who held what", paragraphs, pictures[:1])


def adversaries(study: Study) -> Section:
    """Show a card for each attack with the adversary that it was run as."""
    pairs = {
        (file.data["attack"], file.data["threat_model"])
        for file in _attack_files(study)
    }
    return Section(
        "adversaries",
        "Who attacks, and what they know",
        items=[_card(attack, threat_model) for attack, threat_model in sorted(pairs)],
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
        facts.append(("needs", kind.needs_in_words()))
        facts.append(("cost", kind.cost))
        facts.append(("source", kind.source))
    return Card(attack, facts or [("adversary", threat_model)])


def stages(study: Study, variants: Sequence[Variant]) -> Section:
    """Show diagnostics of attacks, and what to know when reading their figures."""
    caveats = dict.fromkeys(
        f"{file.data['attack']}: {caveat}"
        for file in _attack_files(study)
        for caveat in file.data.get("caveats", [])
    )
    diagnostics = tables.diagnostics(variants)
    return Section(
        "stages",
        "How the attacks went",
        [*caveats, *_few_candidates(study)],
        [diagnostics] if diagnostics else [],
    )


def _few_candidates(study: Study) -> list[str]:
    """Say among how many candidates images could not be identified."""
    scores = [
        file.data["metrics"].get("private", {}).get("identification", {})
        for file in _attack_files(study)
    ]
    lines = [
        f"Identification among {', '.join(f'{n:,}' for n in score['left_out'])} "
        f"candidates is left out: the data set has {score['candidates']:,} images that "
        f"nobody trained on."
        for score in scores
        if score.get("left_out")
    ]
    return list(dict.fromkeys(lines))


def shortfalls(study: Study, variants: Sequence[Variant]) -> Section:
    """Show which runs and attacks are not there, and why."""
    return _section(
        "not-there",
        "What is not there, and why",
        [tables.failures(study.members), tables.skipped_attacks(variants)],
    )


def settings(study: Study) -> Section:
    """Show the settings, those that differ first."""
    return _section("settings", "Settings", settings_tables.settings(study))


def provenance(study: Study) -> Section:
    """Show what the runs were made with."""
    table = settings_tables.provenance(_runs(study))
    return _section("provenance", "Provenance", [table])


def pictures(run: Run) -> Section:
    """Show the pictures of attacks and evaluations in a run's folder."""
    pictures = [
        Picture(path, f"{file.data['attack']}: {file.data['verdict']}")
        for file in run.attack_files
        for path in _pictures_of(file)
    ]
    evaluation = run.path / EVALUATION_PICTURE
    if evaluation.is_file():
        caption = "Accuracy by the number of encodings that are averaged."
        pictures.append(Picture(evaluation, caption))
    return Section("pictures", "Pictures of the attacks", items=pictures)


def _pictures_of(file: AttackFile) -> Iterator[Path]:
    if file.picture:
        yield file.picture
    rounds = file.path.with_name(f"{file.path.stem}-rounds.png")
    if rounds.is_file():
        yield rounds


def _section(name: str, title: str, items: Iterable[Item | None]) -> Section:
    """Return a section of the items that there are."""
    return Section(name, title, (), [item for item in items if item is not None])


def _runs(study: Study) -> list[Run]:
    return [member.run for member in study.members if member.run]


def _attack_files(study: Study) -> list[AttackFile]:
    return [file for run in _runs(study) for file in run.attack_files]
