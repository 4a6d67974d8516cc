from __future__ import annotations

import pytest
import safetensors.torch
import torch

from instahide_fl.config import ModelConfig
from instahide_fl.errors import ConfigError
from instahide_fl.models.arrays import get_arrays, load_arrays, shared_buffers
from instahide_fl.models.initial_weights import load_initial_weights
from instahide_fl.models.registry import (
    MIN_IMAGE_SIDE,
    MODELS,
    WITHOUT_NORMALIZATION,
    build_model,
)


def test_the_seed_decides_the_initial_parameters():
    first, again, other = (
        get_arrays(build_model(ModelConfig(width=4), (1, 8, 8), 3, seed))
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    with pytest.raises(ConfigError, match="at least 4x4"):
        build_model(ModelConfig(), (1, 3, 3), 3, 0)


PARAMETERS = {  # counts on 3x32x32 images of 10 classes; None: not checked
    "small-cnn": None,
    "lenet": None,
    "cnn-dropout": 1_626_442,
    "resnet-18": 11_173_962,
    "resnet-50": 23_520_842,
    "preact-resnet-18": None,
    "resnet-9": 412_954,
    "densenet-121": None,
    "mlp": 1_578_506,
    "strided-cnn": None,
    "strided-lenet": None,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_small_and_usual_images(name):
    normalization = "none" if name in WITHOUT_NORMALIZATION else "group"
    config = ModelConfig(name=name, normalization=normalization)
    for side in (MIN_IMAGE_SIDE[name], 32):
        for channels in (1, 3):
            model = build_model(config, (channels, side, side), 10, 0)
            assert model(torch.zeros(2, channels, side, side)).shape == (2, 10)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert PARAMETERS[name] in (None, count)
    if (small := MIN_IMAGE_SIDE[name]) == 1:
        return
    with pytest.raises(ConfigError, match=f"at least {small}x{small}"):
        build_model(config, (3, small - 1, small), 10, 0)


@pytest.mark.parametrize("name", ["resnet-18", "densenet-121"])
def test_large_images_get_the_stem_that_shrinks_them(name):
    config = ModelConfig(name=name, normalization="group")
    large = build_model(config, (1, 64, 64), 3, 0)
    assert large(torch.zeros(1, 1, 64, 64)).shape == (1, 3)
    stems = [
        next(one for one in model.modules() if isinstance(one, torch.nn.Conv2d))
        for model in (large, build_model(config, (1, 32, 32), 3, 0))
    ]
    assert [stem.stride for stem in stems] == [(2, 2), (1, 1)]
    assert [stem.in_channels for stem in stems] == [1, 1]


@pytest.mark.parametrize(
    "name", ["small-cnn", "preact-resnet-18", "resnet-9", "densenet-121"]
)
def test_only_the_variant_batch_has_statistics_to_send(name):
    kinds = {
        "none": torch.nn.Identity,
        "group": torch.nn.GroupNorm,
        "batch": torch.nn.BatchNorm2d,
        "local-batch": torch.nn.BatchNorm2d,
    }
    for variant, kind in kinds.items():
        config = ModelConfig(name=name, width=4, normalization=variant)
        model = build_model(config, (3, 8, 8), 5, 0)
        layers = [one for one in model.modules() if isinstance(one, kind)]
        norms = [n for n in shared_buffers(model) if "running" in n]
        assert layers
        assert len(norms) == (2 * len(layers) if variant == "batch" else 0)
        assert shared_buffers(model).keys() == set(norms)


def test_a_networks_arrays_go_out_and_in_again(rng):
    config = ModelConfig(width=4, normalization="batch")
    one, other = (build_model(config, (3, 8, 8), 5, seed) for seed in (0, 1))
    one(torch.from_numpy(rng.standard_normal((6, 3, 8, 8))).float())
    arrays = get_arrays(one)
    assert all(array.is_contiguous() for array in arrays.values())
    assert not any("num_batches" in name for name in arrays)
    load_arrays(other, arrays)
    images = torch.from_numpy(rng.standard_normal((6, 3, 8, 8))).float()
    assert torch.equal(one.eval()(images), other.eval()(images))


def test_lenet_has_no_normalisation_to_choose():
    with pytest.raises(ConfigError, match="'lenet' has no normalisation layers"):
        build_model(ModelConfig(name="lenet", normalization="group"), (1, 28, 28), 3, 0)


def test_initial_weights_are_taken_over_and_a_new_head_stays_random(tmp_path):
    config = ModelConfig(width=4)
    trained = build_model(config, (1, 8, 8), 7, seed=1)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "model.safetensors"
    safetensors.torch.save_file(get_arrays(trained), path)
    for source in (path, path.parent):
        same = build_model(config, (1, 8, 8), 7, seed=0)
        digest = load_initial_weights(same, str(source))
        assert len(digest) == 64
        for name, array in get_arrays(trained).items():
            assert torch.equal(get_arrays(same)[name], array)
    other = build_model(config, (1, 8, 8), 3, seed=0)
    head = other.head.weight.clone()
    load_initial_weights(other, str(path))
    assert torch.equal(other.head.weight, head)
    assert torch.equal(other.conv1.weight, trained.conv1.weight)


def test_initial_weights_that_cannot_be_used_are_explained(tmp_path):
    model = build_model(ModelConfig(width=4), (1, 8, 8), 7, 0)
    with pytest.raises(ConfigError, match=r"initial-weights: cannot read .*No such"):
        load_initial_weights(model, str(tmp_path / "none"))
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="cannot read"):
        load_initial_weights(model, str(path))
    wider = build_model(ModelConfig(width=8), (1, 8, 8), 7, 0)
    safetensors.torch.save_file(get_arrays(wider), path)
    with pytest.raises(ConfigError, match=r"another network .* conv1.bias"):
        load_initial_weights(model, str(path))
