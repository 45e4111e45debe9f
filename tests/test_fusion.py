"""The noise average, by itself and inside the ensemble."""

import pytest
import torch

from diffusemble.ensemble import EnsembleDenoiser, build_aggregator
from diffusemble.experts.text import pack_text
from diffusemble.fusion import mean
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


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"one shape.*\(1, 4, 8, 8\), \(1, 4, 9, 8\).*share one latent space"):
        mean([noise(0, 1, 4, 8, 8), noise(0, 1, 4, 9, 8)])
    with pytest.raises(ValueError, match="one or more predictions"):
        mean([])
    with pytest.raises(ValueError, match=r"one weight per prediction.*\[1\] for 2"):
        mean([noise(0, 1), noise(1, 1)], [1])
    with pytest.raises(ValueError, match="not summing to zero"):
        mean([noise(0, 1), noise(1, 1)], [1, -1])
