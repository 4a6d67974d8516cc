from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from instahide_fl.config import ModelConfig, TrainConfig
from instahide_fl.encoding.encoder import IdentityEncoder
from instahide_fl.errors import ConfigError
from instahide_fl.evaluation.clean import evaluate
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.normalization import check_single_image
from instahide_fl.models.registry import build_model
from instahide_fl.training.local import (
    LocalTrainer,
    batch_rows,
    local_steps,
    local_update,
    smallest_batch,
)
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.training.scaffold import (
    control_variate_difference,
    gradient_correction,
    split_control_variates,
    with_control_variates,
)


@pytest.fixture
def model():
    return build_model(ModelConfig(width=4, normalization="group"), (3, 8, 8), 5, 0)


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_a_network_that_clients_share_leaves_no_trace_of_the_one_before(split, mode):
    model_config = ModelConfig(name="cnn-dropout")
    config = TrainConfig(batch_size=7, mode=mode, momentum=0.9)
    fresh = lambda: build_model(model_config, (3, 8, 8), 5, 0)  # noqa: E731
    start, encoder = get_arrays(fresh()), IdentityEncoder()
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_a_gpu_trains_as_the_cpu_does(split, mode, precision):
    build = lambda: build_model(ModelConfig(width=4), (3, 8, 8), 5, 0)  # noqa: E731
    start, config = get_arrays(build()), TrainConfig(mode=mode, precision=precision)
    here, there = (
        local_update(
            build().to(device),
            start,
            split.to(device),
            IdentityEncoder(),
            config,
            np.random.default_rng(0),
        )
        for device in ("cpu", "cuda")
    )
    tolerance = 1e-4 if precision == "float32" else 3e-2
    for name, array in here.arrays.items():
        assert there.arrays[name].device.type == "cuda"
        largest = float(array.abs().max())
        difference = there.arrays[name].cpu() - array
        assert float(difference.abs().max()) <= tolerance * largest


def test_soft_cross_entropy_of_hard_targets_is_cross_entropy(rng):
    logits = torch.from_numpy(rng.standard_normal((6, 5)))
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    soft = F.one_hot(targets, 5).double()
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(soft_cross_entropy(logits, soft), expected)
    torch.testing.assert_close(soft_cross_entropy(logits, soft / 2), expected / 2)


def test_the_gradient_of_one_client_is_the_central_one(model, split, rng):
    before = get_arrays(model)
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
    before = get_arrays(model)
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


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_local_steps_with_adam_are_torchs_and_start_anew_each_round(split, optimizer):
    # Not behind a normalisation: Adam makes large steps of gradients that round to 0.
    model, central = (build_model(ModelConfig(width=4), (3, 8, 8), 5, 0) for _ in "ab")
    before = get_arrays(model)
    config = TrainConfig(
        mode="update",
        batch_size=20,
        local_epochs=3,
        learning_rate=0.01,
        optimizer=optimizer,
        weight_decay=0.1,
        clip_norm=0.3,
    )
    trainer = LocalTrainer(model, config)
    trainer.warm_up((3, 8, 8))
    first, second = (
        trainer.update(before, split, IdentityEncoder(), np.random.default_rng(0))
        for _ in range(2)
    )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    steps = kind(central.parameters(), lr=0.01, weight_decay=0.1)
    inputs, norms = split.statistics.normalise(split.images), []
    for _ in range(3):
        steps.zero_grad()
        F.cross_entropy(central(inputs), split.targets).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(central.parameters(), 0.3))
        steps.step()
    assert max(norms) > 0.3
    for name, parameter in central.named_parameters():
        assert torch.equal(first.arrays[name], second.arrays[name])
        torch.testing.assert_close(
            first.arrays[name], parameter.detach() - before[name], rtol=0.02, atol=1e-4
        )


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


REMEDY = r'set model\.normalization = "group"'


@pytest.mark.parametrize(("mode", "size"), [("gradient", 1), ("update", 19)])
def test_batch_norm_of_a_single_image_names_the_remedy(split, rng, mode, size):
    layers = ModelConfig(name="strided-cnn", width=4, normalization="local-batch")
    config = TrainConfig(mode=mode, batch_size=size)
    assert smallest_batch(len(split), config) == 1
    network = build_model(layers, (3, 8, 8), 5, 0)
    with pytest.raises(ConfigError, match=REMEDY):
        check_single_image(network, (3, 8, 8))
    with pytest.raises(ConfigError, match=REMEDY):
        local_update(
            network, get_arrays(network), split, IdentityEncoder(), config, rng
        )
    with pytest.raises(ConfigError, match=REMEDY):
        evaluate(network, split, batch_size=19)


@pytest.mark.parametrize(
    ("count", "config", "expected"),
    [
        (20, TrainConfig(batch_size=8), 8),
        (20, TrainConfig(batch_size=8, local_batches=3), 4),
        (5, TrainConfig(batch_size=8), 5),
        (20, TrainConfig(mode="update", batch_size=8), 4),
        (16, TrainConfig(mode="update", batch_size=8), 8),
    ],
)
def test_the_smallest_batch_is_the_last_of_those_that_are_drawn(
    rng, count, config, expected
):
    sizes = map(len, batch_rows(count, config, rng))
    assert smallest_batch(count, config) == min(sizes) == expected


def update_config(**changes):
    defaults = {"mode": "update", "batch_size": 8, "local_epochs": 2}
    return TrainConfig(**{**defaults, "learning_rate": 0.1, **changes})


