"""Who may meet at the output, and who may not and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, LCMScheduler
from torch import nn

from diffusemble import OutputEnsembleDenoiser
from diffusemble.experts.expert import Expert
from diffusemble.families.check import families_of, terms_of
from diffusemble.parametrisation.paths import Flow, Terms, VariancePreserving
from stock import small_pipeline, small_unet
from tests.families.parts import stable, wider
from tiny import as_expert, tiny_scheduler, tiny_vae
from tiny_dit import tiny_chroma_pipeline, tiny_flow_scheduler, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_qwen import tiny_qwen
from tiny_z_image import tiny_z_image, tiny_z_image_pipeline


def changed(expert: Expert, **parts: Any) -> Expert:
    return replace(expert, components={**expert.components, **parts})


@pytest.mark.parametrize(
    ("config", "what", "mine"),
    [
        ({"scaling_factor": 0.13025}, "scaling_factor", 0.13025),
        ({"shift_factor": 0.1}, "shift_factor", 0.1),
        ({"latent_channels": 8}, "latent_channels", 8),
    ],
)
def test_latents_that_mean_something_else_are_refused_by_property(
    config: dict[str, Any], what: str, mine: float
) -> None:
    other = changed(wider(), vae=tiny_vae(**config))
    with pytest.raises(
        ValueError, match=rf"Expert 2 \('sd2'\): vae {what} is {mine}, but expert 1 \('sd1'\) has .*VAE"
    ):
        OutputEnsembleDenoiser([stable(), other])


@pytest.mark.parametrize("make", [tiny_chroma_pipeline, tiny_z_image_pipeline])
def test_relatives_of_flux_meet_it_and_no_sd1(make: Callable[[], Any]) -> None:
    other = as_expert(make(), "other")
    assert len(families_of([as_expert(tiny_flux_pipeline(), "dev"), other])) == 2
    message = r"Expert 2 \('other'\): vae scaling_factor is 0.36.*FLUX.1, Chroma and Z-Image"
    with pytest.raises(ValueError, match=message):
        families_of([stable(), other])


def test_a_z_image_for_editing_is_refused() -> None:
    editing = tiny_z_image_pipeline(transformer=tiny_z_image(siglip_feat_dim=8))
    with pytest.raises(ValueError, match=r"reads several, .* Use experts of Z-Image or Z-Image-Turbo"):
        families_of([as_expert(tiny_flux_pipeline(), "dev"), as_expert(editing, "editing")])


def test_an_sd3_does_not_meet_an_sd1() -> None:
    with pytest.raises(ValueError, match=r"Expert 2 \('sd3'\): vae scaling_factor is 0.36, but expert 1"):
        OutputEnsembleDenoiser([stable(), as_expert(tiny_sd3_pipeline(), "sd3")])


@pytest.mark.parametrize("place", [0, 1])
def test_inpainting_models_are_refused_in_company(place: int) -> None:
    experts = [stable(), as_expert(small_pipeline(1, unet=small_unet(1, in_channels=9)), "inpainting")]
    with pytest.raises(ValueError, match="number of channels of the denoiser's input is"):
        OutputEnsembleDenoiser(experts[:: 1 if place else -1])


@pytest.mark.parametrize("part", ["vae", "scheduler", "text_encoder", "tokenizer"])
def test_incomplete_experts_are_refused(part: str) -> None:
    one = stable()
    bare = replace(one, components={name: value for name, value in one.components.items() if name != part})
    with pytest.raises(ValueError, match=rf"Expert 2 \('sd1'\) has no {part}.*load_experts"):
        families_of([wider(), bare])
    with pytest.raises(ValueError, match=r"Expert 1 \('sd1'\) has no pipeline class"):
        families_of([replace(one, pipeline_class=None)])
    with pytest.raises(ValueError, match=r"Expert 1 \('expert 1'\) has no vae"):
        OutputEnsembleDenoiser([one.denoiser])  # type: ignore[list-item]


def test_unknown_denoisers_are_refused() -> None:
    class Other(nn.Module):
        pass

    with pytest.raises(
        ValueError, match=r"Unknown denoiser class for ensembles at output level 'Other'. Choose one of"
    ):
        families_of([replace(stable(), denoiser=Other())])


def test_denoisers_that_can_only_meet_inside_are_sent_there() -> None:
    message = r"'sd1' is a \w+ \(Qwen-Image\), which cannot be combined at output level yet.*level: block"
    with pytest.raises(ValueError, match=message):
        OutputEnsembleDenoiser([wider(), replace(stable(), denoiser=tiny_qwen())])


def test_terms_are_read_from_the_scheduler() -> None:
    table = tiny_scheduler().alphas_cumprod
    config = tiny_scheduler(prediction_type="v_prediction").config
    for cls in (DDPMScheduler, EulerDiscreteScheduler, LCMScheduler):
        assert terms_of(cls.from_config(config)) == Terms(VariancePreserving(table), "v_prediction")
    assert terms_of(tiny_flow_scheduler()) == Terms(Flow(1000), "flow_prediction")
    zero = terms_of(tiny_scheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    assert float(zero.path.point(torch.tensor([999])).alpha) == 0


def test_schedulers_of_other_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="EDMEulerScheduler has neither a table of ᾱ"):
        terms_of(EDMEulerScheduler())
    odd = tiny_scheduler()
    odd.register_to_config(prediction_type="magic")
    with pytest.raises(ValueError, match="predict epsilon, v_prediction"):
        terms_of(odd)
