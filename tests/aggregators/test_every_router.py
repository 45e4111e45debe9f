"""What every router must satisfy, for every row of the table that is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from aggregators.routing import (
    IMAGES,
    MIXTURES,
    ROUTERS,
    Counter,
    denoisers,
    hard,
    picked,
    picked_whole,
    routed,
    straight_through,
)
from diffusemble import EnsembleDenoiser, pack_text, record_attention
from diffusemble.aggregators import load_aggregator, save_aggregator
from laws import EXPERTS, Call, a_call


@pytest.mark.parametrize("name", ROUTERS)
def test_copies_of_one_expert_are_that_expert(name: str):
    models, call = denoisers(1, 1, 1), a_call(images=IMAGES)
    call = Call(call.sample, call.timestep, call.texts[:1] * EXPERTS)
    ensemble, expected = routed(name, models), call.alone(models[0])
    torch.testing.assert_close(call.of(ensemble), expected, rtol=0, atol=1e-12)
    trained = ensemble.train()(call.sample, call.timestep, pack_text(call.texts)).sample
    torch.testing.assert_close(trained.detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_that_always_chooses_one_expert_is_that_expert(name: str):
    models, call = denoisers(1, 2, 3), a_call()
    for chosen in range(EXPERTS):
        ensemble = routed(name, models)
        always = torch.eye(EXPERTS, dtype=torch.float64)[[chosen] * len(call.sample)]
        ensemble.aggregator.route = lambda *_, gates=always: gates  # type: ignore[method-assign]
        assert torch.equal(call.of(ensemble), call.alone(models[chosen], chosen))


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_expert_is_itself(name: str, dtype: torch.dtype):
    models, call = denoisers(1, dtype=dtype), a_call(experts=1, dtype=dtype)
    assert torch.equal(call.of(routed(name, models)), call.alone(models[0]))


@pytest.mark.parametrize("name", ROUTERS)
def test_a_sample_does_not_depend_on_its_batch(name: str):
    ensemble, call = routed(name, denoisers(1, 2, 3)), a_call(images=IMAGES)
    together = call.of(ensemble)
    for i in range(IMAGES):
        alone = Call(call.sample[i : i + 1], call.timestep[i : i + 1], tuple(text[i : i + 1] for text in call.texts))
        torch.testing.assert_close(alone.of(ensemble), together[i : i + 1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_order_of_experts_does_not_matter(name: str):
    models, call, order = denoisers(1, 2, 3), a_call(images=IMAGES), (2, 0, 1)
    ensemble, other = routed(name, models), routed(name, [models[i] for i in order])
    weights = ensemble.aggregator.state_dict()
    turned_weights = {key: weights[key][list(order)] for key in weights if key.endswith("conv_out.weight")}
    other.aggregator.load_state_dict({**weights, **turned_weights})
    turned = Call(call.sample, call.timestep, tuple(call.texts[i] for i in order))
    torch.testing.assert_close(call.of(ensemble), turned.of(other), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ROUTERS)
def test_choices_are_recorded_as_one_hot_maps(name: str):
    ensemble, call = routed(name, denoisers(1, 2, 3, dtype=torch.float32)), a_call(IMAGES, torch.float32, IMAGES)
    call = Call(call.sample, call.timestep, call.texts[:EXPERTS])
    with record_attention(ensemble) as maps:
        call.of(ensemble)
        call.of(ensemble)
    assert len(maps) == 25
    for point, calls in enumerate(maps.calls):
        assert len(calls) == (2 if point in ensemble.aggregator.points else 0)
        for each in calls:
            assert each.shape[:2] == (IMAGES, EXPERTS)
            assert torch.equal(each.amax(dim=1), torch.ones_like(each[:, 0]))
            assert torch.equal(each.sum(dim=1), torch.ones_like(each[:, 0]))
    assert maps[0][0].shape[2:] == (9, 13)


@pytest.mark.parametrize("name", ROUTERS)
def test_what_is_saved_is_loaded(name: str, tmp_path: Path):
    models, call = denoisers(1, 2, 3, dtype=torch.float32), a_call(dtype=torch.float32)
    ensemble = routed(name, models)
    save_aggregator(ensemble.aggregator, tmp_path / "router.safetensors")
    loaded = load_aggregator(tmp_path / "router.safetensors")
    assert (loaded.sizes, loaded.options) == (ensemble.aggregator.sizes, ensemble.aggregator.options)
    assert torch.equal(call.of(EnsembleDenoiser(models, loaded).eval()), call.of(ensemble))


@pytest.mark.parametrize("name", ROUTERS)
def test_only_the_router_learns(name: str):
    models, call = denoisers(1, 2, 3, dtype=torch.float32), a_call(dtype=torch.float32)
    ensemble = routed(name, models).train()
    sample = call.sample.clone().requires_grad_()
    ensemble(sample, call.timestep, pack_text(call.texts)).sample.square().mean().backward()
    assert sample.grad is not None
    assert sample.grad.any()
    assert all(parameter.grad is None for model in models for parameter in model.parameters())
    for key, parameter in ensemble.aggregator.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", ROUTERS)
def test_only_the_chosen_experts_run(name: str):
    ensemble, call = routed(name, denoisers(1, 2, 3, dtype=torch.float32)), a_call(EXPERTS, torch.float32, IMAGES)
    with record_attention(ensemble) as maps, Counter(ensemble) as counter:
        call.of(ensemble)
    chosen = {point: calls[0][:, :, 0, 0].sum(dim=0).tolist() for point, calls in enumerate(maps.calls) if calls}
    assert max(chosen[0]) < IMAGES, "this test needs samples that choose differently"
    for layer, point in enumerate((0, 12, 24)):
        assert [samples[layer] for samples in counter.samples] == chosen[max(p for p in chosen if p <= point)]


@pytest.mark.parametrize("name", MIXTURES)
def test_in_training_all_experts_take_part(name: str):
    ensemble, call = routed(name, denoisers(1, 2, 3, dtype=torch.float32)).train(), a_call(dtype=torch.float32)
    with Counter(ensemble) as counter:
        ensemble(call.sample, call.timestep, pack_text(call.texts))
        assert counter.samples == [[len(call.sample)] * 3] * EXPERTS
        call.of(ensemble)  # without gradients
    assert sum(samples[0] for samples in counter.samples) == (EXPERTS + 1) * len(call.sample)


# -- against references that let everybody run and pick one ----------------------------------------------------------


@pytest.mark.parametrize("points", ["all", "levels", (0, 3, 16)])
def test_a_block_mixture_picks_among_the_blocks(points: str | tuple[int, ...]):
    ensemble, call = routed("mixture-blocks", denoisers(1, 2, 3), points=points), a_call(images=IMAGES)
    with torch.no_grad():
        expected = picked(ensemble, call)
    torch.testing.assert_close(call.of(ensemble), expected, rtol=0, atol=1e-11)


def test_a_denoiser_mixture_picks_among_the_predictions():
    ensemble, call = routed("mixture-denoisers", denoisers(1, 2, 3)), a_call(images=IMAGES)
    with torch.no_grad():
        expected = picked_whole(ensemble, call)
    torch.testing.assert_close(call.of(ensemble), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(picked(ensemble, call), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("name", "reference"), [("mixture-blocks", picked), ("mixture-denoisers", picked_whole)])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gradients_are_those_of_the_reference(name: str, reference, temperature: float):
    ensemble, call = routed(name, denoisers(1, 2, 3), temperature=temperature).train(), a_call()

    def gradients(predict) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(3)
        prediction = predict()
        found = torch.autograd.grad(prediction.square().mean(), list(ensemble.aggregator.parameters()))
        return prediction.detach(), list(found)

    ours = gradients(lambda: ensemble(call.sample, call.timestep, pack_text(call.texts)).sample)
    theirs = gradients(lambda: reference(ensemble, call, straight_through(temperature)))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_the_timestep_decides_who_runs():
    models, call = denoisers(1, 2, 3), a_call(images=IMAGES)
    timesteps = torch.tensor([999, 700, 699, 200, 0])
    call = Call(call.sample, timesteps, call.texts)
    alone = [call.alone(model, index) for index, model in enumerate(models)]
    expected = torch.stack([alone[expert][row] for row, expert in enumerate((0, 0, 1, 1, 2))])
    ensemble = routed("timestep-switch", models, thresholds=(700, 200))
    torch.testing.assert_close(call.of(ensemble), expected, rtol=0, atol=1e-12)
    equal_parts = routed("timestep-switch", models).aggregator
    assert equal_parts.thresholds == pytest.approx((2000 / 3, 1000 / 3))


def test_hard_is_the_largest():
    assert hard(torch.tensor([[1.0, 3.0, 2.0]])).tolist() == [[0, 1, 0]]
