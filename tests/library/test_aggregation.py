from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide_fl.aggregation.reduction import tree_mean
from instahide_fl.aggregation.robust import krum, median, robust_rule, trimmed_mean
from instahide_fl.aggregation.server_optimizer import ServerOptimizer
from instahide_fl.aggregation.weights import weigh_by_images, weigh_equally
from instahide_fl.config import Config, ServerConfig
from instahide_fl.errors import OutputError, RoundError
from instahide_fl.types import ClientUpdate


def updates_of(*pairs):
    return [
        ClientUpdate(
            {"w": torch.tensor(values)}, count, "gradient", {"train_loss": 0.0}
        )
        for values, count in pairs
    ]


def test_means_weigh_clients_as_they_say():
    updates = updates_of(([1.0, 2.0], 1), ([5.0, 6.0], 3))
    assert tree_mean(updates, weigh_by_images)["w"].tolist() == [4.0, 5.0]
    assert tree_mean(updates, weigh_equally)["w"].tolist() == [3.0, 4.0]
    with pytest.raises(RoundError, match="no client"):
        tree_mean([], weigh_by_images)
    with pytest.raises(RoundError, match="disagree on w"):
        tree_mean(updates_of(([1.0], 1), ([1.0, 2.0], 1)), weigh_by_images)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adagrad"])
def test_the_server_optimizer_is_torchs_and_resumes_exactly(optimizer, rng):
    config = Config().with_values(
        {"server.optimizer": optimizer, "train.weight-decay": 0.1}
    )
    start = {"w": torch.from_numpy(rng.standard_normal(5)).float()}
    gradients = [torch.from_numpy(rng.standard_normal(5)).float() for _ in range(4)]
    reference = torch.nn.Parameter(start["w"].clone())
    kind, extra = {
        "sgd": (torch.optim.SGD, {"momentum": 0.9}),
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
        "adagrad": (torch.optim.Adagrad, {"eps": 1e-8}),
    }[optimizer]
    rate = config.server_learning_rate
    central = kind([reference], lr=rate, weight_decay=0.1, **extra)
    served = ServerOptimizer(start, config)
    for step, gradient in enumerate(gradients):
        reference.grad = gradient
        central.step()
        if step == 2:
            state = {name: value.clone() for name, value in served.state().items()}
            served = ServerOptimizer(start, config)
            served.load_state(state)
        served.step({"w": gradient}, "gradient")
    assert torch.equal(served.arrays["w"], reference)


def test_fedavg_moves_the_parameters_by_the_mean_difference():
    config = Config().with_values({"train.mode": "update"})
    optimizer = ServerOptimizer({"w": torch.tensor([1.0])}, config)
    optimizer.step({"w": torch.tensor([0.25])}, "delta")
    assert optimizer.arrays["w"].tolist() == [1.25]


def test_yogi_is_the_papers_rule_and_resumes_exactly(rng):
    """Reddi et al., algorithm 2, one coordinate at a time, moments bias-corrected."""
    config = Config().with_values({"train.mode": "update", "server.optimizer": "yogi"})
    rate, tau = 0.01, 1e-3
    deltas = rng.standard_normal((5, 3))
    weights, first, second = np.zeros(3), np.zeros(3), np.zeros(3)
    served = ServerOptimizer({"w": torch.zeros(3)}, config)
    for step, delta in enumerate(deltas, 1):
        first = 0.9 * first + 0.1 * delta
        second -= 0.01 * delta**2 * np.sign(second - delta**2)
        root = np.sqrt(second / (1 - 0.99**step))
        weights += rate * first / (1 - 0.9**step) / (root + tau)
        if step == 3:
            state = {name: value.clone() for name, value in served.state().items()}
            served = ServerOptimizer({"w": torch.zeros(3)}, config)
            served.load_state(state)
        served.step({"w": torch.from_numpy(delta).float()}, "delta")
    torch.testing.assert_close(served.arrays["w"], torch.from_numpy(weights).float())


