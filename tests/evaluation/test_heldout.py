"""Held-out loss: exact values for known predictors, and independence of batch and order."""

import pytest
import torch

from diffusemble.evaluation.heldout import HeldOut, decode_latents, encode_images, in_terms, losses, terms_of
from diffusemble.training.objective import Diffusion, add_noise, target_of
from diffusemble.training.schedule import process_of
from tests.tiny import tiny_scheduler, tiny_vae
from tests.tiny_dit import tiny_flow_scheduler

DIFFUSION, FLOW = process_of(tiny_scheduler()), process_of(tiny_flow_scheduler())


def held_out(n: int = 5) -> HeldOut:
    latents = torch.randn(n, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return HeldOut(tuple(f"{i}.png" for i in range(n)), tuple(f"thing {i}" for i in range(n)), latents)


def test_predicting_nothing_costs_the_noise_itself_and_predicting_the_noise_costs_nothing():
    held = held_out()
    times = (10, 600)
    nothing = losses(lambda noisy, time, prompts: torch.zeros_like(noisy), held, DIFFUSION, times)
    expected = torch.stack([held.noise(time, 0, 0).square().mean(dim=(1, 2, 3)) for time in times], dim=1)
    torch.testing.assert_close(nothing, expected.double())

    def oracle(noisy: torch.Tensor, time: torch.Tensor, prompts: object) -> torch.Tensor:
        level = DIFFUSION.at(time[:1])
        return (noisy - level.alpha * held.latents) / level.sigma

    assert losses(oracle, held, DIFFUSION, times).max() < 1e-8


def test_noise_depends_on_the_picture_and_not_on_its_neighbours():
    held = held_out()
    assert torch.equal(held[2:4].noise(300, 1, 0), held.noise(300, 1, 0)[2:4])
    others = [held.noise(301, 1, 0), held.noise(300, 0, 0), held.noise(300, 1, 9)]
    assert all(not torch.equal(held.noise(300, 1, 0), other) for other in others)


def test_parts_measured_apart_are_the_whole_and_draws_are_averaged():
    held = held_out()

    def predict(noisy: torch.Tensor, time: torch.Tensor, prompts: object) -> torch.Tensor:
        return 0.3 * noisy

    whole = losses(predict, held, DIFFUSION, (50, 500), draws=3)
    parts = [losses(predict, held[part], DIFFUSION, (50, 500), draws=3) for part in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(losses(predict, held, DIFFUSION, (50, 500), draws=1), whole)


def test_of_a_flow_the_error_is_that_of_the_velocity_for_the_same_noise():
    held, times = held_out(), (9, 599)
    nothing = losses(lambda noisy, time, prompts: torch.zeros_like(noisy), held, FLOW, times)
    velocities = [held.noise(time, 0, 0) - held.latents for time in times]
    expected = torch.stack([velocity.square().mean(dim=(1, 2, 3)) for velocity in velocities], dim=1)
    torch.testing.assert_close(nothing, expected.double())

    def oracle(noisy: torch.Tensor, time: torch.Tensor, prompts: object) -> torch.Tensor:
        return (noisy - held.latents) / FLOW.at(time).sigma.view(-1, 1, 1, 1)

    assert losses(oracle, held, FLOW, times).max() < 1e-8
    assert FLOW.times[list(times)].tolist() == [10, 600]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_predictions_of_all_kinds_are_compared_in_the_same_terms(kind: str):
    x, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    process = FLOW if kind == "flow_prediction" else Diffusion.preserving(tiny_scheduler().alphas_cumprod, kind)
    times = torch.tensor([300, 800])
    level = process.at(times)
    said, noisy = target_of(x, noise, level, kind), add_noise(x, noise, level)
    found = in_terms(said, noisy, process, times)
    torch.testing.assert_close(found, target_of(x, noise, level, terms_of(process)), rtol=1e-4, atol=1e-4)
    if kind in ("epsilon", "flow_prediction"):
        assert found is said


def test_noising_is_the_schedulers():
    held, scheduler = held_out(2), tiny_scheduler()
    seen = []
    losses(lambda noisy, time, prompts: seen.append(noisy) or noisy, held, DIFFUSION, (321,))
    expected = scheduler.add_noise(held.latents, held.noise(321, 0, 0), torch.tensor([321, 321]))
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("shift", [None, 0.3])
def test_latents_are_shifted_and_scaled_and_decoding_undoes_it(shift: float | None):
    vae, images = tiny_vae(shift_factor=shift), torch.rand(3, 3, 16, 16)
    latents = encode_images(vae, images, batch=2)
    with torch.no_grad():
        raw = vae.encode(2 * images - 1).latent_dist.mean
        expected = (raw - (shift or 0)) * vae.config.scaling_factor
        decoded = vae.decode(raw).sample
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(decode_latents(vae, latents, batch=2), (decoded / 2 + 0.5).clamp(0, 1))


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="at least one picture; got none"):
        losses(lambda *_: torch.zeros(1), held_out()[:0], DIFFUSION, (1,))
    with pytest.raises(ValueError, match=r"timesteps 0 to 999; got \[1000\]"):
        losses(lambda *_: torch.zeros(1), held_out(), DIFFUSION, (1000,))


def test_a_vae_that_overflows_in_half_precision_computes_in_full():
    vae, images = tiny_vae(force_upcast=True), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in (vae.encoder.conv_in, vae.decoder.conv_in):
            layer.weight.mul_(2e4 / layer.weight.abs().max())
    vae.half()
    latents = encode_images(vae, images)
    assert latents.dtype == vae.dtype == torch.float16
    pictures = decode_latents(vae, latents)
    assert vae.dtype == torch.float16
    vae.float()
    torch.testing.assert_close(latents.float(), encode_images(vae, images), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pictures, decode_latents(vae, latents))
