"""Preparing pictures without torchvision."""

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil

from diffusemble.evaluation.metrics.pixels import Preparation, resize_like_tensorflow, to_bytes


def pictures(*shape: int) -> torch.Tensor:
    """Smooth random pictures in [0, 1]."""
    return F.interpolate(torch.rand(*shape[:2], 9, 7, generator=torch.Generator().manual_seed(0)), shape[2:])


@pytest.mark.parametrize("size", [(40, 40), (51, 37), (30, 67), (17, 20)])
def test_cropping_is_that_of_clips_own_processor(size):
    images = pictures(2, 3, *size)
    own = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    arrays = list(to_bytes(images).permute(0, 2, 3, 1).numpy())
    expected = torch.stack([torch.as_tensor(x) for x in own(arrays)["pixel_values"]])
    torch.testing.assert_close(Preparation(28)(images), expected, rtol=1e-5, atol=1e-5)


def test_padding_keeps_the_whole_picture_between_black_bars():
    plain = Preparation(20, (0, 0, 0), (1, 1, 1), fit="pad")
    found = plain(torch.ones(1, 3, 40, 30))  # 20 x 15 inside 20 x 20: two columns before, three after
    assert found.shape == (1, 3, 20, 20)
    assert found[0, 0, 10].tolist() == [0] * 2 + [1] * 15 + [0] * 3
    assert torch.equal(plain(torch.ones(1, 3, 30, 40))[0, 0].T, found[0, 0])


def test_stretching_fills_the_square_and_normalising_is_per_channel():
    found = Preparation(12, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0), fit="stretch")(torch.ones(2, 3, 30, 50))
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.tensor([1.0, 3.0, 1.0]))
    assert found.shape == (2, 3, 12, 12)


def test_shrinking_antialiases():
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    plain = Preparation(16, (0, 0, 0), (1, 1, 1))
    assert (plain(stripes) - 0.5).abs().max() < 0.05


def test_tensorflows_resize_reads_the_corner_and_does_not_smooth():
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twice = resize_like_tensorflow(x, 10)
    torch.testing.assert_close(twice[..., ::2, ::2], x)
    torch.testing.assert_close(twice[..., 0, 1], (x[..., 0, 0] + x[..., 0, 1]) / 2)
    torch.testing.assert_close(twice[..., -1, -1], x[..., -1, -1])  # beyond the last pixel it repeats
    stripes = (torch.arange(12) % 2).double().expand(1, 1, 12, 12)
    assert resize_like_tensorflow(stripes, 6).abs().max() == 0


def test_tensorflows_resize_of_a_ramp_is_the_ramp():
    ramp = torch.arange(7.0, dtype=torch.float64).expand(1, 1, 7, 7)
    found = resize_like_tensorflow(ramp, 299)[0, 0, 0]
    torch.testing.assert_close(found, (torch.arange(299, dtype=torch.float64) * 7 / 299).clamp(max=6))
    assert torch.equal(resize_like_tensorflow(ramp, 7), ramp)


def test_pictures_are_rounded_as_a_file_would_round_them():
    assert to_bytes(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 128, 255]


def test_wrong_pictures_are_refused():
    with pytest.raises(ValueError, match=r"RGB pictures \[b 3 h w\].*\(2, 4, 8, 8\)"):
        to_bytes(torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"b > 0; got \(0, 3, 8, 8\)"):
        to_bytes(torch.zeros(0, 3, 8, 8))
    with pytest.raises(ValueError, match=r"in \[0, 1\]; these lie in \[-1, 1\].*x / 2 \+ 0.5"):
        to_bytes(torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"these lie in \[nan, nan\]"):
        to_bytes(torch.full((1, 3, 2, 2), torch.nan))