def test_running_statistics_move_by_the_mean_difference_whatever_the_optimizer():
    config = Config().with_values({"server.optimizer": "adam"})
    start = {"w": torch.zeros(2), "mean": torch.ones(2)}
    served = ServerOptimizer(start, config, buffers={"mean"})
    change = {"w": torch.ones(2), "mean": torch.tensor([0.5, -0.5])}
    served.step(change, "gradient", learning_rate_factor=0.5)
    assert served.model_arrays["mean"].tolist() == [1.5, 0.5]
    torch.testing.assert_close(served.model_arrays["w"], torch.full((2,), -0.0005))
    again = ServerOptimizer(start, config, buffers={"mean"})
    again.load_state(served.state())
    assert torch.equal(again.model_arrays["mean"], served.model_arrays["mean"])


def test_the_average_weighs_models_by_their_age_and_resumes_exactly(rng):
    config = Config().with_values({"server.ema": 0.8, "server.momentum": 0.0})
    start = {"w": torch.from_numpy(rng.standard_normal(3)).float()}
    buffers = {"mean": torch.zeros(2)}
    served = ServerOptimizer(start | buffers, config, buffers={"mean"})
    assert torch.equal(served.evaluated_arrays["w"], start["w"])
    models = []
    for step in range(4):
        if step == 2:
            state = {name: value.clone() for name, value in served.state().items()}
            continued = ServerOptimizer(start | buffers, config, buffers={"mean"})
            continued.load_state(state)
        gradient = {"w": torch.from_numpy(rng.standard_normal(3)).float()}
        for server in [served] if step < 2 else [served, continued]:
            server.step(gradient | {"mean": torch.ones(2)}, "gradient")
        models.append({n: a.clone() for n, a in served.model_arrays.items()})
    weights = torch.tensor([0.8**3, 0.8**2, 0.8, 1.0])
    for name, average in served.evaluated_arrays.items():
        stacked = torch.stack([model[name] for model in models])
        expected = (weights[:, None] * stacked).sum(0) / weights.sum()
        torch.testing.assert_close(average, expected)
        assert torch.equal(continued.evaluated_arrays[name], average)
        assert torch.equal(served.arrays[name], models[-1][name])
    average = state.pop("average/w")
    with pytest.raises(OutputError, match="average/w"):
        continued.load_state(state)
    served.load_state(state | {"average/w": average * float("nan")})
    assert not served.is_finite()


def test_a_large_aggregate_is_scaled_down_where_the_server_takes_the_step():
    changes = {"train.clip-norm": 0.5, "server.momentum": 0.0}
    start = {"w": torch.zeros(2), "mean": torch.zeros(2)}
    aggregate = {"w": torch.tensor([3.0, 4.0]), "mean": torch.full((2,), 9.0)}
    moved = {}
    for mode, kind in (("gradient", "gradient"), ("update", "delta")):
        config = Config().with_values({**changes, "train.mode": mode})
        served = ServerOptimizer(start, config, buffers={"mean"})
        served.step(aggregate, kind)
        assert served.arrays["mean"].tolist() == [9.0, 9.0]
        moved[mode] = served.arrays["w"]
    torch.testing.assert_close(moved["gradient"], -0.1 * torch.tensor([0.3, 0.4]))
    assert moved["update"].tolist() == [3.0, 4.0]  # clients have clipped their steps
    assert aggregate["w"].tolist() == [3.0, 4.0]


def test_robust_rules_agree_with_flowers_and_ignore_the_outlier(rng):
    from flwr.server.strategy import aggregate

    values = rng.standard_normal((7, 2, 3)).astype(np.float32)
    values[3] += 1000
    updates = updates_of(*((one.tolist(), 10) for one in values))
    flowers = [([one], 10) for one in values]
    expected = {
        "median": aggregate.aggregate_median(flowers),
        "trimmed-mean": aggregate.aggregate_trimmed_avg(flowers, 0.2),
        "krum": aggregate.aggregate_krum(flowers, 1, 0),
    }
    for name, arrays in expected.items():
        config = ServerConfig(aggregation=name, trim_share=0.2, malicious_clients=1)
        rule = robust_rule(config)
        assert rule is not None
        found = rule(updates)["w"]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.from_numpy(np.float32(arrays[0])))
        assert found.abs().max() < 10
    assert robust_rule(ServerConfig()) is None


def test_robust_rules_of_identical_updates_return_them():
    updates = updates_of(*[([1.0, -2.0], 5)] * 5)
    for rule in (median(updates), trimmed_mean(updates, 0.4), krum(updates, 1)):
        assert rule["w"].tolist() == [1.0, -2.0]
    with pytest.raises(RoundError, match="needs 5 updates, 4 came"):
        krum(updates[:4], 1)
