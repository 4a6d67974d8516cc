"""Printing what differential privacy a run will have spent, before it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from instahide_fl.cli.common import console, errors
from instahide_fl.errors import ConfigError, DataError, PoolError
from instahide_fl.terminal import printable

if TYPE_CHECKING:
    from instahide_fl.config import Config
    from instahide_fl.data.federated_data import FederatedData
    from instahide_fl.study.plan import PlannedRun

MAX_ROWS = 20


def with_planned_noise(settings: Config, data: FederatedData) -> Config:
    """Return the settings with the noise for `defense.target-epsilon`, and say it.

    Args:
        settings: The run's settings; returned as they are without a target.
        data: The run's data.

    Raises:
        ConfigError: No noise reaches the target.
    """
    from instahide_fl.defenses.planned_privacy import with_target_epsilon

    if not settings.defense.target_epsilon:
        return settings
    planned = with_target_epsilon(settings, data.sizes)
    console.print(
        f"defense.noise-multiplier = {planned.defense.noise_multiplier:g} for an "
        f"epsilon of {planned.defense.target_epsilon:g}",
        highlight=False,
    )
    return planned


def warn_of_exposed_clients(settings: Config, data: FederatedData) -> None:
    """Name the clients that spend more than twice the median of all."""
    from instahide_fl.defenses.planned_privacy import exposed_clients_in_words

    for line in exposed_clients_in_words(settings, data.sizes):
        errors.print(printable(line), style="yellow")


def print_plan(settings: Config, data: FederatedData) -> dict[str, Any]:
    """Print what a run will do, and what it will spend of each client's privacy.

    Args:
        settings: The run's settings, with the noise that it will train with.
        data: The run's data.

    Returns:
        The same for JSON.
    """
    from instahide_fl.defenses.planned_privacy import epsilon_by_client, planned_loss

    train, sizes = settings.train, data.sizes
    console.print(
        f"{train.rounds} rounds (mode {train.mode}), {len(sizes)} clients with "
        f"{min(sizes.values())} to {max(sizes.values())} images, method "
        f"{settings.instahide.method}",
        highlight=False,
    )
    plan: dict[str, Any] = {"rounds": train.rounds, "images": sizes}
    loss = planned_loss(settings, sizes)
    if loss.epsilon is None:
        if settings.defense.is_private:
            console.print(f"epsilon: {loss.absent}", highlight=False)
        return {**plan, "epsilon_absent": loss.absent}
    console.print(
        f"differential privacy of one {loss.unit}: epsilon {loss.epsilon:.3g} at delta "
        f"{loss.delta:g} (by the Renyi accountant {loss.epsilon_rdp:.3g})",
        highlight=False,
    )
    by_client = epsilon_by_client(settings, sizes)
    _print_clients(by_client, sizes)
    return {
        **plan,
        "noise_multiplier": settings.defense.noise_multiplier,
        "epsilon": loss.epsilon,
        "epsilon_rdp": loss.epsilon_rdp,
        "delta": loss.delta,
        "privacy_unit": loss.unit,
        "epsilon_rdp_by_client": by_client,
    }


def print_study_epsilons(planned: Sequence[PlannedRun]) -> dict[str, str]:
    """Print what the runs of a study will have spent, a line for each method.

    Args:
        planned: The runs of the study; trials are left out.

    Returns:
        The same, by method.

    Raises:
        ConfigError: No noise reaches the target of a method.
    """
    by_variant = {
        run.variant: run.config
        for run in reversed(planned)
        if run.config.defense.is_private and not run.trial
    }
    spent: dict[str, str] = {}
    for variant, config in reversed(by_variant.items()):
        try:
            spent[variant] = _spent(config)
        except ConfigError as error:
            raise ConfigError(f"{variant}: {error}") from None
    for variant, text in spent.items():
        console.print(f"{variant}: {text}", markup=False, highlight=False)
    return spent


def _spent(config: Config) -> str:
    from instahide_fl.data.federated_data import load_federated_data
    from instahide_fl.defenses.planned_privacy import planned_loss, with_target_epsilon

    try:
        sizes = load_federated_data(config).sizes
    except (DataError, PoolError) as error:
        return f"epsilon unknown: {error}"
    config = with_target_epsilon(config, sizes)
    loss = planned_loss(config, sizes)
    return loss.absent or (
        f"epsilon {loss.epsilon:.3g} of one {loss.unit} at delta {loss.delta:g}, "
        f"with defense.noise-multiplier = {config.defense.noise_multiplier:g}"
    )


def _print_clients(epsilons: Mapping[str, float], sizes: Mapping[str, int]) -> None:
    table = Table("client", "images", "epsilon (Renyi)")
    worst_first = sorted(epsilons, key=lambda client: -epsilons[client])
    for client in worst_first[:MAX_ROWS]:
        table.add_row(escape(client), str(sizes[client]), f"{epsilons[client]:.3g}")
    console.print(table)
    if len(epsilons) > MAX_ROWS:
        console.print(f"and {len(epsilons) - MAX_ROWS} clients that spend less")
