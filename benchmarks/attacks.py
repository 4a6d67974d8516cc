"""Inverting Gradients: victims side by side, against the published loop.

`python -m benchmarks.attacks` attacks updates of one image of 3x32x32 each, on a
network of three convolutions. `published` follows the algorithm of Geiping et al.
(NeurIPS 2020) line by line: one victim at a time, the gradient by autograd, total
variation with the same weight throughout. All take as many steps. They run in turn,
because the speed of a machine changes while others use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.reporting import alternate, run_and_save
from instahide_fl.attacks.base import silent
from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.config import Config
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.training.local import local_update
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
STEP, VARIATION = 0.1, 0.01


def run(
    iterations: int = 500, victims: int = 8, compared: int = 5, repeats: int = 3
) -> dict[str, Any]:
    """Attack the same victims in three ways, in turn.

    Args:
        iterations: of each attack.
        victims: for the times.
        compared: of them whose PSNR is compared.
        repeats: whose median is shown, after one that does not count.
    """
    torch.set_num_threads(1)
    seen = [_victim(number) for number in range(victims)]
    observations = [observation for observation, _ in seen]
    truths = [truth for _, truth in seen]
    ways = {
        "published, one after another": _published,
        "instahide-fl, one after another": _alone,
        "instahide-fl, side by side": _together,
    }
    found: dict[str, list[Tensor]] = {}

    def attack(name: str) -> None:
        found[name] = ways[name](observations, iterations)

    seconds = alternate({name: partial(attack, name) for name in ways}, repeats)
    rows = []
    for name, images in found.items():
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
    model = build_model(SETTINGS.model, SHAPE, CLASSES, SETTINGS.seed)
    arrays = get_arrays(model)
    encoder = RecordingEncoder(build_encoder(SETTINGS.instahide))
    rng = np.random.default_rng(number)
    sent = local_update(model, arrays, split, encoder, SETTINGS.train, rng)
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


def _together(observations: Sequence[Observation], iterations: int) -> list[Tensor]:
    view = AdversaryView(
        THREAT_MODELS["label-holder"],
        SETTINGS,
        MixingPool.photos(32, 3).statistics,
        SHAPE,
        CLASSES,
        tuple(observations),
        (),
        None,
    )
    attack = InvertingGradients(
        iterations=iterations, step_size=STEP, total_variation=VARIATION
    )
    found = attack.reconstruct(view, np.random.default_rng(0), silent)
    return [one.images[0] for one in found.recovered if one.images is not None]


def _alone(observations: Sequence[Observation], iterations: int) -> list[Tensor]:
    return [_together([one], iterations)[0] for one in observations]


def _published(observations: Sequence[Observation], iterations: int) -> list[Tensor]:
    model = build_model(SETTINGS.model, SHAPE, CLASSES, SETTINGS.seed).train()
    return [_published_one(model, one, iterations) for one in observations]


def _published_one(
    model: nn.Module, observation: Observation, iterations: int
) -> Tensor:
    """Follow algorithm and settings of the paper for one victim."""
    statistics = MixingPool.photos(32, 3).statistics
    ends = torch.tensor([[0.0], [1.0]]).expand(2, 3)
    mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
    low, high = ((end - mean) / std for end in ends)
    wanted = [(observation.update or {})[name] for name, _ in model.named_parameters()]
    labels = observation.soft_targets
    assert labels is not None
    generator = torch.Generator().manual_seed(int(observation.client))
    image = torch.randn((1, *SHAPE), generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=STEP)
    marks = [int(iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, marks, gamma=0.1)
    for _ in range(iterations):
        optimizer.zero_grad()
        model.zero_grad()
        loss = soft_cross_entropy(model(image), labels)
        found = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        inner = sum((a * b).sum() for a, b in zip(found, wanted, strict=True))
        own = sum(a.square().sum() for a in found)
        other = sum(b.square().sum() for b in wanted)
        across = (image[..., 1:] - image[..., :-1]).abs().mean()
        down = (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
        assert isinstance(own, Tensor)
        assert isinstance(other, Tensor)
        total = 1 - inner / (own.sqrt() * other.sqrt()) + VARIATION * (across + down)
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
    found = statistics.restore(image[None]).clamp(0, 1)
    off = (found - truth.images.float() / 255).square().mean()
    return float(-10 * torch.log10(off))


if __name__ == "__main__":
    run_and_save(run)
