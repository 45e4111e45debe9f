"""Formulas of fusion: the noise average, and MagicFusion's by hand."""

from math import log

import pytest
import torch

from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.experts.text import pack_text
from diffusemble.fusion import mean, most_salient, saliency, shares, smooth
from tests.tiny import LENGTH, WIDTH, tiny_unet


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_weights_are_shares():
    a, b = noise(0, 2, 4, 3, 5), noise(1, 2, 4, 3, 5)
    torch.testing.assert_close(mean([a, b]), (a + b) / 2)
    torch.testing.assert_close(mean([a, b], [3, 1]), 0.75 * a + 0.25 * b)
    torch.testing.assert_close(mean([a, b], [0, 2]), b)
    assert torch.equal(mean([a]), a)


def test_aggregating_only_at_the_last_point_is_the_noise_average():
    unets = [tiny_unet(seed) for seed in range(3)]
    sample, time = noise(0, 2, 4, 8, 8), torch.tensor(321)
    texts = [noise(seed, 2, LENGTH, WIDTH) for seed in range(1, 4)]
    ensemble = EnsembleDenoiser(unets, build_aggregator("mean", unets, points="last"))
    with torch.no_grad():
        alone = [unet(sample, time, text).sample for unet, text in zip(unets, texts, strict=True)]
        together = ensemble(sample, time, pack_text(texts)).sample
    torch.testing.assert_close(together, mean(alone), rtol=1e-5, atol=1e-6)


def test_a_weighted_mean_at_the_last_point_is_the_weighted_noise_average():
    unets = [tiny_unet(seed) for seed in range(3)]
    sample, time = noise(0, 2, 4, 8, 8), torch.tensor(321)
    texts = [noise(seed, 2, LENGTH, WIDTH) for seed in range(1, 4)]
    weights = (5.0, 0.0, 3.0)
    ensemble = EnsembleDenoiser(unets, build_aggregator("mean", unets, points="last", weights=weights))
    with torch.no_grad():
        alone = [unet(sample, time, text).sample for unet, text in zip(unets, texts, strict=True)]
        together = ensemble(sample, time, pack_text(texts)).sample
    torch.testing.assert_close(together, mean(alone, weights), rtol=1e-5, atol=1e-6)
    assert (together - mean(alone)).abs().max() > 1e-2


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"one shape.*\(1, 4, 8, 8\), \(1, 4, 9, 8\).*share one latent space"):
        mean([noise(0, 1, 4, 8, 8), noise(0, 1, 4, 9, 8)])
    with pytest.raises(ValueError, match="one or more predictions"):
        mean([])
    with pytest.raises(ValueError, match=r"one weight per prediction.*\[1\] for 2"):
        mean([noise(0, 1), noise(1, 1)], [1])
    with pytest.raises(ValueError, match="not summing to zero"):
        mean([noise(0, 1), noise(1, 1)], [1, -1])
    with pytest.raises(ValueError, match=r"one weight per prediction.*for 3 predictions. Give 3 positive weights"):
        shares((1.0, 2.0), 3)


# -- MagicFusion -------------------------------------------------------------------------------------------------------


def impulse(height: int, width: int, row: int, column: int) -> torch.Tensor:
    values = torch.zeros(1, height, width)
    values[0, row, column] = 1
    return values


def test_the_published_kernel_is_a_window_of_four_half_a_pixel_down_and_right():
    expected = torch.zeros(1, 7, 9)
    expected[0, 2:6, 4:8] = 1 / 16  # around (3, 5): one before, two after
    torch.testing.assert_close(smooth(impulse(7, 9, 3, 5)), expected)


def test_the_published_kernel_counts_zeros_beyond_the_border():
    rows, columns = torch.tensor([2, 3, 4, 4, 3]) / 4, torch.tensor([2, 3, 4, 4, 4, 3]) / 4
    torch.testing.assert_close(smooth(torch.ones(2, 5, 6))[1], rows[:, None] * columns)


def test_the_symmetric_kernel_lies_around_its_middle():
    taps = torch.tensor([1, 2, 2, 2, 1]) / 8
    expected = torch.zeros(1, 9, 11)
    expected[0, 2:7, 4:9] = taps[:, None] * taps
    torch.testing.assert_close(smooth(impulse(9, 11, 4, 6), "symmetric"), expected)


def test_the_symmetric_kernel_keeps_a_constant_and_commutes_with_mirroring():
    torch.testing.assert_close(smooth(torch.full((2, 3, 5), 7.0), "symmetric"), torch.full((2, 3, 5), 7.0))
    values = noise(3, 2, 6, 7)
    for kernel, commutes in (("symmetric", True), ("reference", False)):
        mirrored = smooth(values.flip(1, 2), kernel).flip(1, 2)
        assert torch.allclose(mirrored, smooth(values, kernel), atol=1e-6) == commutes


def test_a_picture_of_one_position_is_its_own_average_or_a_sixteenth():
    values = torch.full((1, 1, 1), 16.0)
    assert smooth(values, "symmetric").item() == 16
    assert smooth(values).item() == 1


def test_saliency_by_hand():
    conditional = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
    unconditional = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    # |2| and |-3| at guidance 4: 8 and 12, their mean 10.
    assert saliency(conditional, unconditional, 4.0, "symmetric").item() == pytest.approx(10)
    assert saliency(conditional, unconditional, 4.0).item() == pytest.approx(10 / 16)
    half = saliency(conditional.bfloat16(), unconditional.bfloat16(), 4.0, "symmetric")
    assert (half.dtype, half.item()) == (torch.float32, 10)


def choice(*saliencies: list[float], k: tuple[float, ...] = (1.0, 1.0)) -> list[int]:
    maps = most_salient(torch.tensor(saliencies, dtype=torch.float32)[None, :, None], k)
    assert torch.equal(maps.sum(dim=1), torch.ones_like(maps[:, 0]))
    assert set(maps.unique().tolist()) <= {0.0, 1.0}
    return maps.argmax(dim=1).flatten().tolist()


def test_the_most_salient_by_hand():
    # p = (1/4, 1/4, 1/2) against (1/3, 1/3, 1/3): the first is more salient everywhere, and draws where it is most so.
    assert choice([0.2, 0.2, 0.2 + log(2)], [0, 0, 0]) == [1, 1, 0]
    # p = (1/2, 1/4, 1/4) against (3/5, 1/5, 1/5); with k = 2, (2/3, 1/6, 1/6).
    assert choice([log(2), 0, 0], [log(3), 0, 0]) == [1, 0, 0]
    assert choice([log(2), 0, 0], [log(3), 0, 0], k=(2.0, 1.0)) == [0, 1, 1]
    # Three experts, each with a place of its own; the first of equals.
    assert choice([1, 0, 0], [0, 1, 0], [0, 0, 1], k=(1.0, 1.0, 1.0)) == [0, 1, 2]
    assert choice([1, 2, 3], [1, 2, 3]) == [0, 0, 0]


def test_large_saliencies_do_not_underflow():
    # exp(-200) and exp(-300) are both zero in float32, and could not be told apart.
    assert choice([300, 0, 0], [300, 0, 100]) == [0, 0, 1]
