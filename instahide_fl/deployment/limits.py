"""The table `[limits]` of client.toml: what a run may ask of a client."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field

from instahide_fl.config.base import Count, CountOrZero, Table
from instahide_fl.config.training import ModelConfig

# Not from models.registry: a client's launcher starts without PyTorch.
MODELS = get_args(ModelConfig.model_fields["name"].annotation)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _check_range(numbers: list[float]) -> list[float]:
    if numbers and not (len(numbers) == 2 and numbers[0] < numbers[1]):
        raise ValueError("[LOW, HIGH] with LOW < HIGH, or []")
    return numbers


def _check_positive(numbers: list[float]) -> list[float]:
    if numbers and numbers[0] <= 0:
        raise ValueError("[LOW, HIGH] with 0 < LOW")
    return numbers


def _check_models(names: list[str]) -> list[str]:
    if unknown := [name for name in names if name not in MODELS]:
        raise ValueError(f"names of {', '.join(MODELS)}, not {unknown[0]!r}")
    return names


FiniteNumbers = list[Annotated[float, Field(allow_inf_nan=False)]]
NumberRange = Annotated[FiniteNumbers, AfterValidator(_check_range)]
PositiveRange = Annotated[NumberRange, AfterValidator(_check_positive)]


class Limits(Table):
    """The limits to what a run may ask of this client.

    Example:
        >>> from instahide_fl.deployment.limits import Limits
        >>> Limits(min_batch_size=32).min_batch_size, Limits().min_num_mixed
        (32, 4)
    """

    section: ClassVar[str] = "limits"

    max_exposures: CountOrZero = 0
    """The distinct encodings that one image may take part in, over all rounds of all
    runs. A run has to keep to it itself (`instahide.max-exposures`, with
    exposure-action "stop"). 0 sets no limit."""
    max_rounds_a_day: CountOrZero = 2000
    """The updates that this client sends in 24 hours, over all runs. 0 sets no
    limit."""
    methods: Annotated[
        list[Literal["none", "mixup", "instahide"]], Field(min_length=1)
    ] = Field(default=["instahide"])
    """The values of `instahide.method` that are allowed."""
    min_num_mixed: Count = 4
    """The smallest `instahide.num-mixed` (k) that is allowed."""
    max_num_mixed: Count = 32
    """The largest `instahide.num-mixed` (k) that is allowed; more needs memory."""
    min_num_private: Count = 2
    """The smallest `instahide.num-private` (p) that is allowed: the private images in
    one encoding."""
    max_coefficient: Annotated[float, Field(gt=0, le=1)] = 0.65
    """The largest `instahide.max-coefficient` (c1) that is allowed."""
    max_private_weight: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """The largest `instahide.min-private-weight` (c2) that is allowed."""
    coefficient_laws: Annotated[
        list[Literal["abs-normal", "dirichlet"]], Field(min_length=1)
    ] = Field(default=["abs-normal"])
    """The values of `instahide.coefficient-law` that are allowed."""
    max_statistics_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """How far the run's constants of normalisation may be from those of this client's
    images, f, in each channel: the standard deviation up to f times as large or as
    small, the mean up to f times the client's standard deviation away."""
    mean_range: NumberRange = Field(default=[])
    """[LOW, HIGH] of the mean to normalise with, for pixels in [0, 1], in place of
    `max-statistics-factor`. Empty uses the factor."""
    std_range: PositiveRange = Field(default=[])
    """[LOW, HIGH] of the standard deviation to normalise with, in place of
    `max-statistics-factor`. Empty uses the factor."""
    max_image_size: Count = 256
    """The largest side in pixels of images to train on."""
    modes: Annotated[list[Literal["gradient", "update"]], Field(min_length=1)] = Field(
        default=["gradient", "update"]
    )
    """The values of `train.mode` that are allowed."""
    min_batch_size: Count = 8
    """The smallest `train.batch-size` that is allowed, and the fewest images that an
    update may be computed on."""
    max_local_epochs: Count = 20
    """The largest `train.local-epochs` that is allowed (mode update)."""
    min_learning_rate: Positive = 1e-5
    """The smallest `train.learning-rate` that is allowed (mode update)."""
    max_learning_rate: Positive = 1.0
    """The largest `train.learning-rate` that is allowed (mode update)."""
    models: Annotated[list[str], AfterValidator(_check_models)] = Field(default=[])
    """The values of `model.name` that are allowed. Empty allows all."""
    max_width: Count = 128
    """The largest `model.width` that is allowed."""
    max_parameter: Positive = 1000.0
    """The largest absolute value of a parameter that is trained on."""
    allow_batch_statistics: bool = False
    """Whether the network may have BatchNorm's running statistics
    (`model.normalization = "batch"`), which are sent as they are."""
    require_secure_aggregation: bool = False
    """Whether a run must use secure aggregation, so that the server reads sums only."""
    min_cohort: Annotated[int, Field(ge=3)] = 3
    """The fewest clients, this one counted, whose updates may be in a sum of secure
    aggregation."""
    pinned_peers: bool = False
    """Whether secure aggregation is refused with clients whose public keys are not in
    this client's folder `peers/`, or do not sign for their part."""
    max_weight_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1000.0
    """How many times the weight of this client's update the largest weight of a round
    of secure aggregation may be."""
    max_largest_value: Positive = 1024.0
    """The largest `secure-aggregation.largest-value` that is allowed."""
    max_epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """The differential privacy that this client spends on its images over all runs:
    epsilon, by its own count. A run must then use `dp-sgd` or `local`. 0 requires no
    differential privacy."""
    max_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta of `max-epsilon`; that of the run is not used."""
    allow_truth: bool = False
    """Whether a run may write originals, encodings and keys (`record.truth`), into this
    client's folder. For rehearsals with public images."""
    allow_seeded_keys: bool = False
    """Whether `seeded-client` may be set. For rehearsals with public images."""
