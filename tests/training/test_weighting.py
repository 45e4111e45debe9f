from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr
from torch import Tensor

from diffusemble.training.objective import Diffusion, Level, add_noise, target_of
from diffusemble.training.weighting import check_error, error_weights
from training.small import SCHEDULE

KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")
TIMES = torch.tensor([1, 500, 998])


def process(kind: str) -> Diffusion:
    if kind == "flow_prediction":
        made = Diffusion.flow(1000)
        sigma = made.sigma.double()
        return Diffusion(1 - sigma, sigma, made.times, kind)
    return Diffusion.preserving(DDPMScheduler(**SCHEDULE).alphas_cumprod.double(), kind)


def error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean(dim=(1, 2, 3))


def picture_in(said: Tensor, noisy: Tensor, level: Level, kind: str) -> Tensor:
    """x that a prediction speaks of, solved from the definitions."""
    alpha, sigma = (part.view(-1, 1, 1, 1) for part in (level.alpha, level.sigma))
    return {
        "epsilon": lambda: (noisy - sigma * said) / alpha,
        "v_prediction": lambda: alpha * noisy - sigma * said,
        "sample": lambda: said,
        "flow_prediction": lambda: noisy - sigma * said,
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_errors_in_other_terms_are_those_of_the_converted_prediction(kind: str) -> None:
    latents, noise, wrong = torch.randn(3, 3, 4, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = process(kind).at(TIMES)
    noisy = add_noise(latents, noise, level)
    image = picture_in(wrong, noisy, level, kind)
    alpha, sigma = (part.view(-1, 1, 1, 1) for part in (level.alpha, level.sigma))
    velocity = "flow_prediction" if kind == "flow_prediction" else "v_prediction"
    said_noise = (noisy - alpha * image) / sigma
    terms = {
        "image": (image, latents),
        "noise": (said_noise, noise),
        "velocity": (target_of(image, said_noise, level, velocity), target_of(latents, noise, level, velocity)),
    }
    own = error(wrong, target_of(latents, noise, level, kind))
    for name, (said, aim) in terms.items():
        weights = error_weights(name, kind, level)  # type: ignore[arg-type]
        assert torch.allclose(weights * own, error(said, aim), rtol=1e-6), name
    assert error_weights("prediction", kind, level).tolist() == [1, 1, 1]
    of_image = error_weights("image", kind, level)
    ratio = (level.alpha / level.sigma).square()
    assert ratio.min() < 5 < ratio.max()
    assert torch.allclose(error_weights("min-snr", kind, level, 5), ratio.clamp(max=5) * of_image)
    assert torch.allclose(error_weights("soft-min-snr", kind, level, 5), 5 * ratio / (ratio + 5) * of_image)
    assert torch.allclose(error_weights("debiased", kind, level), error_weights("noise", kind, level) / ratio.sqrt())


@pytest.mark.parametrize(("kind", "beside"), [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_is_what_diffusers_scripts_weight_with(kind: str, beside: int) -> None:
    scheduler = DDPMScheduler(**SCHEDULE)
    ratio = compute_snr(scheduler, TIMES).double()
    expected = ratio.clamp(max=5) / (ratio + beside)
    assert torch.allclose(error_weights("min-snr", kind, process(kind).at(TIMES)), expected, rtol=1e-4)


def test_cosmap_is_what_diffusers_scripts_weight_with() -> None:
    level = process("flow_prediction").at(TIMES)
    expected = compute_loss_weighting_for_sd3("cosmap", level.sigma)
    assert torch.allclose(error_weights("cosmap", "flow_prediction", level), expected)
    assert error_weights("cosmap", "flow_prediction", Level(*torch.tensor([[0.5], [0.5]]))).item() == pytest.approx(
        4 / math.pi
    )


def test_cosmap_of_a_diffusion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'cosmap' weights the levels of flow matching, .* predict 'epsilon'"):
        check_error("cosmap", process("epsilon"), range(1000))
    check_error("cosmap", process("flow_prediction"), range(1000))


@pytest.mark.parametrize("terms", ["velocity", "image", "min-snr"])
def test_noise_at_a_last_timestep_of_pure_noise_has_no_other_terms(terms: Any) -> None:
    alphas = DDPMScheduler(rescale_betas_zero_snr=True, **SCHEDULE).alphas_cumprod
    silent = Diffusion.preserving(alphas, "epsilon")
    with pytest.raises(ValueError, match=rf"'{terms}'. Choose 'prediction', .* timesteps: \[0, 998\]"):
        check_error(terms, silent, range(1000))
    check_error(terms, silent, range(999))
    check_error("noise", silent, range(1000))
    spoken = Diffusion.preserving(alphas, "v_prediction")
    check_error(terms, spoken, range(1000))
    assert error_weights(terms, "v_prediction", spoken.at(torch.arange(1000))).isfinite().all()
