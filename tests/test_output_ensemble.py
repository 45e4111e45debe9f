"""Laws of the ensemble at output level: whatever terms an expert has, it says what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from diffusemble import record_attention
from diffusemble.aggregators.storage import load_aggregator, save_aggregator
from diffusemble.experts.expert import Expert
from diffusemble.families.check import terms_of
from diffusemble.output_ensemble import OutputEnsembleDenoiser, assemble, build_output_aggregator, embed_level
from diffusemble.paths import Flow, Terms
from tests.families.parts import ATOL, draw, retrained, stable, tiny_auraflow_pipeline, tiny_pixart_pipeline, wider
from tiny import as_expert, tiny_sdxl_pipeline
from tiny_dit import tiny_flux, tiny_flux_pipeline, tiny_sd3, tiny_sd3_pipeline


def together(experts: Sequence[Expert], name: str = "mean", **options: Any) -> OutputEnsembleDenoiser:
    ensemble = assemble(experts, "output", name, options)
    assert isinstance(ensemble, OutputEnsembleDenoiser)
    return ensemble.eval()


def schnell() -> Expert:
    return as_expert(tiny_flux_pipeline(5, transformer=tiny_flux(5, guidance_embeds=False)), "schnell")


def medium() -> Expert:
    transformer = tiny_sd3(9, num_layers=3, dual_attention_layers=(), qk_norm=None)
    return as_expert(tiny_sd3_pipeline(4, transformer=transformer, text_encoder_3=None, tokenizer_3=None), "medium")


FAMILIES: dict[str, Callable[[], Expert]] = {
    "SD 1": stable,
    "SD 2": wider,
    "SDXL": lambda: as_expert(tiny_sdxl_pipeline(2), "xl"),
    "PixArt": lambda: as_expert(tiny_pixart_pipeline(), "pixart"),
    "AuraFlow": lambda: as_expert(tiny_auraflow_pipeline(), "auraflow"),
    "SD 3": lambda: as_expert(tiny_sd3_pipeline(), "sd3"),
    "SD 3 without T5": medium,
    "FLUX": lambda: as_expert(tiny_flux_pipeline(), "dev"),
    "FLUX without guidance": schnell,
}


@cache
def expert(name: str) -> Expert:
    """One of ``FAMILIES``, built once."""
    return FAMILIES[name]()


@pytest.mark.parametrize("name", FAMILIES)
def test_one_expert_draws_bit_for_bit_what_it_draws_alone(name: str) -> None:
    ensemble = together([expert(name)])
    options: list[dict[str, Any]] = [{}, {"guidance_scale": 1.0}]
    if "FLUX" not in name:
        options.append({"prompt": ["an owl", "a fox"], "negative_prompt": None, "num_images_per_prompt": 2})
    if name == "PixArt":
        options[2]["negative_prompt"] = ""
    for one in options:
        assert np.array_equal(draw(ensemble.pipeline(), **one), draw(ensemble.families[0].pipeline, **one))


@pytest.mark.parametrize("terms", ["v", "sample", "linear", "flow"])
def test_an_expert_in_other_terms_draws_the_same(terms: str) -> None:
    original = expert("SD 1")
    alone = draw(together([original]).pipeline())
    twin = retrained(original, terms)
    np.testing.assert_allclose(draw(together([original, twin], weights=(0, 1)).pipeline()), alone, atol=ATOL)
    np.testing.assert_allclose(draw(together([original, twin]).pipeline()), alone, atol=ATOL)
    if terms != "flow":  # whose sampler SD's pipeline cannot use
        np.testing.assert_allclose(
            draw(together([twin, original], weights=(0, 1)).pipeline()), draw(together([twin]).pipeline()), atol=ATOL
        )


@pytest.mark.parametrize("name", ["SD 1", "SDXL", "PixArt", "AuraFlow", "SD 3", "FLUX"])
def test_copies_of_one_expert_draw_what_it_draws(name: str) -> None:
    one = expert(name)
    copies = [Expert(f"copy {i}", one.denoiser, one.components, one.pipeline_class) for i in range(3)]
    np.testing.assert_allclose(draw(together(copies).pipeline()), draw(together([one]).pipeline()), atol=ATOL)


def test_who_has_all_the_weight_draws_alone_with_the_sampler_of_the_first() -> None:
    first, same, other = expert("SD 1"), stable("another", 4), expert("SD 2")
    ensemble = together([first, same], weights=(0, 1))
    assert np.array_equal(draw(ensemble.pipeline()), draw(ensemble.families[1].pipeline))  # nothing was converted
    ensemble = together([first, other], weights=(0, 1))
    np.testing.assert_allclose(draw(ensemble.pipeline()), draw(ensemble.families[1].pipeline), atol=ATOL)


@pytest.mark.parametrize("others", [("SD 2", "SDXL"), ("PixArt", "SD 2")])
def test_the_order_of_the_others_does_not_matter(others: tuple[str, str]) -> None:
    first, second, third = expert("SD 1"), *(expert(name) for name in others)
    one = draw(together([first, second, third], weights=(0.2, 0.5, 0.3)).pipeline())
    other = draw(together([first, third, second], weights=(0.2, 0.3, 0.5)).pipeline())
    np.testing.assert_allclose(one, other, atol=ATOL)


@pytest.mark.parametrize(
    ("one", "other", "guidance"),
    [
        ("SD 1", "SD 2", 4.0),
        ("SDXL", "SD 2", 4.0),
        ("PixArt", "SD 1", 4.0),
        ("PixArt", "SDXL", 4.0),
        ("SD 3", "SD 3 without T5", 4.0),
        ("FLUX without guidance", "FLUX", 3.5),  # what a guided model is told in an unguided one's pipeline
    ],
)
def test_with_one_sampler_it_does_not_matter_whose_pipeline_it_is(one: str, other: str, guidance: float) -> None:
    """A mean is the same in all terms, and so is everything else."""
    experts = expert(one), expert(other)
    first = draw(together(experts).pipeline(), guidance_scale=guidance)
    second = draw(together(experts[::-1]).pipeline(), guidance_scale=guidance)
    np.testing.assert_allclose(first, second, atol=ATOL)
    assert np.abs(first - draw(together(experts[:1]).pipeline(), guidance_scale=guidance)).max() > 1e-3


@pytest.mark.parametrize("names", [("AuraFlow", "SD 1", "SD 2"), ("SDXL", "AuraFlow")])
def test_flows_and_diffusions_draw_together(names: tuple[str, ...]) -> None:
    """On the sampler of a flow and on that of a diffusion; with all the weight on the first, it draws alone."""
    experts = [expert(name) for name in names]
    assert np.isfinite(draw(together(experts).pipeline())).all()
    weights = [1.0] + [0.0] * (len(experts) - 1)
    alone = draw(together(experts[:1]).pipeline())
    np.testing.assert_allclose(draw(together(experts, weights=weights).pipeline()), alone, atol=ATOL)


def test_several_prompts_and_pictures_are_those_of_each_alone() -> None:
    pipeline = together([expert("SD 1"), expert("SD 2"), expert("SDXL")]).pipeline()
    seeds = [torch.Generator().manual_seed(number) for number in range(4)]
    many = draw(
        pipeline,
        prompt=["an owl", "a much longer prompt than the other one"],
        negative_prompt=["", "blurry"],
        num_images_per_prompt=2,
        generator=seeds,
    )
    single = draw(pipeline, prompt="an owl", negative_prompt=None, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(many[1], single[0], atol=ATOL)


def test_every_expert_reads_its_own_text() -> None:
    """The same denoiser with another text encoder is another expert."""
    first, second = expert("SD 1"), stable("reader", 4)
    mixed = Expert("mixed", first.denoiser, second.components, first.pipeline_class)
    found = draw(together([first, mixed], weights=(0, 1)).pipeline())
    assert np.array_equal(found, draw(together([mixed]).pipeline()))
    assert not np.array_equal(found, draw(together([first]).pipeline()))


def test_prompts_of_several_text_encoders() -> None:
    """SDXL's second prompt, and SD 3's second and third, reach the encoders they are for."""
    for name, prompts in (("SDXL", ["prompt_2"]), ("SD 3", ["prompt_2", "prompt_3"])):
        ensemble = together([expert(name)])
        options = {prompt: f"{prompt} is another" for prompt in prompts}
        found = draw(ensemble.pipeline(), **options)
        assert np.array_equal(found, draw(ensemble.families[0].pipeline, **options))
        assert not np.array_equal(found, draw(ensemble.pipeline()))


# -- aggregators -------------------------------------------------------------------------------------------------------


def test_an_untrained_sabw_is_the_mean_and_learns_from_the_predictions() -> None:
    experts = [expert("SD 1"), expert("SD 2")]
    learned = together(experts, "sabw", preset="tiny")
    np.testing.assert_allclose(draw(learned.pipeline()), draw(together(experts).pipeline()), atol=ATOL)
    packed = learned.pipeline().encode_prompt(["an owl"], "cpu", 1, False)[0]
    learned(torch.randn(1, 4, 8, 8), 500, encoder_hidden_states=packed).sample.square().mean().backward()
    got = {name for name, weight in learned.named_parameters() if weight.grad is not None}
    assert got
    assert all(name.startswith("aggregator.") for name in got)


def test_maps_of_the_one_point_are_recorded() -> None:
    ensemble = together([expert("SD 1"), expert("SD 2")], weights=(3, 1))
    with record_attention(ensemble) as maps:
        draw(ensemble.pipeline())
    assert ensemble.points == maps.points == ("prediction",)
    assert [tuple(one.shape) for one in maps[0]] == [(2, 2, 8, 8)] * 2
    assert torch.equal(maps[0][0][:, 0], torch.full((2, 8, 8), 0.75))


def test_magicfusion_fuses_experts_that_differ() -> None:
    experts = [expert("SD 1"), expert("SD 2"), expert("PixArt")]
    ensemble = together(experts, "magicfusion", guidance=4.0)
    with record_attention(ensemble) as maps:
        assert np.isfinite(draw(ensemble.pipeline())).all()
    assert all(set(one.unique().tolist()) == {0.0, 1.0} for one in maps[0])


def test_an_aggregator_comes_back_from_its_file(tmp_path: Any) -> None:
    experts = [expert("SD 1"), expert("SD 2")]
    torch.manual_seed(5)
    ensemble = together(experts, "sabw", preset="tiny")
    torch.nn.init.normal_(ensemble.aggregator.at["0"].conv_out.weight)
    save_aggregator(ensemble.aggregator, tmp_path / "one.safetensors")
    again = OutputEnsembleDenoiser(experts, load_aggregator(tmp_path / "one.safetensors")).eval()
    assert np.array_equal(draw(again.pipeline()), draw(ensemble.pipeline()))


def test_the_level_of_noise_means_the_same_on_every_path() -> None:
    ours, flow = terms_of(expert("SD 1").components["scheduler"]), Terms(Flow(), "flow_prediction")
    times = torch.tensor([3.0, 400.0, 950.0])
    there = flow.path.time(ours.path.point(times).ratio)
    torch.testing.assert_close(embed_level(ours, times), embed_level(flow, there), atol=1e-4, rtol=1e-4)
    assert embed_level(ours, times).shape == (3, 128)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_routers_and_foreign_aggregators_are_refused() -> None:
    experts = [expert("SD 1"), expert("SD 2")]
    with pytest.raises(ValueError, match=r"TimestepSwitch chooses who runs.*mean, magicfusion or sabw"):
        together(experts, "timestep-switch")
    with pytest.raises(ValueError, match=r"was built for Sizes.*predictions need Sizes.*level: output"):
        OutputEnsembleDenoiser(experts, build_output_aggregator("sabw", experts[:1], preset="tiny"))
    with pytest.raises(ValueError, match="points must be indices from 0 to 0"):
        together(experts, points=(1,))


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


def test_text_that_was_not_packed_for_these_experts_is_refused() -> None:
    ensemble = together([expert("SD 1"), expert("SD 2")])
    with pytest.raises(ValueError, match=r"numbers per prompt, the texts of its 2 experts; got shape \[1, 16, 32\]"):
        ensemble(torch.randn(1, 4, 8, 8), 500, encoder_hidden_states=torch.zeros(1, 16, 32))


@pytest.mark.parametrize("name", ["SD 1", "SDXL", "SD 3"])
def test_skipped_layers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"clip_skip picks a layer of one text encoder.*Leave clip_skip out"):
        draw(together([expert(name)]).pipeline(), clip_skip=1)
