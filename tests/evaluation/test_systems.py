"""The compared systems against what they must equal."""

import pytest
import torch

from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.evaluation.heldout import HeldOut
from diffusemble.evaluation.routing import expert_weights
from diffusemble.evaluation.systems import System, average_expert, build_systems, select
from diffusemble.experts.expert import Expert
from diffusemble.fusion import mean
from diffusemble.training.schedule import process_of
from tests.tiny import randomised, tiny_pipeline, tiny_scheduler, tiny_text_encoder
from tests.tiny_flux2 import tiny_flux2_pipeline

PROMPTS = ("a fox", "a red jug")


def expert(seed: int, **parts: object) -> Expert:
    pipeline = tiny_pipeline(seed, **parts)
    components = {name: part for name, part in pipeline.components.items() if part is not None and name != "unet"}
    return Expert(f"expert-{seed}", pipeline.unet, components, type(pipeline))


@pytest.fixture(scope="module")
def experts() -> tuple[Expert, ...]:
    shared = tiny_text_encoder()
    return expert(0, text_encoder=shared), expert(1, text_encoder=shared)


@pytest.fixture(scope="module")
def ensemble(experts: tuple[Expert, ...]) -> EnsembleDenoiser:
    torch.manual_seed(0)
    aggregator = build_aggregator("sabw", [e.denoiser for e in experts], width=64, heads=4, layers=1)
    return EnsembleDenoiser(experts, randomised(aggregator)).eval()


@pytest.fixture(scope="module")
def predictions(ensemble: EnsembleDenoiser) -> dict[str, torch.Tensor]:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([400, 400])
    return {s.name: s.predict(noisy, times, PROMPTS) for s in build_systems(ensemble, ensemble.experts[0])}


def test_systems_are_the_experts_the_controls_and_the_ensemble(predictions):
    assert list(predictions) == [
        *("expert-0", "expert-1", "expert-0-inside", "expert-1-inside"),
        *("weight-average", "noise-average", "block-average", "magicfusion", "ensemble", "base"),
    ]


def test_an_expert_inside_the_framework_predicts_what_it_predicts_alone(predictions):
    for name in ("expert-0", "expert-1"):
        torch.testing.assert_close(predictions[f"{name}-inside"], predictions[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(predictions["base"], predictions["expert-0"])


def test_the_noise_average_is_the_mean_of_the_experts_and_the_others_are_not(predictions):
    average = mean([predictions["expert-0"], predictions["expert-1"]])
    torch.testing.assert_close(predictions["noise-average"], average, rtol=1e-5, atol=1e-6)
    for name in ("weight-average", "block-average", "ensemble"):
        assert not torch.allclose(predictions[name], average, atol=1e-3)


def test_magicfusion_predicts_at_every_place_what_one_expert_predicts(predictions):
    alone = torch.stack([predictions["expert-0"], predictions["expert-1"]])
    distance = (predictions["magicfusion"] - alone).abs().amax(dim=2)
    assert distance.amin(dim=0).max() < 1e-5
    assert set(distance.argmin(dim=0).unique().tolist()) == {0, 1}


def test_magicfusion_measures_with_the_guidance_it_draws_with(ensemble):
    for guidance in (3.0, 7.5):
        systems = {system.name: system for system in build_systems(ensemble, guidance=guidance)}
        assert systems["magicfusion"].pipeline.unet.aggregator.options.guidance == guidance


def test_copies_of_one_expert_average_to_that_expert(experts):
    merged = average_expert([experts[1], experts[1]])
    assert merged.denoiser is experts[1].denoiser
    assert merged.components["text_encoder"] is experts[1].components["text_encoder"]


def test_different_text_encoders_are_averaged_too():
    a, b = expert(0), expert(1)
    key = "embeddings.token_embedding.weight"
    tables = [dict(e.components["text_encoder"].named_parameters()) for e in (a, b, average_expert([a, b]))]
    name = next(name for name in tables[0] if name.endswith(key))
    torch.testing.assert_close(tables[2][name], (tables[0][name] + tables[1][name]) / 2)


def test_a_picture_does_not_depend_on_its_batch(ensemble):
    system = build_systems(ensemble)[-1]
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0}
    both = system.draw(PROMPTS, (3, 8), 0, **settings)
    second = system.draw(PROMPTS[1:], (8,), 0, **settings)
    assert both.shape == (2, 3, 16, 16)
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)


def test_a_pipeline_that_takes_a_picture_first_draws_too():
    pipeline = tiny_flux2_pipeline()
    drawn = [
        System("one", "one", "expert", pipeline).draw([prompt], (0,), 0, height=16, width=16, num_inference_steps=1)
        for prompt in PROMPTS
    ]
    assert drawn[0].shape == (1, 3, 16, 16)
    assert not torch.equal(*drawn)


def test_recorded_weights_sum_to_one_and_one_hot_maps_show(ensemble):
    held = HeldOut(("a", "b"), PROMPTS, torch.randn(2, 4, 8, 8))
    diffusion = process_of(tiny_scheduler())
    systems = {system.name: system for system in build_systems(ensemble)}
    weights = expert_weights(ensemble, systems["ensemble"].predict, held, diffusion, (100, 300, 700))
    assert weights.shape == (2, 3, len(ensemble.points), 2)
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(weights.shape[:3]))
    only = systems["expert-1-inside"]
    shown = expert_weights(only.pipeline.unet, only.predict, held, diffusion, (100,))
    assert (shown[..., 1] == 1).all()


def test_unknown_systems_are_named(ensemble):
    systems = build_systems(ensemble)
    assert [system.name for system in select(systems, ("ensemble", "expert-0"))] == ["ensemble", "expert-0"]
    with pytest.raises(ValueError, match=r"no system 'afa'.*expert-0.*weight-average"):
        select(systems, ("afa",))