def local_steps_by_hand(model, split, config, rng, change):
    """Local SGD written out: the same batches, each gradient changed."""
    for _ in range(config.local_epochs):
        order = torch.from_numpy(rng.permutation(len(split)))
        for index in torch.split(order, config.batch_size):
            batch, _ = IdentityEncoder().encode(index, split, rng)
            model.zero_grad()
            soft_cross_entropy(model(batch.images), batch.soft_targets).backward()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    gradient = change(name, parameter, parameter.grad)
                    parameter -= config.learning_rate * gradient


def assert_moved(update, model, before):
    for name, parameter in model.named_parameters():
        expected = (parameter - before[name]).contiguous()
        torch.testing.assert_close(
            update.arrays[name], expected, rtol=1e-3, atol=1e-5, check_stride=False
        )


def test_the_proximal_term_pulls_towards_the_global_parameters(model, split):
    before, config = get_arrays(model), update_config(proximal_mu=0.5)
    encoder = IdentityEncoder()
    update = local_update(
        model, before, split, encoder, config, np.random.default_rng(3)
    )
    by_hand = build_model(ModelConfig(width=4, normalization="group"), (3, 8, 8), 5, 0)
    pull = lambda name, now, gradient: gradient + 0.5 * (now - before[name])  # noqa: E731
    local_steps_by_hand(by_hand, split, config, np.random.default_rng(3), pull)
    assert_moved(update, by_hand, before)


def test_control_variates_are_those_of_scaffold(model, split, rng):
    """Algorithm 1, option II: c_i+ is the mean of the gradients along the way."""
    before, config = get_arrays(model), update_config()
    server, client = (
        {
            name: torch.from_numpy(rng.standard_normal(tuple(a.shape))).float() * 0.01
            for name, a in before.items()
        }
        for _ in range(2)
    )
    update = LocalTrainer(model, config).update(
        *(before, split, IdentityEncoder(), np.random.default_rng(3)),
        correction=gradient_correction(server, client),
    )
    by_hand = build_model(ModelConfig(width=4, normalization="group"), (3, 8, 8), 5, 0)
    gradients = {name: [] for name in before}

    def corrected(name, now, gradient):
        gradients[name].append(gradient.clone())
        return gradient - client[name] + server[name]

    local_steps_by_hand(by_hand, split, config, np.random.default_rng(3), corrected)
    assert_moved(update, by_hand, before)
    steps = local_steps(len(split), config)
    moved = control_variate_difference(
        server, update.arrays, steps, config.learning_rate
    )
    for name, along in gradients.items():
        assert len(along) == steps
        expected = torch.stack(along).mean(dim=0) - client[name]
        torch.testing.assert_close(
            moved[name], expected.contiguous(), rtol=1e-2, atol=1e-4
        )


def test_control_variates_travel_beside_the_model():
    arrays, control = {"w": torch.ones(1)}, {"w": torch.zeros(1)}
    assert split_control_variates(with_control_variates(arrays, control)) == (
        arrays,
        control,
    )
    assert control_variate_difference(control, arrays, 0, 0.1)["w"].tolist() == [0.0]
    assert gradient_correction(control, {}) == control


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_running_statistics_are_sent_as_what_the_clients_batches_changed(split, mode):
    config = TrainConfig(mode=mode, batch_size=20, learning_rate=1e-9)
    trainer = LocalTrainer(
        build_model(ModelConfig(width=4, normalization="batch"), (3, 8, 8), 5, 0),
        config,
    )
    start = get_arrays(trainer.model)
    updates = [
        trainer.update(start, split, IdentityEncoder(), np.random.default_rng(0))
        for _ in range(2)  # the second client starts from the same statistics
    ]
    features = torch.nn.functional.conv2d(
        split.statistics.normalise(split.images),
        *(start["conv1.weight"], start["conv1.bias"]),
        padding=1,
    )
    expected = 0.1 * (features.mean(dim=(0, 2, 3)) - start["norm1.running_mean"])
    for update in updates:
        torch.testing.assert_close(
            update.arrays["norm1.running_mean"], expected, rtol=1e-3, atol=1e-6
        )
        assert update.arrays.keys() == start.keys()


@pytest.mark.parametrize("sign_invariant", [False, True])
def test_mixed_precision_keeps_updates_in_float32_and_close(split, sign_invariant):
    layers = ModelConfig(width=4, normalization="group", sign_invariant=sign_invariant)
    model = build_model(layers, (3, 8, 8), 5, 0)
    before, results = get_arrays(model), {}
    for precision in ("float32", "bfloat16"):
        config = TrainConfig(batch_size=20, precision=precision)
        update = local_update(
            *(model, before, split, IdentityEncoder(), config),
            np.random.default_rng(0),
        )
        results[precision] = update.arrays["conv1.weight"]
    assert results["bfloat16"].dtype == torch.float32
    assert not torch.equal(results["bfloat16"], results["float32"])
    one, other = (result.flatten() for result in results.values())
    assert F.cosine_similarity(one, other, dim=0) > 0.97


def test_the_learning_rate_of_local_steps_follows_the_schedule(model, split):
    before, config = get_arrays(model), update_config(local_epochs=1, batch_size=20)
    trainer = LocalTrainer(model, config)
    whole, half = (
        trainer.update(
            *(before, split, IdentityEncoder(), np.random.default_rng(0)),
            learning_rate_factor=factor,
        ).arrays["head.weight"]
        for factor in (1.0, 0.5)
    )
    torch.testing.assert_close(whole, 2 * half, rtol=1e-3, atol=1e-6)
