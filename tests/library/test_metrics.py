from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from instahide_fl.errors import ShapeError
from instahide_fl.metrics import perceptual
from instahide_fl.metrics.baselines import matched_noise, mean_of_others
from instahide_fl.metrics.comparison import Comparer
from instahide_fl.metrics.correction import fit_colours, negative
from instahide_fl.metrics.identification import identify
from instahide_fl.metrics.labels import hard_label_overlap, soft_label_errors
from instahide_fl.metrics.matching import match_one_to_one
from instahide_fl.metrics.scores import ImageScores
from instahide_fl.metrics.similarity import (
    MAX_PSNR,
    mse,
    pairwise_ssim,
    psnr,
    ssim,
)
from instahide_fl.types import ChannelStatistics

STATISTICS = ChannelStatistics((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def images(rng, count, shape=(3, 32, 32)):
    return torch.from_numpy(rng.random((count, *shape), dtype=np.float32))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 9, 40)])
def test_ssim_and_psnr_are_those_of_scikit_image(rng, shape):
    first = images(rng, 4, shape)
    second = (first + 0.3 * images(rng, 4, shape)).mul(1.5)  # leaves [0, 1]
    second[0] = first[0]
    for a, b, similar, ratio in zip(
        first, second, ssim(first, second), psnr(first, second), strict=True
    ):
        arrays = a.numpy().astype("f8"), b.numpy().astype("f8")
        expected = structural_similarity(*arrays, channel_axis=0, data_range=1)
        assert similar.item() == pytest.approx(expected, abs=1e-5)
        if (a != b).any():
            expected = peak_signal_noise_ratio(*arrays, data_range=1)
            assert ratio.item() == pytest.approx(expected, abs=1e-5)
    assert psnr(first, second)[0] == MAX_PSNR
    assert mse(first, second)[0] == 0


def test_small_images_get_the_largest_odd_window_that_fits(rng):
    first, second = images(rng, 2, (3, 6, 8))
    expected = structural_similarity(
        first.numpy(), second.numpy(), channel_axis=0, data_range=1, win_size=5
    )
    assert ssim(first, second).item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ShapeError, match="3x3"):
        ssim(first[..., :2], second[..., :2])
    with pytest.raises(ShapeError, match="one shape"):
        ssim(first, second[:1])


def test_all_pairs_are_compared_in_parts_as_one_by_one(rng, monkeypatch):
    monkeypatch.setattr("instahide_fl.metrics.similarity.MAX_PIXELS", 3 * 600)
    first, second = images(rng, 5, (3, 8, 8)), images(rng, 3, (3, 8, 8))
    torch.testing.assert_close(
        pairwise_ssim(first, second), ssim(first[:, None], second[None])
    )


@pytest.mark.parametrize("counts", [(6, 4), (4, 6)])
def test_matching_undoes_a_permutation_with_too_many_or_too_few(rng, counts):
    made, there = counts
    originals = images(rng, max(counts))
    order = torch.from_numpy(rng.permutation(made))
    rows, columns = match_one_to_one(
        pairwise_ssim(originals[:made][order], originals[:there])
    )
    assert len(rows) == 4
    right = (order[rows] == columns).sum()
    assert right == 4
    assert len(set(columns.tolist())) == 4


def test_matching_prefers_the_best_sum_to_the_best_single_pair():
    rows, columns = match_one_to_one(torch.tensor([[0.9, 0.8], [0.8, 0.1]]))
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_a_negative_is_recognised_in_its_better_sign_and_only_there(rng):
    originals = images(rng, 3)
    compared = Comparer(STATISTICS, clip=False).compare(
        negative(originals, STATISTICS), originals[:, None]
    )
    assert compared.flipped.all()
    assert compared.ssim.max() < 0
    torch.testing.assert_close(compared.sign_ssim, torch.ones(3).double())
    torch.testing.assert_close(
        negative(STATISTICS.restore(originals), STATISTICS),
        STATISTICS.restore(-originals),
    )


def test_the_colour_oracle_undoes_brightness_and_contrast(rng):
    originals = images(rng, 2)
    scale, shift = torch.tensor([0.2, -3.0, 1.0])[:, None, None], 0.7
    fitted = fit_colours(scale * originals + shift, originals)
    torch.testing.assert_close(fitted, originals.double(), atol=1e-5, rtol=0)
    flat = fit_colours(torch.zeros_like(originals), originals)
    torch.testing.assert_close(flat.mean(dim=(2, 3)), originals.double().mean((2, 3)))


