from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from instahide_fl.aggregation.mean import plain_mean, weighted_mean
from instahide_fl.aggregation.server_optimizer import ServerOptimizer
from instahide_fl.config import Config, ModelConfig, TrainConfig
from instahide_fl.encoding.encoder import IdentityEncoder
from instahide_fl.errors import ConfigError, RoundError
from instahide_fl.models.registry import build_model
from instahide_fl.training.evaluation import evaluate
from instahide_fl.training.local import LocalTrainer, get_parameters, local_update
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import ClientUpdate


@pytest.fixture
def model():
    return build_model(ModelConfig(width=4, normalization="group"), (3, 8, 8), 5, 0)


def test_the_seed_decides_the_initial_parameters():
    first, again, other = (
        get_parameters(build_model(ModelConfig(width=4), (1, 8, 8), 3, seed))
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    with pytest.raises(ConfigError, match="at least 4x4"):
        build_model(ModelConfig(), (1, 3, 3), 3, 0)


@pytest.mark.parametrize(
    ("name", "smallest", "parameters"),
    [("small-cnn", 4, None), ("cnn-dropout", 6, 1_626_442), ("resnet-18", 8, None)],
)
def test_every_model_takes_small_and_usual_images(name, smallest, parameters):
    config = ModelConfig(name=name, normalization="none")
    for side in (smallest, 32):
        model = build_model(config, (3, side, side), 10, 0)
        assert model(torch.zeros(2, 3, side, side)).shape == (2, 10)
    with pytest.raises(ConfigError, match=f"at least {smallest}x{smallest}"):
        build_model(config, (3, smallest - 1, smallest), 10, 0)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert parameters in (None, found)


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_a_network_that_clients_share_leaves_no_trace_of_the_one_before(split, mode):
    model_config = ModelConfig(name="cnn-dropout")
    config = TrainConfig(batch_size=7, mode=mode, momentum=0.9)
    fresh = lambda: build_model(model_config, (3, 8, 8), 5, 0)  # noqa: E731
    start, encoder = get_parameters(fresh()), IdentityEncoder()
    shared = LocalTrainer(fresh(), config)
    shared.warm_up((3, 8, 8))
    first, second = (
        shared.update(start, split, encoder, np.random.default_rng(1)) for _ in range(2)
    )
    alone = local_update(
        fresh(), start, split, encoder, config, np.random.default_rng(1)
    )
    other = shared.update(start, split, encoder, np.random.default_rng(2))
    for name, array in alone.arrays.items():
        assert torch.equal(first.arrays[name], array)
        assert torch.equal(second.arrays[name], array)
    # Dropout and the order of images follow the stream.
    assert not torch.equal(other.arrays["head.weight"], alone.arrays["head.weight"])


def test_soft_cross_entropy_of_hard_targets_is_cross_entropy(rng):
    logits = torch.from_numpy(rng.standard_normal((6, 5)))
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    soft = F.one_hot(targets, 5).double()
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(soft_cross_entropy(logits, soft), expected)
    torch.testing.assert_close(soft_cross_entropy(logits, soft / 2), expected / 2)


def test_the_gradient_of_one_client_is_the_central_one(model, split, rng):
    before = get_parameters(model)
    config = TrainConfig(batch_size=7, local_batches=3)
    update = local_update(model, before, split, IdentityEncoder(), config, rng)
    inputs = split.statistics.normalise(split.images)
    model.zero_grad()
    loss = F.cross_entropy(model(inputs), split.targets)
    loss.backward()
    assert update.num_examples == 20
    assert update.kind == "gradient"
    assert update.metrics["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(update.arrays[name], parameter.grad.contiguous())
        assert torch.equal(parameter, before[name])


def test_an_update_is_what_local_training_changed(model, split, rng):
    before = get_parameters(model)
    config = TrainConfig(
        mode="update", batch_size=20, local_epochs=1, learning_rate=0.1
    )
    update = local_update(model, before, split, IdentityEncoder(), config, rng)
    model_again = build_model(
        ModelConfig(width=4, normalization="group"), (3, 8, 8), 5, 0
    )
    inputs = split.statistics.normalise(split.images)
    F.cross_entropy(model_again(inputs), split.targets).backward()
    for name, parameter in model_again.named_parameters():
        expected = -0.1 * parameter.grad
        torch.testing.assert_close(
            update.arrays[name], expected.contiguous(), rtol=1e-3, atol=1e-6
        )


def updates_of(*pairs):
    return [
        ClientUpdate(
            {"w": torch.tensor(values)}, count, "gradient", {"train_loss": 0.0}
        )
        for values, count in pairs
    ]


def test_means_weigh_clients_as_they_say():
    updates = updates_of(([1.0, 2.0], 1), ([5.0, 6.0], 3))
    assert weighted_mean(updates)["w"].tolist() == [4.0, 5.0]
    assert plain_mean(updates)["w"].tolist() == [3.0, 4.0]
    with pytest.raises(RoundError, match="no client"):
        weighted_mean([])
    with pytest.raises(RoundError, match="disagree on w"):
        weighted_mean(updates_of(([1.0], 1), ([1.0, 2.0], 1)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_server_optimizer_is_torchs_and_resumes_exactly(optimizer, rng):
    config = Config().with_values({"server.optimizer": optimizer})
    start = {"w": torch.from_numpy(rng.standard_normal(5)).float()}
    gradients = [torch.from_numpy(rng.standard_normal(5)).float() for _ in range(4)]
    reference = torch.nn.Parameter(start["w"].clone())
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    extra = {"momentum": 0.9} if optimizer == "sgd" else {}
    central = kind([reference], lr=config.server_learning_rate, **extra)
    served = ServerOptimizer(start, config)
    for step, gradient in enumerate(gradients):
        reference.grad = gradient
        central.step()
        if step == 2:
            state = {name: value.clone() for name, value in served.state().items()}
            served = ServerOptimizer(start, config)
            served.load_state(state)
        served.step({"w": gradient}, "gradient")
    assert torch.equal(served.parameters["w"], reference)


def test_fedavg_moves_the_parameters_by_the_mean_difference():
    config = Config().with_values({"train.mode": "update"})
    optimizer = ServerOptimizer({"w": torch.tensor([1.0])}, config)
    optimizer.step({"w": torch.tensor([0.25])}, "delta")
    assert optimizer.parameters["w"].tolist() == [1.25]


def test_evaluation_counts_what_is_right(split):
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0]))

        def forward(self, images):
            return self.logits.expand(len(images), 5)

    accuracy, loss = evaluate(Constant(), split, batch_size=6)
    assert accuracy == pytest.approx((split.targets == 1).float().mean().item())
    logits = Constant().logits.expand(20, 5)
    assert loss == pytest.approx(
        F.cross_entropy(logits, split.targets).item(), rel=1e-5
    )
