from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from diffusemble.training.objective import (
    Batch,
    Diffusion,
    add_noise,
    bucket_times,
    error_weights,
    noise_error,
    squared_error,
    velocity,
)

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def batch(size: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, size, 4, 5, 7, generator=generator)
    return Batch(latents, noise, torch.tensor([0, 500, 999])[:size], {"encoder_hidden_states": torch.zeros(size, 2, 6)})


def test_noise_and_velocity_agree_with_diffusers() -> None:
    scheduler, given = DDPMScheduler(**SCHEDULE), batch()
    alphas = scheduler.alphas_cumprod[given.timesteps]
    arguments = (given.latents, given.noise, given.timesteps)
    assert torch.allclose(add_noise(given.latents, given.noise, alphas), scheduler.add_noise(*arguments))
    assert torch.allclose(velocity(given.latents, given.noise, alphas), scheduler.get_velocity(*arguments))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_has_no_error_and_an_offset_its_square(kind: str) -> None:
    given = batch()
    diffusion = Diffusion(DDPMScheduler(**SCHEDULE).alphas_cumprod, kind)
    aim = given.noise
    if kind == "v_prediction":
        aim = velocity(given.latents, given.noise, diffusion.alphas[given.timesteps])
    offset = torch.tensor([0.0, 1.0, 2.0])
    seen = {}

    def denoise(noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        seen.update(noisy=noisy, timesteps=timesteps, text=encoder_hidden_states)
        return (aim + offset.view(-1, 1, 1, 1),)

    assert torch.allclose(noise_error(denoise, given, diffusion), offset.square(), atol=1e-5)
    assert torch.equal(seen["noisy"], add_noise(given.latents, given.noise, diffusion.alphas[given.timesteps]))
    assert seen["timesteps"] is given.timesteps
    assert seen["text"] is given.inputs["encoder_hidden_states"]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_errors_in_other_terms_are_those_of_the_converted_prediction(kind: str) -> None:
    given = batch()
    given = Batch(given.latents, given.noise, torch.tensor([1, 500, 999]), given.inputs)
    diffusion = Diffusion(DDPMScheduler(**SCHEDULE).alphas_cumprod.double(), kind)
    alphas = diffusion.alphas[given.timesteps]
    latents, noise = given.latents.double(), given.noise.double()
    noisy, wrong = add_noise(latents, noise, alphas), torch.randn(latents.shape, dtype=torch.float64)
    kept, added = alphas.view(-1, 1, 1, 1).sqrt(), (1 - alphas).view(-1, 1, 1, 1).sqrt()
    # What a prediction says about x: solved from the definitions of noise and velocity.
    image = (noisy - added * wrong) / kept if kind == "epsilon" else kept * noisy - added * wrong
    said = {"image": image, "noise": (noisy - kept * image) / added}
    said["velocity"] = velocity(said["image"], said["noise"], alphas)
    aims = {"image": latents, "noise": noise, "velocity": velocity(latents, noise, alphas)}
    own = squared_error64(wrong, aims["noise" if kind == "epsilon" else "velocity"])
    for error, aim in aims.items():
        weights = error_weights(error, kind, alphas)  # type: ignore[arg-type]
        assert torch.allclose(weights * own, squared_error64(said[error], aim), rtol=1e-6), error
    assert error_weights("prediction", kind, alphas).tolist() == [1, 1, 1]
    snr = alphas / (1 - alphas)
    expected = snr.clamp(max=5) * error_weights("image", kind, alphas)
    assert torch.allclose(error_weights("min-snr", kind, alphas, 5), expected)
    assert snr.min() < 5 < snr.max()


def squared_error64(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean(dim=(1, 2, 3))


def test_the_error_is_taken_in_float32() -> None:
    prediction = torch.full((1, 1, 8, 8), 300.0, dtype=torch.float16)  # its square does not fit into float16
    assert squared_error(prediction, torch.zeros_like(prediction)).item() == 90_000


def test_every_bucket_gets_a_timestep_of_its_range() -> None:
    times = bucket_times(50, 7, 1000, torch.Generator().manual_seed(0))
    edges = [bucket * 1000 // 7 for bucket in range(8)]
    assert times.shape == (50, 7)
    for bucket in range(7):
        assert times[:, bucket].min() >= edges[bucket]
        assert times[:, bucket].max() < edges[bucket + 1]
        assert len(times[:, bucket].unique()) > 10


def test_more_buckets_than_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="There are 5 timesteps, so at most as many buckets; got 6"):
        bucket_times(1, 6, 5, torch.Generator())


def test_other_prediction_types_are_refused() -> None:
    with pytest.raises(ValueError, match="their scheduler says 'sample'"):
        Diffusion(torch.ones(5), "sample")