def test_the_best_of_the_candidates_counts_in_all_columns(rng):
    candidates = images(rng, 4)[None].expand(2, -1, -1, -1, -1)
    made = torch.stack([candidates[0, 3], candidates[0, 1] * 0.9])
    compared = Comparer(STATISTICS, clip=True).compare(made, candidates)
    assert compared.choice.tolist() == [3, 1]
    summed = ImageScores.of(compared).to_json()
    assert summed["ssim"]["best"] == pytest.approx(1)
    assert summed["mse"]["best"] == 0
    assert summed["ssim"]["share_above_0.5"] == 1
    assert summed["sign_best"]["ssim"]["mean"] < 1


def test_matched_noise_keeps_statistics_and_shows_nothing(rng):
    smooth = images(rng, 8, (3, 4, 4)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = matched_noise(smooth, rng)
    torch.testing.assert_close(noise.mean((2, 3)), smooth.mean((2, 3)))
    torch.testing.assert_close(noise.std((2, 3)), smooth.std((2, 3)))
    rough = (noise[..., 1:] - noise[..., :-1]).square().mean()
    same = (smooth[..., 1:] - smooth[..., :-1]).square().mean()
    assert rough < 2 * same  # shuffled pixels would be far above
    assert ssim(noise, smooth).abs().mean() < 0.15


def test_the_mean_of_others_leaves_the_victim_out(rng):
    every = images(rng, 5, (1, 4, 4))
    guess = mean_of_others(every, torch.tensor([[0, 1], [4, 4]]))
    torch.testing.assert_close(guess[0], every[2:].mean(0))
    torch.testing.assert_close(guess[1], every[:4].mean(0))


def test_identification_looks_among_images_of_the_same_classes_only():
    similarity = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.1, 0.2, 0.3, 0.9]]).double()
    targets = torch.tensor([0, 1, 0, 2])
    found = identify(similarity, torch.tensor([[2], [3]]), targets)
    # The first sees images 0 and 2; the second has no other image of its class.
    assert (found.hits, found.chance, found.count) == (1, 0.5, 1)
    both = identify(similarity[:1], torch.tensor([[0, 3]]), targets)
    assert (both.hits, both.count) == (0, 1)
    assert both.chance == pytest.approx(2 / 3)


def test_hard_labels_count_as_often_as_they_are_there(rng):
    truth = torch.tensor([0, 0, 1, 5])
    found = hard_label_overlap(torch.tensor([0, 0, 0, 1]), truth, 10, rng)
    assert found.overlap == 0.75
    assert 0 < found.chance < 0.5
    one = hard_label_overlap(torch.tensor([3]), torch.tensor([3]), 10, rng)
    assert one.chance == pytest.approx(0.1, abs=0.03)


def test_soft_labels_are_matched_or_taken_as_mean_or_sum():
    truth = torch.tensor([[0.6, 0.0, 0.1], [0.0, 0.5, 0.0]])
    found = soft_label_errors(truth.flip(0) + 0.01, truth)
    torch.testing.assert_close(found.errors, torch.full((2,), 0.01).double())
    assert found.uninformed.tolist() == pytest.approx([1 / 3, 0.6 - 0.7 / 3], abs=1e-6)
    for whole in (truth.sum(0), truth.mean(0)):
        assert soft_label_errors(whole[None], truth).errors.item() < 1e-7


def test_lpips_says_why_it_is_absent_and_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    reason = perceptual.lpips_absent()
    assert reason is not None
    assert "lpips" in reason or "AlexNet" in reason
    assert not list(tmp_path.iterdir())


def test_lpips_is_zero_for_identical_images(rng, tmp_path, monkeypatch):
    pytest.importorskip("lpips")
    from torchvision.models import alexnet

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    weights = perceptual._backbone_file()
    weights.parent.mkdir()
    torch.save(alexnet(weights=None).state_dict(), weights)
    assert perceptual.lpips_absent() is None
    first, second = images(rng, 2, (1, 28, 28)), images(rng, 2, (1, 28, 28))
    assert perceptual.lpips(first, first).tolist() == [0, 0]
    distances = perceptual.lpips(first, second)
    assert all(math.isfinite(value) and value > 0 for value in distances)
