"""Laws of the ensemble at output level: whatever terms an expert has, it says what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diffusemble import record_attention
from diffusemble.aggregators.storage import load_aggregator, save_aggregator
from diffusemble.calls import guidance_of
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser, embed_level
from diffusemble.experts.expert import Expert
from diffusemble.families.check import terms_of
from diffusemble.parametrisation.paths import Flow, Terms
from diffusemble.registry import SCHEDULERS
from diffusemble.samplers import build_scheduler
from tests.families.parts import ATOL, FAMILIES, diffused, draw, expert, retrained, stable, together


@pytest.mark.parametrize("name", FAMILIES)
def test_one_expert_draws_bit_for_bit_what_it_draws_alone(name: str) -> None:
    ensemble = together([expert(name)])
    options: list[dict[str, Any]] = [{}]
    if name in ("SD 1", "SDXL"):
        options += [{"guidance_scale": 1.0}, {"prompt": ["an owl", "a fox"], "negative_prompt": None}]
        options[2] |= {"num_images_per_prompt": 2}
    for one in options:
        assert np.array_equal(draw(ensemble.pipeline(), **one), draw(ensemble.families[0].pipeline, **one))


@pytest.mark.parametrize("terms", ["v", "sample", "linear", "flow"])
def test_an_expert_in_other_terms_draws_the_same(terms: str) -> None:
    original = expert("SD 1")
    alone = draw(together([original]).pipeline())
    twin = retrained(original, terms)
    np.testing.assert_allclose(draw(together([original, twin], weights=(0, 1)).pipeline()), alone, atol=ATOL)
    np.testing.assert_allclose(draw(together([original, twin]).pipeline()), alone, atol=ATOL)
    if terms == "v":
        np.testing.assert_allclose(
            draw(together([twin, original], weights=(0, 1)).pipeline()), draw(together([twin]).pipeline()), atol=ATOL
        )


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_an_expert_in_other_terms_draws_the_same_with_every_sampler(sampler: str) -> None:
    """Whatever the sampler tells the first expert between and beside the timesteps that it was trained at."""
    original = expert("SD 1")
    alone, twin = (
        together(experts, weights=[0.0] * (len(experts) - 1) + [1.0]).pipeline()
        for experts in ([original], [original, retrained(original, "flow")])
    )
    for pipeline in (alone, twin):
        pipeline.scheduler = build_scheduler(sampler, pipeline.scheduler.config)
    found, expected = (draw(one, num_inference_steps=3, negative_prompt=None) for one in (twin, alone))
    np.testing.assert_allclose(found, expected, atol=ATOL)


@pytest.mark.parametrize("name", ["Chroma", "Z-Image"])
def test_a_flow_that_became_a_diffusion_draws_the_same(name: str) -> None:
    """With its masked text, on another path, told other times, asked for another kind of prediction."""
    original = expert(name)
    alone = draw(together([original]).pipeline())
    twin = diffused(original)
    for weights in ((0, 1), (1, 1)):
        np.testing.assert_allclose(draw(together([original, twin], weights=weights).pipeline()), alone, atol=ATOL)


@pytest.mark.parametrize("name", ["SD 1", "SDXL", "PixArt", "AuraFlow", "SD 3", "FLUX", "Chroma", "Z-Image"])
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
        ("SD 3", "SD 3 without T5", 4.0),
        ("FLUX without guidance", "FLUX", 2.5),  # who has a guidance embedding is told, in whosever pipeline
    ],
)
def test_with_one_sampler_it_does_not_matter_whose_pipeline_it_is(one: str, other: str, guidance: float) -> None:
    """A mean is the same in all terms, and so is everything else."""
    experts = expert(one), expert(other)
    first = draw(together(experts).pipeline(), guidance_scale=guidance)
    second = draw(together(experts[::-1]).pipeline(), guidance_scale=guidance)
    np.testing.assert_allclose(first, second, atol=ATOL)
    assert np.abs(first - draw(together(experts[:1]).pipeline(), guidance_scale=guidance)).max() > 1e-3


@pytest.mark.parametrize("other", ["FLUX", "FLUX without guidance"])
def test_chroma_and_flux_draw_the_same_in_either_pipeline(other: str) -> None:
    """Guided as `generate` guides: asked twice, and who has a guidance embedding is told 1."""

    def drawn(*names: str) -> np.ndarray:
        pipeline = together([expert(name) for name in names]).pipeline()
        return draw(pipeline, **guidance_of(pipeline, 4.0, ["blurry"]))

    first = drawn(other, "Chroma")
    assert np.array_equal(first, drawn("Chroma", other))
    assert np.abs(first - drawn("Chroma")).max() > 1e-3


@pytest.mark.parametrize("others", [("FLUX",), ("FLUX without guidance", "Chroma")])
def test_z_image_and_its_relatives_draw_the_same_in_either_pipeline(others: tuple[str, ...]) -> None:
    """With one sampler: Z-Image asks for both halves of guidance at once, and adds them up in another way."""
    names, steps = ("Z-Image", *others), expert("FLUX").components["scheduler"]
    experts = [
        replace(one, components={**one.components, "scheduler": steps}) for one in (expert(name) for name in names)
    ]

    def drawn(*experts: Expert) -> np.ndarray:
        pipeline = together(experts).pipeline()
        return draw(pipeline, **guidance_of(pipeline, 4.0, ["of many fingers"]))

    first = drawn(*experts)
    for place in range(1, len(experts)):
        np.testing.assert_allclose(drawn(*experts[place:], *experts[:place]), first, atol=ATOL)
    assert np.abs(first - drawn(experts[0])).max() > 1e-3


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
    ours, flow = terms_of(expert("SD 1").components["scheduler"]), Terms(Flow(1000), "flow_prediction")
    times = torch.tensor([3.0, 400.0, 950.0])
    there = flow.path.time(ours.path.point(times).ratio)
    torch.testing.assert_close(embed_level(ours, times), embed_level(flow, there), atol=1e-4, rtol=1e-4)
    assert embed_level(ours, times).shape == (3, 128)
