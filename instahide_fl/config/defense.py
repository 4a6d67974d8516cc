"""The table `[defense]`: how updates are protected before they are sent."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from instahide_fl.config.base import Table
from instahide_fl.config.encoding import EncoderConfig
from instahide_fl.config.training import ModelConfig, ServerConfig, TrainConfig

TRANSFORMS = ("prune", "sign", "clip", "noise")


class DefenseConfig(Table):
    """Defences on top of the encoding (docs/defenses.md)."""

    section = "defense"

    transforms: str = ""
    """Transforms that a client applies to its update before sending it, in this order,
    for instance "clip, noise" (or a TOML list). `prune`: set the entries of smallest
    magnitude to zero. `sign`: keep only signs, times the tensor's mean magnitude.
    `clip`: bound the norm. `noise`: add Gaussian noise; needs clip before it."""
    prune_share: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of each tensor's entries that the transform prune sets to zero."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest L2 norm of a whole update, over all parameters, with the transform clip
    or with differential privacy central or local."""
    noise_multiplier: Annotated[float, Field(ge=0)] = 1.0
    """Standard deviation of the Gaussian noise, as a multiple of the norm that is
    clipped to: clip-norm, or max-gradient-norm in dp-sgd."""
    target_epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Largest epsilon that a run may have spent at its end (at `delta`); 0 sets none.
    noise-multiplier is then computed before the run starts, and what is set for it does
    not count. The server refuses to train where the noise is too small for it."""
    differential_privacy: Literal["none", "dp-sgd", "central", "local"] = "none"
    """The kind of differential privacy. `dp-sgd` protects one training image: clients
    clip each image's gradient and add noise to their sum (Abadi et al., CCS 2016).
    `central` protects a client from those who see the model, not from the server:
    clients clip, the server adds noise to the mean (McMahan et al., ICLR 2018). `local`
    protects a client from the server: the client clips and adds the noise itself."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest L2 norm of the gradient of one image (dp-sgd)."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Delta of the (epsilon, delta) guarantee that is reported. It should be well below
    1/n, where n is the number of images (dp-sgd) or clients that are protected."""

    @field_validator("transforms", mode="before")
    @classmethod
    def _list_as_text(cls, value: object) -> object:
        # Flower's run config is flat, so a list travels as text.
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return ", ".join(value)
        return value

    @field_validator("transforms", mode="after")
    @classmethod
    def _known_and_in_order(cls, value: str) -> str:
        names = _names(value)
        if unknown := [name for name in names if name not in TRANSFORMS]:
            raise ValueError(f"names of {', '.join(TRANSFORMS)}, not {unknown[0]!r}")
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"different transforms, {repeated[0]} is there twice")
        if "noise" in names and "clip" not in names[: names.index("noise")]:
            raise ValueError(
                'noise after clip, for instance "clip, noise": its standard deviation '
                "is noise-multiplier times the norm that clip leaves"
            )
        return value

    @model_validator(mode="after")
    def _check_noise_once(self) -> Self:
        kind, names = self.differential_privacy, _names(self.transforms)
        built_in = {"none": (), "dp-sgd": ("noise",)}.get(kind, ("clip", "noise"))
        for name in names:
            if name in built_in:
                raise ValueError(
                    f'differential-privacy = "{kind}" has its own {name}: leave {name} '
                    f'out of transforms, got "{self.transforms}"'
                )
        return self

    @property
    def transform_names(self) -> tuple[str, ...]:
        """All transforms in order, including those that differential privacy adds."""
        added = {"central": ("clip",), "local": ("clip", "noise")}
        return (*_names(self.transforms), *added.get(self.differential_privacy, ()))

    @property
    def description(self) -> str:
        """All defences in the order in which they act; "none" if there are none."""
        first = ["dp-sgd"] if self.differential_privacy == "dp-sgd" else []
        last = ["central noise"] if self.differential_privacy == "central" else []
        return ", ".join([*first, *self.transform_names, *last]) or "none"

    @property
    def is_private(self) -> bool:
        """Whether differential privacy, of any kind, is asked for."""
        return self.differential_privacy != "none"


def check_defense(
    defense: DefenseConfig, model: ModelConfig, train: TrainConfig, server: ServerConfig
) -> None:
    """Refuse settings of other tables that a defence cannot be combined with.

    Raises:
        ValueError: a setting does not fit; the text says which, why, and what to set.
    """
    kind = defense.differential_privacy
    if train.control_variates and (defense.transform_names or defense.is_private):
        raise ValueError(
            "train.control-variates travel beside the update and no defence changes "
            "them: set train.control-variates = false, or leave [defense] out"
        )
    if kind == "none":
        if defense.target_epsilon:
            raise ValueError(
                f"defense.target-epsilon = {defense.target_epsilon:g} needs "
                f'defense.differential-privacy = "dp-sgd", "central" or "local", got '
                f'"none"'
            )
        return
    if model.normalization == "batch":
        raise ValueError(
            f'model.normalization = "batch" sends running statistics of private data '
            f'that defense.differential-privacy = "{kind}" does not protect: set '
            f'model.normalization = "group"'
        )
    if kind == "dp-sgd":
        _check_examples(model, train)
    elif kind == "central" and server.aggregation != "mean":
        raise ValueError(
            f'defense.differential-privacy = "central" adds noise to a mean in which '
            f'all clients weigh the same: set server.aggregation = "mean", got '
            f'"{server.aggregation}"'
        )
    elif server.aggregation == "weighted-mean":
        raise ValueError(
            'server.aggregation = "weighted-mean" weighs clients by their numbers of '
            'images, which defense.differential-privacy = "local" does not protect: '
            'set server.aggregation = "mean"'
        )


def _check_examples(model: ModelConfig, train: TrainConfig) -> None:
    if model.normalization == "local-batch":
        raise ValueError(
            'model.normalization = "local-batch" mixes the images of a batch, so that '
            "none has a gradient of its own, which defense.differential-privacy = "
            '"dp-sgd" clips: set model.normalization = "group"'
        )
    if train.precision != "float32":
        raise ValueError(
            f'defense.differential-privacy = "dp-sgd" needs train.precision = '
            f'"float32", got "{train.precision}": a norm in bfloat16 bounds nothing'
        )


def depends_on_one_image(encoding: EncoderConfig) -> bool:
    """Tell whether an encoding depends on one private image only.

    Only then is what holds for one encoding true of one private image.
    """
    return encoding.method == "none" or encoding.private_count == 1


def _names(text: str) -> list[str]:
    return text.replace(",", " ").split()
