"""Held-out loss: exact values for known predictors, and independence of batch and order."""

import pytest
import torch

from diffusemble.evaluation.heldout import HeldOut, as_noise, decode_latents, diffuse, encode_images, losses
from tests.tiny import tiny_scheduler, tiny_vae

ALPHAS = tiny_scheduler().alphas_cumprod


def held_out(n: int = 5) -> HeldOut:
    latents = torch.randn(n, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return HeldOut(tuple(f"{i}.png" for i in range(n)), tuple(f"thing {i}" for i in range(n)), latents)


def test_predicting_nothing_costs_the_noise_itself_and_predicting_the_noise_costs_nothing():
    held = held_out()
    times = (10, 600)
    nothing = losses(lambda noisy, time, prompts: torch.zeros_like(noisy), held, ALPHAS, times)
    expected = torch.stack([held.noise(time, 0, 0).square().mean(dim=(1, 2, 3)) for time in times], dim=1)
    torch.testing.assert_close(nothing, expected.double())

    def oracle(noisy: torch.Tensor, time: torch.Tensor, prompts: object) -> torch.Tensor:
        kept = ALPHAS[time[0]]
        return (noisy - kept.sqrt() * held.latents) / (1 - kept).sqrt()

    assert losses(oracle, held, ALPHAS, times).max() < 1e-8


def test_noise_depends_on_the_picture_and_not_on_its_neighbours():
    held = held_out()
    assert torch.equal(held[2:4].noise(300, 1, 0), held.noise(300, 1, 0)[2:4])
    others = [held.noise(301, 1, 0), held.noise(300, 0, 0), held.noise(300, 1, 9)]
    assert all(not torch.equal(held.noise(300, 1, 0), other) for other in others)


def test_parts_measured_apart_are_the_whole_and_draws_are_averaged():
    held = held_out()

    def predict(noisy: torch.Tensor, time: torch.Tensor, prompts: object) -> torch.Tensor:
        return 0.3 * noisy

    whole = losses(predict, held, ALPHAS, (50, 500), draws=3)
    parts = [losses(predict, held[part], ALPHAS, (50, 500), draws=3) for part in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(losses(predict, held, ALPHAS, (50, 500), draws=1), whole)


def test_a_velocity_is_turned_into_noise():
    x, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    kept = torch.tensor([0.3, 0.8]).view(-1, 1, 1, 1)
    noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * x
    torch.testing.assert_close(as_noise(velocity, noisy, kept.flatten(), "v_prediction"), noise)
    assert as_noise(noise, noisy, kept.flatten(), "epsilon") is noise
    with pytest.raises(ValueError, match="'epsilon' or 'v_prediction'; the scheduler says 'sample'"):
        as_noise(noise, noisy, kept.flatten(), "sample")


def test_noising_is_the_schedulers():
    scheduler, x, noise = tiny_scheduler(), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = scheduler.add_noise(x, noise, torch.tensor([321, 321]))
    torch.testing.assert_close(diffuse(x, noise, scheduler.alphas_cumprod[321]), expected)


def test_latents_are_scaled_and_decoding_undoes_it():
    vae, images = tiny_vae(), torch.rand(3, 3, 16, 16)
    latents = encode_images(vae, images, batch=2)
    with torch.no_grad():
        expected = vae.encode(2 * images - 1).latent_dist.mean * vae.config.scaling_factor
        decoded = vae.decode(expected / vae.config.scaling_factor).sample
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(decode_latents(vae, latents, batch=2), (decoded / 2 + 0.5).clamp(0, 1))


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="at least one picture; got none"):
        losses(lambda *_: torch.zeros(1), held_out()[:0], ALPHAS, (1,))
    with pytest.raises(ValueError, match=r"timesteps 0 to 999; got \[1000\]"):
        losses(lambda *_: torch.zeros(1), held_out(), ALPHAS, (1000,))
