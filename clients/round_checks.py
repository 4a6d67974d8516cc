"""What a real client checks of a round before it trains, whoever sent it.

The run's settings are checked when the client is opened (`clients.policy`). What comes
with each round is checked here, and what has left is counted in the client's ledger.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import Tensor

from clients.node import ClientNode
from instahide_fl.aggregation.reduction import MAX_UPDATE_VALUE, is_bounded
from instahide_fl.defenses.accounting import composed_epsilon, released
from instahide_fl.deployment.ledger import ClientLedger, changed_ledger, read_ledger
from instahide_fl.deployment.policy import CLIENT_FILE
from instahide_fl.errors import PolicyError, ProtocolError
from instahide_fl.flower.arrays import ArrayForm, checked_tensors
from instahide_fl.models.arrays import live_arrays
from instahide_fl.training.local import LocalTrainer, gradient_images
from instahide_fl.training.scaffold import PREFIX
from instahide_fl.types import ChannelStatistics, PrivateSplit
from instahide_fl.wire.messages import RoundInstruction
from instahide_fl.wire.refusals import refused

MAX_MEASURED_IMAGES = 2048  # enough for a mean, and read in a moment
_RECORD = "round"  # a record in Context.state, which stays on the node


def check_instruction(
    node: ClientNode, context: Context, instruction: RoundInstruction
) -> None:
    """Refuse a round that the run's settings do not have, or that was trained on.

    Raises:
        ProtocolError: the round, or its learning rate, is none of this run's.
        PolicyError: the constants of normalisation are none that the client allows.
    """
    train, number = node.config.train, instruction.round
    record = context.state.config_records.get(_RECORD)
    before = int(str(record["last"])) if record is not None else 0
    if not before < number <= train.rounds:
        raise refused(
            ProtocolError(
                f"client {node.client} trains in each of rounds 1 to {train.rounds} "
                f"once, in order: the server asked for round {number} after round "
                f"{before}"
            ),
            "round",
        )
    factor = train.learning_rate_factor(number) if train.mode == "update" else 1.0
    if instruction.learning_rate_factor != factor:
        raise refused(
            ProtocolError(
                f"the server multiplies the learning rate of round {number} by "
                f"{instruction.learning_rate_factor}, the run's schedule by {factor}"
            ),
            "round",
        )
    check_statistics(node, instruction.statistics)
    context.state[_RECORD] = ConfigRecord({"last": number})


def check_statistics(node: ClientNode, statistics: ChannelStatistics) -> None:
    """Refuse constants of normalisation that are not near the client's own.

    With a small standard deviation, or a mean far from all images, private images would
    outweigh public ones in every encoding, whatever the coefficients.

    Raises:
        PolicyError: they are not, or not one for each channel.
    """
    limits, images = node.limits, node.split.images
    channels = images.shape[1]
    if not len(statistics.mean) == len(statistics.std) == channels:
        raise _outside(node, f"{len(statistics.mean)} channels for {channels}")
    rows = node.split.rows
    available = len(node.split)
    step = max(1, available // MAX_MEASURED_IMAGES)
    sample = images[::step] if rows is None else images[rows[::step]]
    own, factor = ChannelStatistics.of(sample), limits.max_statistics_factor
    for mean, std, own_mean, own_std in zip(
        statistics.mean, statistics.std, own.mean, own.std, strict=True
    ):
        low, high = limits.mean_range or [
            own_mean - factor * own_std,
            own_mean + factor * own_std,
        ]
        if not low <= mean <= high:
            raise _outside(node, f"a mean of {mean:g}, it allows {low:g} to {high:g}")
        low, high = limits.std_range or [own_std / factor, own_std * factor]
        if not low <= std <= high:
            raise _outside(
                node,
                f"a standard deviation of {std:g}, it allows {low:g} to {high:g}",
            )


def _outside(node: ClientNode, text: str) -> PolicyError:
    error = PolicyError(
        f"client {node.client} refuses this run: the server normalises with {text} "
        f"({CLIENT_FILE}, limits.max-statistics-factor, mean-range, std-range)"
    )
    return refused(error, "normalisation")


def check_images(node: ClientNode, split: PrivateSplit) -> None:
    """Refuse to train on too few images, or on too large ones.

    Args:
        node: The client.
        split: The images that may take part.

    Raises:
        PolicyError: the client's limits do not allow it.
    """
    limits, side = node.limits, max(split.images.shape[2:])
    if side > limits.max_image_size:
        error = PolicyError(
            f"client {node.client} refuses this run: its images have {side} pixels a "
            f"side, it allows {limits.max_image_size} ({CLIENT_FILE}, "
            f"limits.max-image-size): set data.image-size in the run's settings"
        )
        raise refused(error, "limits", ["data.image-size"])
    train, count = node.config.train, len(split)
    used = gradient_images(count, train) if train.mode == "gradient" else count
    if used < limits.min_batch_size:
        error = PolicyError(
            f"client {node.client} refuses this round: its update would be computed on "
            f"{used} images, it allows {limits.min_batch_size} or more ({CLIENT_FILE}, "
            f"limits.min-batch-size)"
        )
        raise refused(error, "too-few-images")


def checked_arrays(
    node: ClientNode, record: ArrayRecord, trainer: LocalTrainer
) -> dict[str, Tensor]:
    """Return the global arrays, if they are those of the network for these images.

    Names, sizes, shapes and types are compared before a byte is decoded, as the server
    does with updates.

    Args:
        node: The client.
        record: The arrays as they came.
        trainer: The holder of the network that follows from settings and images.

    Raises:
        ProtocolError: arrays are missing, too many, of another form, not finite, or
            larger than the client allows.
    """
    parameters = dict(trainer.model.named_parameters())
    expected = dict(live_arrays(trainer.model))
    if node.config.train.control_variates:
        expected |= {PREFIX + name: value for name, value in parameters.items()}
    forms = {name: ArrayForm.of(array) for name, array in expected.items()}
    channels, height, width = node.split.images.shape[1:]
    try:
        arrays = checked_tensors(record, forms)
        for name, array in arrays.items():
            is_buffer = name in trainer.buffers
            largest = MAX_UPDATE_VALUE if is_buffer else node.limits.max_parameter
            if not is_bounded(array, largest):
                raise ProtocolError(
                    f"its array {name} has values that are not finite or beyond "
                    f"{largest:g} ({CLIENT_FILE}, limits.max-parameter)"
                )
    except ProtocolError as error:
        text = (
            f"client {node.client} holds {node.split.num_classes} classes of "
            f"{channels}x{height}x{width} images and refuses the parameters of this "
            f"round: {error}; clients have to agree on `classes` in {CLIENT_FILE} and "
            f"on data.image-size in the run's settings"
        )
        raise refused(ProtocolError(text), "parameters") from None
    return arrays


def check_budget(node: ClientNode, rounds: int, count: int) -> None:
    """Refuse rounds for which the client has nothing left to spend.

    Args:
        node: The client.
        rounds: Number of rounds that are planned.
        count: Number of images that may take part in them.

    Raises:
        PolicyError: its limits leave no room.
    """
    if node.state is not None:
        ledger = read_ledger(node.state)
        _check_day(node, ledger)
        _spend(node, ledger, rounds, count)


def count_update(node: ClientNode, count: int) -> None:
    """Count an update, on the disk, before it leaves.

    Args:
        node: The client.
        count: Number of images that could take part.

    Raises:
        PolicyError: another run has meanwhile left no room for it.
        OutputError: the ledger cannot be written.
    """
    if node.state is None:
        return
    with changed_ledger(node.state) as ledger:
        _check_day(node, ledger)
        _spend(node, ledger, 1, count)
        ledger.add_update()


def _check_day(node: ClientNode, ledger: ClientLedger) -> None:
    limit, sent = node.limits.max_rounds_a_day, ledger.updates_of_a_day()
    if limit and sent >= limit:
        error = PolicyError(
            f"client {node.client} refuses this round: it has sent {sent} updates in "
            f"24 hours, it allows {limit} ({CLIENT_FILE}, limits.max-rounds-a-day)"
        )
        raise refused(error, "rounds-a-day")


def _spend(node: ClientNode, ledger: ClientLedger, rounds: int, count: int) -> None:
    """Count the noise of rounds; refuse those that leave the client's epsilon."""
    defense, limits = node.config.defense, node.limits
    if defense.differential_privacy not in ("dp-sgd", "local"):
        return
    sizes, took_part = {node.client: count}, {node.client: rounds}
    [mechanism] = released(node.config, sizes, took_part, rounds).values()
    ledger.add_noise(*mechanism)
    if not limits.max_epsilon:
        return
    epsilon = composed_epsilon(ledger.noise, limits.max_delta)
    if epsilon > limits.max_epsilon:
        error = PolicyError(
            f"client {node.client} refuses this run: with {rounds} rounds of it, all "
            f"runs together spend an epsilon of {epsilon:.3g} at delta "
            f"{limits.max_delta:g}, it allows {limits.max_epsilon:g} ({CLIENT_FILE}, "
            f"limits.max-epsilon)"
        )
        raise refused(error, "privacy", ["defense.noise-multiplier", "train.rounds"])
