"""Compare Inverting Gradients on victims side by side with the published loop.

`python -m benchmarks.attacks` attacks updates of one image of 3x32x32 each, on a
network of three convolutions. `published` follows the algorithm of Geiping et al.
(NeurIPS 2020) line by line: one victim at a time, the gradient by autograd, total
variation with the same weight throughout. All variants take the same number of steps.
They run in turn, because the speed of a machine changes while others use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.reporting import alternate, run_and_save
from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.config import Config
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.training.local import LocalTrainer
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.transcript.threat_model import THREAT_MODELS
from instahide_fl.transcript.truth import ClientTruth, RecordingEncoder
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import PrivateSplit

SETTINGS = Config().with_values(
    {
        "model.name": "strided-cnn",
        "model.width": 32,
        "train.batch-size": 1,
        "instahide.method": "none",
    }
)
SHAPE, CLASSES = (3, 32, 32), 10
STEP_SIZE, VARIATION_WEIGHT = 0.1, 0.01


def run(
    iterations: int = 500, victims: int = 8, compared: int = 5, repeats: int = 3
) -> dict[str, Any]:
    """Attack the same victims in three ways, in turn.

    Args:
        iterations: The number of steps of each attack.
        victims: The number of victims.
        compared: The number of victims whose PSNR is shown.
        repeats: The number of repetitions whose median time is shown; one more comes
            first and does not count.
    """
    torch.set_num_threads(1)
    clients = [_victim(number) for number in range(victims)]
    observations = [observation for observation, _ in clients]
    truths = [truth for _, truth in clients]
    attacks = {
        "published, one after another": _published,
        "instahide-fl, one after another": _one_by_one,
        "instahide-fl, side by side": _side_by_side,
    }
    images_of: dict[str, list[Tensor]] = {}

    def attack(name: str) -> None:
        images_of[name] = attacks[name](observations, iterations)

    seconds = alternate({name: partial(attack, name) for name in attacks}, repeats)
    rows = []
    for name, images in images_of.items():
        quality = [
            _psnr(image, truth)
            for image, truth in zip(images[:compared], truths, strict=False)
        ]
        rows.append(
            {
                "attack": name,
                "victims": victims,
                "seconds": seconds[name],
                "ratio": next(iter(seconds.values())) / seconds[name],
                f"mean PSNR of {compared}": float(np.mean(quality)),
                "worst PSNR": float(np.min(quality)),
            }
        )
    return {"name": "attacks", "iterations": iterations, "rows": rows}


def _victim(number: int) -> tuple[Observation, ClientTruth]:
    """Compute one client's update on one patch of a photograph."""
    images = MixingPool.photos(32, 3).images[100 * number : 100 * number + 1].clone()
    split = PrivateSplit(images, torch.tensor([number % CLASSES]), CLASSES)
    split = split.normalised_with(MixingPool.photos(32, 3).statistics)
    model = build_model(SETTINGS.network, SHAPE, CLASSES, SETTINGS.seed)
    arrays = get_arrays(model)
    encoder = RecordingEncoder(build_encoder(SETTINGS.instahide))
    rng = np.random.default_rng(number)
    trainer = LocalTrainer(model, SETTINGS.train)
    sent = trainer.update(arrays, split, encoder, rng)
    truth = encoder.truth(1, str(number), split)
    observation = Observation(
        round=1,
        client=str(number),
        num_examples=1,
        learning_rate_factor=1.0,
        kind=sent.kind,
        parameters=arrays,
        update=sent.arrays,
        batch_sizes=(1,),
        soft_targets=truth.soft_targets,
    )
    return observation, truth


def _side_by_side(observations: Sequence[Observation], iterations: int) -> list[Tensor]:
    view = AdversaryView(
        threat_model=THREAT_MODELS["label-holder"],
        config=SETTINGS,
        statistics=MixingPool.photos(32, 3).statistics,
        image_shape=SHAPE,
        num_classes=CLASSES,
        observations=tuple(observations),
        rounds=(),
        pool=None,
    )
    attack = InvertingGradients(
        iterations=iterations, step_size=STEP_SIZE, total_variation=VARIATION_WEIGHT
    )
    reconstruction = attack.reconstruct(view, np.random.default_rng(0), ignore_progress)
    images = [recovered.images for recovered in reconstruction.recovered]
    return [image[0] for image in images if image is not None]


def _one_by_one(observations: Sequence[Observation], iterations: int) -> list[Tensor]:
    return [_side_by_side([victim], iterations)[0] for victim in observations]


def _published(observations: Sequence[Observation], iterations: int) -> list[Tensor]:
    model = build_model(SETTINGS.network, SHAPE, CLASSES, SETTINGS.seed).train()
    return [_attack_as_published(model, victim, iterations) for victim in observations]


def _attack_as_published(
    model: nn.Module, observation: Observation, iterations: int
) -> Tensor:
    """Attack one victim with the algorithm and the settings of the paper."""
    statistics = MixingPool.photos(32, 3).statistics
    bounds = torch.tensor([[0.0], [1.0]]).expand(2, 3)  # black and white, [2,C]
    mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
    low, high = ((bound - mean) / std for bound in bounds)
    observed = [
        (observation.update or {})[name] for name, _ in model.named_parameters()
    ]
    labels = observation.soft_targets
    assert labels is not None
    generator = torch.Generator().manual_seed(int(observation.client))
    image = torch.randn((1, *SHAPE), generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=STEP_SIZE)
    milestones = [int(iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for _ in range(iterations):
        optimizer.zero_grad()
        model.zero_grad()
        loss = soft_cross_entropy(model(image), labels)
        guessed = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        inner = sum((a * b).sum() for a, b in zip(guessed, observed, strict=True))
        guessed_square = sum(a.square().sum() for a in guessed)
        observed_square = sum(b.square().sum() for b in observed)
        across = (image[..., 1:] - image[..., :-1]).abs().mean()
        down = (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
        assert isinstance(guessed_square, Tensor)
        assert isinstance(observed_square, Tensor)
        distance = 1 - inner / (guessed_square.sqrt() * observed_square.sqrt())
        total = distance + VARIATION_WEIGHT * (across + down)
        total.backward()
        assert image.grad is not None
        image.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            image.clamp_(low.view(-1, 1, 1), high.view(-1, 1, 1))
    return image.detach()[0]


def _psnr(image: Tensor, truth: ClientTruth) -> float:
    statistics = MixingPool.photos(32, 3).statistics
    restored = statistics.restore(image[None]).clamp(0, 1)
    mean_square = (restored - truth.images.float() / 255).square().mean()
    return float(-10 * torch.log10(mean_square))


if __name__ == "__main__":
    run_and_save(run)
