"""What an ensemble at output level refuses, and why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionAdapterPipeline, StableDiffusionControlNetPipeline

from diffusemble import OutputEnsembleDenoiser, build_output_aggregator
from diffusemble.experts.expert import Expert
from stock import small_pipeline, small_unet
from tests.families.parts import draw, expert, together
from tiny import as_expert
from tiny_ensembles import ATOL, controlnet
from unet_inputs import image_prompt_weights


def test_routers_and_foreign_aggregators_are_refused() -> None:
    experts = [expert("SD 1"), expert("SD 2")]
    with pytest.raises(ValueError, match=r"TimestepSwitch chooses who runs.*mean, magicfusion or sabw"):
        together(experts, "timestep-switch")
    with pytest.raises(ValueError, match=r"was built for Sizes.*experts need Sizes.*build_output_aggregator"):
        OutputEnsembleDenoiser(experts, build_output_aggregator("sabw", experts[:1], preset="tiny"))
    with pytest.raises(ValueError, match="points must be indices from 0 to 0"):
        together(experts, points=(1,))


@pytest.mark.parametrize("points", ["levels", "prediction", "last"])
def test_the_one_point_may_be_named(points: str) -> None:
    experts = [expert("SD 1"), expert("SD 2")]
    assert build_output_aggregator("sabw", experts, preset="tiny", points=points).points == {0}
    with pytest.raises(ValueError, match=r"no point 'mid'. Their points in running order: prediction; or"):
        build_output_aggregator("sabw", experts, preset="tiny", points="mid")


def test_what_only_one_architecture_understands_is_refused_by_name() -> None:
    ensemble = together([expert("SD 1"), expert("SD 2")])
    packed = ensemble.pipeline().encode_prompt(["an owl"], "cpu", 1, False)[0]
    call = {"sample": torch.randn(1, 4, 8, 8), "timestep": 500, "encoder_hidden_states": packed}
    for name, value in {
        "mid_block_additional_residual": torch.zeros(1, 32, 1, 1),
        "cross_attention_kwargs": {"scale": 0.5},
        "class_labels": torch.zeros(1),
    }.items():
        with pytest.raises(ValueError, match=rf"{name} is made for one architecture.*Leave it out"):
            ensemble(**call, **{name: value})
    with pytest.raises(ValueError, match=r"image_embeds is made for one architecture"):
        ensemble(**call, added_cond_kwargs={"image_embeds": [torch.zeros(1, 1, 4)]})
    assert torch.isfinite(ensemble(**call, cross_attention_kwargs={}).sample).all()


def test_adapters_of_one_architecture_are_refused_before_they_are_installed() -> None:
    ensemble = together([expert("SD 1"), expert("PixArt")])
    net = controlnet(ensemble.denoisers[0])
    for cls, part in ((StableDiffusionControlNetPipeline, "controlnet"), (StableDiffusionAdapterPipeline, "adapter")):
        with pytest.raises(ValueError, match=r"(ControlNet|T2I-adapter) is made for one architecture.*level: block"):
            ensemble.pipeline(cls, **{part: net})
    weights = image_prompt_weights(ensemble.denoisers[0])
    where = {"subfolder": None, "weight_name": "none", "image_encoder_folder": None}
    with pytest.raises(ValueError, match="An IP-Adapter is made for one architecture"):
        ensemble.pipeline().load_ip_adapter(weights, **where)
    with pytest.raises(AttributeError, match="enable_freeu is asked of every expert, and PixArtTransformer2DModel"):
        ensemble.pipeline().enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert not hasattr(ensemble.denoisers[0].up_blocks[0], "s1")  # none got it


def test_text_that_was_not_packed_for_these_experts_is_refused() -> None:
    ensemble = together([expert("SD 1"), expert("SD 2")])
    with pytest.raises(ValueError, match=r"numbers per prompt, the texts of its 2 experts; got shape \[1, 16, 32\]"):
        ensemble(torch.randn(1, 4, 8, 8), 500, encoder_hidden_states=torch.zeros(1, 16, 32))


@pytest.mark.parametrize("name", ["SD 1", "SDXL", "SD 3"])
def test_skipped_layers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"clip_skip picks a layer of one text encoder.*Leave clip_skip out"):
        draw(together([expert(name)]).pipeline(), clip_skip=1)


def test_a_consistency_model_leaves_nobody_without_guidance() -> None:
    """As the first expert it is told the scale, and the pipeline asks for no guidance."""

    def lcm(name: str = "lcm") -> Expert:
        return as_expert(small_pipeline(0, unet=small_unet(0, time_cond_proj_dim=8)), name)

    plain = as_expert(small_pipeline(3), "plain")
    with pytest.raises(ValueError, match=r"'lcm'\) is told the guidance scale .* expert 2 \('plain'\) .* guidance 1"):
        draw(together([lcm(), plain]).pipeline(), guidance_scale=4.0)
    draw(together([lcm(), plain]).pipeline(), guidance_scale=1.0)
    draw(together([plain, lcm()]).pipeline(), guidance_scale=4.0)
    alone, alike = (together([lcm(name) for name in names]).pipeline() for names in (("a",), ("a", "b")))
    for scale in (1.0, 4.0):
        expected = draw(alone, guidance_scale=scale)
        np.testing.assert_allclose(draw(alike, guidance_scale=scale), expected, atol=ATOL)
