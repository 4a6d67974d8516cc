"""Networks that see absolute values: what they ignore, and that all sides agree."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from instahide_fl.config import Config, ModelConfig
from instahide_fl.errors import ConfigError
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.initial_weights import load_initial_weights
from instahide_fl.models.registry import MIN_IMAGE_SIDE, MODELS, build_model
from instahide_fl.models.sign_invariance import standardised_absolute
from instahide_fl.run_folder import CONFIG, RunFolder

ROOT = Path(__file__).parents[2]


def network(name="small-cnn", *, sign_invariant=True, side=8, channels=3, **changes):
    config = ModelConfig(name=name, width=4, sign_invariant=sign_invariant, **changes)
    return build_model(config, (channels, side, side), 5, 0).eval()


def images_and_masks(count=4, side=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, side, side, generator=generator)
    masks = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
    return images, masks.float()


@pytest.mark.parametrize("name", MODELS)
def test_no_network_sees_signs_or_the_scale_of_an_image(name):
    images, masks = images_and_masks(side=max(8, MIN_IMAGE_SIDE[name]))
    model = network(name, side=images.shape[-1])
    raw = network(name, side=images.shape[-1], sign_invariant=False)
    assert model.state_dict().keys() == raw.state_dict().keys()
    with torch.no_grad():
        logits = model(images)
        for twin in (-images, images * masks):
            assert torch.equal(model(twin), logits)
        for affine in (3 * images.abs() + 2, 0.5 * images):
            torch.testing.assert_close(model(affine), logits, rtol=1e-3, atol=1e-3)
        other = images.roll(1, 0)
        assert not torch.allclose(model(other), logits, rtol=1e-2)


def test_the_standard_deviation_is_over_all_pixels_and_channels_of_an_image():
    images, _ = images_and_masks()
    flat = standardised_absolute(images).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        flat.std(1, correction=0), torch.ones(4), rtol=1e-4, atol=0
    )
    absolute = images.abs()
    channel = (absolute - absolute.mean((1, 2, 3), keepdim=True))[:, 0].flatten(1)
    scale = absolute.flatten(1).std(1, correction=0)[:, None]
    torch.testing.assert_close(flat[:, :64], channel / scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, -0.7, 300.0])
def test_images_of_one_value_become_zero_with_finite_derivatives(value):
    images = torch.full((2, 3, 8, 8), value, requires_grad=True)
    assert standardised_absolute(images).abs().max() < 0.02
    model = network(activation="softplus").train()
    loss = model(images).square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    squares = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    (by_pixels,) = torch.autograd.grad(squares, images)
    assert all(gradient.isfinite().all() for gradient in (*gradients, by_pixels))


def test_copies_pickles_and_functional_calls_ignore_signs_too():
    images, masks = images_and_masks()
    model = network()
    expected = model(images)
    pickled = pickle.loads(pickle.dumps(model))
    for same in (copy.deepcopy(model), pickled):
        assert torch.equal(same(images * masks), expected)
    parameters = dict(model.named_parameters())
    assert torch.equal(functional_call(model, parameters, (-images,)), expected)


def test_auto_follows_the_encoding_and_a_resolved_run_says_so():
    assert Config().model.sign_invariant == "auto"
    for method, expected in (("instahide", True), ("mixup", False), ("none", False)):
        config = Config().with_values({"instahide.method": method})
        assert config.network.sign_invariant is expected
        assert config.resolved().model.sign_invariant is expected
    for text in ("true", "false"):  # as Flower hands it on where "auto" is listed
        config = Config().with_values({"model.sign-invariant": text})
        assert config.sign_invariant is (text == "true")
    with pytest.raises(ConfigError, match=r"model.sign-invariant must be .*'auto'.*2"):
        Config().with_values({"model.sign-invariant": 2})


def test_nobody_builds_a_runs_network_from_the_unresolved_table():
    for folder in ("instahide_fl", "clients", "server", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = re.findall(r"build_model\(\s*([\w.]+)", path.read_text())
            assert not [name for name in calls if name.endswith(".model")], path


def run_folder(path, **changes):
    folder = RunFolder.create(path, Config().with_values({"model.width": 4} | changes))
    folder.save_model(get_arrays(network(channels=1)))
    return folder


def test_a_run_folder_that_does_not_speak_of_signs_has_a_network_that_sees_them(
    tmp_path,
):
    folder = run_folder(tmp_path / "run", **{"model.sign-invariant": True})
    assert folder.config().sign_invariant
    text = (folder.path / CONFIG).read_text()
    lines = [line for line in text.splitlines() if "sign-invariant" not in line]
    (folder.path / CONFIG).write_text("\n".join(lines))
    assert folder.config().model.sign_invariant is False


def test_weights_of_a_run_for_other_inputs_are_refused(tmp_path):
    folder = run_folder(tmp_path / "run", **{"model.sign-invariant": True})
    signed = network(channels=1, sign_invariant=False)
    for source in (folder.path, folder.path / "model.safetensors"):
        load_initial_weights(network(channels=1), str(source), sign_invariant=True)
        with pytest.raises(ConfigError, match=r"set model\.sign-invariant = true"):
            load_initial_weights(signed, str(source), sign_invariant=False)
    other = run_folder(tmp_path / "other", **{"model.sign-invariant": False})
    with pytest.raises(ConfigError, match=r"set model\.sign-invariant = false"):
        load_initial_weights(network(channels=1), str(other.path), sign_invariant=True)
    bare = tmp_path / "weights.safetensors"
    bare.write_bytes((folder.path / "model.safetensors").read_bytes())
    load_initial_weights(signed, str(bare), sign_invariant=False)
