"""Whether a client's limits allow a run's settings: one line for each that is refused.

The table of what each setting could be abused for is in docs/threat-models.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from instahide_fl.config import Config
from instahide_fl.config.defense import depends_on_one_image
from instahide_fl.deployment.limits import Limits
from instahide_fl.errors import PolicyError
from instahide_fl.wire.refusals import refused

# Coefficients need room to differ: below, all of an encoding's are nearly 1/k.
MIN_COEFFICIENT_ROOM = 1.2
# What of a client's drift from the global parameters one local step may undo. With 1
# the last batch alone would be left of an update.
MAX_PULL_OF_STEP = 0.1
MAX_REFRESH = 1000  # fixed encodings of an image


@dataclass(frozen=True)
class BeyondLimits:
    """A setting that a client does not allow.

    Attributes:
        setting: Its dotted name.
        text: Its value, and what is allowed.
    """

    setting: str
    text: str


def check_limits(client: str, limits: Limits, config: Config, file: str) -> None:
    """Refuse a run whose settings a client does not allow.

    Args:
        client: The client's name.
        limits: Its limits.
        config: The run's settings, as the server sent them.
        file: The name of the file that the limits are in, for the error's text.

    Raises:
        PolicyError: The client refuses; the text names the client, each such setting
            with its value, and what is allowed.
    """
    beyond = [
        *_beyond_encoding(limits, config),
        *_beyond_exposures(limits.max_exposures, config),
        *_beyond_training(limits, config),
        *_beyond_local_steps(limits, config),
        *_beyond_model(limits, config),
        *_without_protection(limits, config),
        *_recording(limits, config),
    ]
    if not beyond:
        return
    texts = "; ".join(f"{part.setting} = {part.text}" for part in beyond)
    error = PolicyError(f"client {client} refuses this run: {texts} ({file}, [limits])")
    raise refused(error, "limits", [part.setting for part in beyond])


def _quoted(values: list[str]) -> str:
    return " or ".join(f'"{value}"' for value in values)


def _beyond_encoding(limits: Limits, config: Config) -> Iterator[BeyondLimits]:
    encoding = config.instahide
    if encoding.method not in limits.methods:
        text = f'"{encoding.method}", it allows {_quoted(list(limits.methods))}'
        yield BeyondLimits("instahide.method", text)
    if encoding.method == "none":
        return
    mixed, private = encoding.num_mixed, encoding.private_count
    if mixed < limits.min_num_mixed:
        text = f"{mixed}, it allows {limits.min_num_mixed} or more"
        yield BeyondLimits("instahide.num-mixed", text)
    if mixed > limits.max_num_mixed:
        text = f"{mixed}, it allows at most {limits.max_num_mixed}"
        yield BeyondLimits("instahide.num-mixed", text)
    if private < limits.min_num_private:
        text = f"{private}, it allows {limits.min_num_private} or more"
        yield BeyondLimits("instahide.num-private", text)
    if encoding.max_coefficient > limits.max_coefficient:
        text = f"{encoding.max_coefficient}, it allows at most {limits.max_coefficient}"
        yield BeyondLimits("instahide.max-coefficient", text)
    least = MIN_COEFFICIENT_ROOM / mixed
    if mixed > 1 and encoding.max_coefficient < least:
        text = f"{encoding.max_coefficient}, it allows {least:.3g} or more for k"
        yield BeyondLimits("instahide.max-coefficient", text)
    weight = encoding.min_private_weight
    if encoding.public_count and weight > limits.max_private_weight:
        text = f"{weight}, it allows at most {limits.max_private_weight}"
        yield BeyondLimits("instahide.min-private-weight", text)
    if encoding.coefficient_law not in limits.coefficient_laws:
        laws = _quoted(list(limits.coefficient_laws))
        text = f'"{encoding.coefficient_law}", it allows {laws}'
        yield BeyondLimits("instahide.coefficient-law", text)
    if encoding.refresh != "epoch" and encoding.refresh > MAX_REFRESH:
        text = f"{encoding.refresh}, clients allow at most {MAX_REFRESH}"
        yield BeyondLimits("instahide.refresh", text)


def _beyond_exposures(limit: int, config: Config) -> Iterator[BeyondLimits]:
    asked, action = config.instahide.max_exposures, config.instahide.exposure_action
    if limit and not 0 < asked <= limit:
        meaning = " (no limit)" if asked == 0 else ""
        text = f"{asked}{meaning}, it allows 1 to {limit}"
        yield BeyondLimits("instahide.max-exposures", text)
    if limit and action != "stop":
        text = f'"{action}", it allows "stop"'
        yield BeyondLimits("instahide.exposure-action", text)


def _beyond_training(limits: Limits, config: Config) -> Iterator[BeyondLimits]:
    train, size = config.train, config.data.image_size
    if train.mode not in limits.modes:
        text = f'"{train.mode}", it allows {_quoted(list(limits.modes))}'
        yield BeyondLimits("train.mode", text)
    if train.batch_size < limits.min_batch_size:
        text = f"{train.batch_size}, it allows {limits.min_batch_size} or more"
        yield BeyondLimits("train.batch-size", text)
    if size > limits.max_image_size:
        text = f"{size}, it allows at most {limits.max_image_size}"
        yield BeyondLimits("data.image-size", text)


def _beyond_local_steps(limits: Limits, config: Config) -> Iterator[BeyondLimits]:
    train = config.train
    if train.mode != "update":
        return
    if not 0 < train.local_epochs <= limits.max_local_epochs:
        text = f"{train.local_epochs}, it allows 1 to {limits.max_local_epochs}"
        yield BeyondLimits("train.local-epochs", text)
    lowest, highest = limits.min_learning_rate, limits.max_learning_rate
    if not lowest <= train.learning_rate <= highest:
        text = f"{train.learning_rate:g}, it allows {lowest:g} to {highest:g}"
        yield BeyondLimits("train.learning-rate", text)
    for name, weight in (
        ("train.weight-decay", train.weight_decay),
        ("train.proximal-mu", train.proximal_mu),
    ):
        highest_weight = MAX_PULL_OF_STEP / train.learning_rate
        # Rounding must not refuse what is written as 0.1 / 0.1.
        if weight > highest_weight * (1 + 1e-9):
            text = f"{weight:g}, it allows {highest_weight:g} at this learning rate"
            yield BeyondLimits(name, text)


def _beyond_model(limits: Limits, config: Config) -> Iterator[BeyondLimits]:
    model = config.model
    if limits.models and model.name not in limits.models:
        text = f'"{model.name}", it allows {_quoted(limits.models)}'
        yield BeyondLimits("model.name", text)
    if model.width > limits.max_width:
        text = f"{model.width}, it allows at most {limits.max_width}"
        yield BeyondLimits("model.width", text)
    if model.normalization == "batch" and not limits.allow_batch_statistics:
        text = '"batch", it allows "none", "group" or "local-batch"'
        yield BeyondLimits("model.normalization", text)


def _without_protection(limits: Limits, config: Config) -> Iterator[BeyondLimits]:
    secure = config.secure_aggregation
    if limits.require_secure_aggregation and not secure.enabled:
        yield BeyondLimits("secure-aggregation.enabled", "false, it allows true")
    if secure.enabled and secure.largest_value > limits.max_largest_value:
        text = f"{secure.largest_value:g}, it allows at most {limits.max_largest_value}"
        yield BeyondLimits("secure-aggregation.largest-value", text)
    if not limits.max_epsilon:
        return
    kind = config.defense.differential_privacy
    if kind not in ("dp-sgd", "local"):
        text = f'"{kind}", it allows "dp-sgd" or "local" (max-epsilon)'
        yield BeyondLimits("defense.differential-privacy", text)
    elif kind == "dp-sgd" and not depends_on_one_image(config.instahide):
        text = (
            f"{config.instahide.private_count}, dp-sgd protects a private image where "
            f"it is 1 (max-epsilon)"
        )
        yield BeyondLimits("instahide.num-private", text)


def _recording(limits: Limits, config: Config) -> Iterator[BeyondLimits]:
    if config.record.truth and not limits.allow_truth:
        text = "true, it allows false: its images are real"
        yield BeyondLimits("record.truth", text)
    if config.record.crafted != "none":
        text = f'"{config.record.crafted}", it allows "none"'
        yield BeyondLimits("record.crafted", text)
