"""The ensemble takes every call that its experts take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from peft.tuners.tuners_utils import BaseTunerLayer

from diffusemble import EnsembleDenoiser, build_aggregator, pack_text, record_attention
from laws import Call, a_call, denoisers, ensemble_of
from tiny import tiny_sdxl_unet, tiny_unet
from unet_cases import CASES, Case
from unet_inputs import BATCH, packed, plain_inputs, randn


@pytest.mark.parametrize("name", ["sd1-controlnet-adapter", "sdxl-controlnet-adapter"])
def test_residuals_are_added_once_and_stay_as_they_were(name: str):
    case = CASES[name]
    experts = [case.unet(), copy.deepcopy(case.unet())]
    inputs = packed(case.inputs(experts[0]), 2)
    kept = copy.deepcopy(inputs)
    with torch.no_grad():
        EnsembleDenoiser(experts)(case.sample(experts[0]), 7, **inputs)
    for key in ("down_block_additional_residuals", "down_intrablock_additional_residuals"):
        assert all(map(torch.equal, inputs[key], kept[key]))
        assert len(inputs[key]) == len(kept[key])


def test_every_expert_reads_its_own_text():
    models, call = denoisers(1, 2), a_call(experts=2)
    ensemble = ensemble_of("mean", models, points="last")
    average = (call.alone(models[0], 0) + call.alone(models[1], 1)) / 2
    torch.testing.assert_close(call.of(ensemble), average, rtol=0, atol=1e-12)
    assert (call.of(ensemble) - Call(call.sample, call.timestep, call.texts[::-1]).of(ensemble)).abs().max() > 1e-3


def test_every_sdxl_expert_has_its_own_pooled_text_and_mask():
    unet = tiny_sdxl_unet()
    ensemble = EnsembleDenoiser([unet, unet], build_aggregator("mean", [unet] * 2, points="last"))
    first, second = plain_inputs(unet), plain_inputs(unet)
    second["added_cond_kwargs"] = {**first["added_cond_kwargs"], "text_embeds": randn(BATCH, 32, seed=9)}
    first["encoder_attention_mask"], second["encoder_attention_mask"] = torch.ones(BATCH, 7), torch.ones(BATCH, 7)
    second["encoder_attention_mask"][:, 3:] = 0
    both = packed(first, 2)
    both["added_cond_kwargs"]["text_embeds"] = pack_text(
        [own["added_cond_kwargs"]["text_embeds"] for own in (first, second)]
    )
    both["encoder_attention_mask"] = torch.cat([own["encoder_attention_mask"] for own in (first, second)], dim=1)
    sample = randn(BATCH, 4, 8, 8)
    with torch.no_grad():
        expected = (unet(sample, 7, **first).sample + unet(sample, 7, **second).sample) / 2
        assert (unet(sample, 7, **first).sample - expected).abs().max() > 1e-3
        torch.testing.assert_close(ensemble(sample, 7, **both).sample, expected)


def test_a_shared_mask_serves_every_expert():
    case = CASES["sd1-text-mask"]
    unet = case.unet()
    inputs = packed(case.inputs(unet), 2)
    mask = inputs["encoder_attention_mask"]
    ensemble = EnsembleDenoiser([unet, unet])
    with torch.no_grad():
        shared = ensemble(case.sample(unet), 7, **inputs).sample
        each = ensemble(
            case.sample(unet), 7, **{**inputs, "encoder_attention_mask": torch.cat([mask, mask], dim=1)}
        ).sample
    assert torch.equal(shared, each)


def test_calls_by_position_by_name_and_without_a_record_agree():
    unet = tiny_unet()
    ensemble, text, sample = (
        EnsembleDenoiser([unet]),
        plain_inputs(unet)["encoder_hidden_states"],
        randn(BATCH, 4, 8, 8),
    )
    with torch.no_grad():
        record = ensemble(sample, 7, text)
        results = (
            record.sample,
            ensemble(sample=sample, timestep=7, encoder_hidden_states=text)[0],
            ensemble(sample, 7, encoder_hidden_states=text, return_dict=False)[0],
            ensemble(sample, 7, text, None, None, None, None, None, None, None, None, None, False)[0],
        )
    assert isinstance(record, UNet2DConditionOutput)
    assert isinstance(ensemble(sample, 7, text, return_dict=False), tuple)
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_lora_scale_comes_back_after_a_failure():
    case = CASES["sd1-lora"]
    unet = case.unet()
    layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer.scaling["default"] for layer in layers]
    with pytest.raises(RuntimeError, match="expected input"):
        EnsembleDenoiser([unet, unet])(randn(BATCH, 5, 8, 8), 7, **packed(case.inputs(unet), 2))
    assert [layer.scaling["default"] for layer in layers] == pytest.approx(before)


def test_freeu_can_be_switched_on_and_off():
    case = Case(tiny_unet)
    experts = [tiny_unet(1), tiny_unet(2)]
    ensemble, inputs = EnsembleDenoiser(experts), packed(case.inputs(experts[0]), 2)
    sample = case.sample(experts[0])
    with torch.no_grad():
        plain = ensemble(sample, 7, **inputs).sample
        ensemble.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        assert (ensemble(sample, 7, **inputs).sample - plain).abs().max() > 1e-3
        ensemble.disable_freeu()
        assert torch.equal(ensemble(sample, 7, **inputs).sample, plain)


def test_gradient_checkpointing_gives_the_same_gradients():
    models, call = denoisers(1, 2), a_call(experts=2)
    ensemble = ensemble_of("sabw", models).train()
    gradients = []
    for _ in range(2):
        ensemble.zero_grad()
        ensemble(call.sample, call.timestep, pack_text(call.texts)).sample.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in ensemble.aggregator.parameters()])
        ensemble.enable_gradient_checkpointing()
    assert all(map(torch.equal, *gradients))


def test_recording_sees_only_what_is_aggregated_and_stops():
    models, call = denoisers(1, 2), a_call(experts=2)
    ensemble = ensemble_of("sabw", models, points=(3, 24))
    with record_attention(ensemble) as maps:
        call.of(ensemble)
    call.of(ensemble)
    assert [len(calls) for calls in maps.calls] == [int(point in (3, 24)) for point in range(25)]
    assert maps.points[3] == "down.0.downsample"
    assert maps[3][0].shape == (2, 2, 5, 7)


def test_a_copied_ensemble_is_independent():
    ensemble, call = ensemble_of("sabw", denoisers(1, 2)), a_call(experts=2)
    expected, twin = call.of(ensemble), copy.deepcopy(ensemble)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.zero_()
    assert torch.equal(call.of(twin), expected)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (list, "An ensemble needs at least one expert; got none"),
        (lambda: [tiny_unet(), torch.nn.Conv2d(4, 4, 1)], "Expert 2 .*: denoiser class is 'Conv2d', but expert 1"),
        (lambda: [torch.nn.Conv2d(4, 4, 1)], "Unknown denoiser class .* 'Conv2d'. Choose one of: UNet2DConditionModel"),
        (
            lambda: [tiny_unet(), tiny_unet(cross_attention_dim=64)],
            r"Expert 2 \('expert 2'\): denoiser cross_attention_dim is 64, but expert 1 .* has 32\. Block-wise",
        ),
    ],
)
def test_experts_that_cannot_run_in_lockstep_are_refused(experts: Any, message: str):
    with pytest.raises(ValueError, match=message):
        EnsembleDenoiser(experts())


def test_text_that_is_not_packed_is_refused():
    models = denoisers(1, 2)
    with pytest.raises(ValueError, match=r"shape \(2, 7, 20\); its axis 1 \(7\) does not divide by the 2 experts"):
        EnsembleDenoiser(models)(a_call().sample, 7, a_call().texts[0])


def test_missing_and_unknown_arguments_are_named():
    ensemble: Any = EnsembleDenoiser([tiny_unet()])
    sample, text = randn(BATCH, 4, 8, 8), randn(BATCH, 7, 32)
    with pytest.raises(TypeError, match="encoder_hidden_states"):
        ensemble(sample, 7)
    with pytest.raises(TypeError, match="sketch"):
        ensemble(sample, 7, text, sketch=1)
    with pytest.raises(ValueError, match="class_labels was given"):
        ensemble(sample, 7, text, class_labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="An ensemble needs encoder_hidden_states: pass pack_text"):
        ensemble(sample, 7, None)


def test_it_looks_like_the_denoiser_it_replaces():
    unet = tiny_sdxl_unet()
    ensemble = EnsembleDenoiser([unet, unet])
    assert ensemble.config is unet.config
    assert (ensemble.dtype, ensemble.device) == (unet.dtype, unet.device)
    assert ensemble.add_embedding.linear_1.in_features == unet.add_embedding.linear_1.in_features
    assert ensemble.encoder_hid_proj is None
    assert isinstance(ensemble.denoisers[0], UNet2DConditionModel)
    assert len(ensemble.points) == 19
