"""The block schedules of FLUX and SD3 equal their transformers' ``forward`` bit for bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from diffusemble import EnsembleDenoiser
from diffusemble.blocks.base import Blocks, run_through
from diffusemble.blocks.chroma import ChromaBlocks
from diffusemble.blocks.flux import FluxBlocks
from diffusemble.blocks.sd3 import SD3Blocks
from diffusemble.blocks.streams import on_grid, rows
from diffusemble.ensembles.block_level import blocks_of
from tiny_dit import tiny_chroma, tiny_flux
from transformer_cases import (
    ARCHITECTURES,
    CASES,
    GIVEN,
    Case,
    load_lora,
    ours_for,
    strength,
)
from unet_inputs import BATCH, randn


@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_forward(name: str):
    case = CASES[name]
    model = case.model()
    with torch.no_grad():
        ours = ours_for(model, case.arguments(model))
        theirs = model(**case.arguments(model)).sample
        if name in GIVEN:  # an input without effect would prove nothing
            without = case.plain(model)
            if "image-prompt" in name:
                given = case.give(model, 35)["joint_attention_kwargs"]["ip_adapter_image_embeds"]
                zeros = [torch.zeros_like(one) for one in given] if isinstance(given, list) else torch.zeros_like(given)
                without["joint_attention_kwargs"] = {"ip_adapter_image_embeds": zeros}
            assert (ours - ours_for(model, without)).abs().max() > 1e-4
    assert torch.equal(ours, theirs)
    assert torch.isfinite(ours).all()
    assert ours.dtype == case.dtype


@pytest.mark.parametrize("name", GIVEN)
def test_a_pair_of_one_expert_is_that_expert_whatever_is_given(name: str):
    # Halves add up without rounding, so a condition that is applied twice, or to one expert only, shows in every bit.
    case = CASES[name]
    model = case.model()
    arguments = case.arguments(model)
    for packed in {"encoder_hidden_states", "pooled_projections"} & arguments.keys():
        arguments[packed] = torch.cat([arguments[packed]] * 2, dim=1)
    if "txt_ids" in arguments:
        arguments["txt_ids"] = torch.cat([arguments["txt_ids"]] * 2)
    with torch.no_grad():
        ours = EnsembleDenoiser([model, model])(**arguments).sample
        theirs = model(**case.arguments(model)).sample
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("architecture", ["flux", "chroma", "sd3.5"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_gradients_equal_those_of_forward(architecture: str, checkpointing: bool):
    case = Case(ARCHITECTURES[architecture])
    model = case.model()
    if checkpointing:
        model.enable_gradient_checkpointing()
    ours = _gradients(model, case, ours_for)
    theirs = _gradients(model, case, lambda model, arguments: model(**arguments).sample)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["hidden_states"].abs().max() > 0


def _gradients(model: Any, case: Case, call: Callable[..., Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    arguments = case.arguments(model)
    sample = arguments["hidden_states"].requires_grad_()
    call(model, arguments).square().mean().backward()
    learnt = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return {"hidden_states": sample.grad, **learnt}


def test_checkpointing_runs_blocks_again_in_the_backward_pass():
    case = CASES["flux-plain"]
    model = case.model()
    model.enable_gradient_checkpointing()
    runs = []
    model.transformer_blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    arguments = case.arguments(model)
    arguments["hidden_states"].requires_grad_()
    ours_for(model, arguments).sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize("name", ["flux-controlnet", "sd3.5-controlnet", "sd3.5-skip"])
def test_running_a_block_leaves_its_inputs_alone(name: str):
    case = CASES[name]
    model = case.model()
    blocks = blocks_of(model)
    call = blocks.read(case.arguments(model))
    with torch.no_grad():
        flow = blocks.open(call.sample, call.timestep, call.inputs)
        for block in blocks.names:
            before = (flow.hidden.clone(), flow.tokens.clone())
            feature = blocks.run(block, flow)
            assert torch.equal(before[0], flow.hidden), block
            assert torch.equal(before[1], flow.tokens), block
            flow = blocks.join(block, flow, feature)
    assert len(blocks.modules(blocks.names[0])) == 1


@pytest.mark.parametrize("again", [copy.deepcopy, lambda blocks: pickle.loads(pickle.dumps(blocks))])
@pytest.mark.parametrize("architecture", ["flux", "sd3.5"])
def test_a_copied_schedule_runs_the_copied_transformer(architecture: str, again: Callable[[Blocks], Blocks]):
    case = Case(ARCHITECTURES[architecture])
    model = case.model()
    twin = again(blocks_of(model))
    with torch.no_grad():
        expected = model(**case.arguments(model)).sample
        for parameter in model.parameters():
            parameter.zero_()
        call = twin.read(case.arguments(model))
        ours = twin.write(run_through(twin, call.sample, call.timestep, call.inputs)).sample
    assert torch.equal(ours, expected)


def test_lora_scale_holds_during_the_pass_only():
    model = Case(tiny_flux, prepare=load_lora).model()
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer.scaling["default"] for layer in layers]
    with blocks_of(model).active(strength(0.6)(model, 0)):
        assert [layer.scaling["default"] for layer in layers] == pytest.approx([0.6 * value for value in before])
    assert [layer.scaling["default"] for layer in layers] == pytest.approx(before)


def test_names_and_sizes_of_real_models():
    with torch.device("meta"):
        flux, sd3 = FluxBlocks(FluxTransformer2DModel(guidance_embeds=True)), SD3Blocks(SD3Transformer2DModel())
    assert (flux.names[0], flux.names[18], flux.names[19], flux.names[-1]) == (
        "double.0",
        "double.18",
        "single.0",
        "single.37",
    )
    assert flux.sizes.channels == (3072,) * 56 + (64,)
    assert (flux.sizes.time, flux.sizes.text, flux.sizes.latents) == (3072, 3072, 64)
    assert sd3.names == tuple(f"joint.{index}" for index in range(18))
    assert sd3.sizes.channels == (1152,) * 17 + (16,)
    assert (sd3.sizes.time, sd3.sizes.text, sd3.sizes.latents) == (1152, 1152, 16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_have_the_sizes_that_the_schedule_announces(architecture: str):
    case = Case(ARCHITECTURES[architecture])
    model = case.model()
    blocks = blocks_of(model)
    call = blocks.read(case.arguments(model))
    assert call.sample.shape[1] == blocks.sizes.latents
    seen = []
    with torch.no_grad():
        flow = blocks.open(call.sample, call.timestep, call.inputs)
        assert (blocks.sizes.time, blocks.sizes.text) == (flow.time.shape[1], flow.text.shape[2])
        for name in blocks.names:
            flow = blocks.join(name, flow, blocks.run(name, flow))
            assert flow.hidden.shape[2:] == case.grid
            seen.append(flow.hidden.shape[1])
        assert (*seen[:-1], blocks.close(flow).shape[1]) == blocks.sizes.channels


def test_a_map_is_a_view_of_its_tokens():
    tokens = randn(2, 35, 24)
    hidden = on_grid(tokens, (5, 7))
    assert hidden.shape == (2, 24, 5, 7)
    assert torch.equal(hidden[1, :, 2, 3], tokens[1, 2 * 7 + 3])
    assert rows(hidden).data_ptr() == hidden.data_ptr() == tokens.data_ptr()


def test_chromas_mask_is_everybodys_or_everyones_own():
    model = tiny_chroma()
    case = CASES["chroma-mask"]
    inputs = {**case.arguments(model), "encoder_hidden_states": randn(BATCH, 14, 72)}
    mask = inputs["attention_mask"]
    del inputs["hidden_states"], inputs["timestep"]
    assert all(own["attention_mask"] is mask for own in ChromaBlocks(model).split(inputs, 2))
    inputs["attention_mask"] = torch.cat([torch.ones(BATCH, 7), mask], dim=1)
    first, second = ChromaBlocks(model).split(inputs, 2)
    assert torch.equal(second["attention_mask"], mask)
    assert first["attention_mask"].all()


def test_every_expert_reads_its_own_text_and_positions():
    model = tiny_flux()
    arguments = Case(tiny_flux).arguments(model)
    other = randn(*arguments["encoder_hidden_states"].shape, seed=12)
    ids = torch.cat([arguments["txt_ids"], torch.arange(7.0)[:, None].expand(-1, 3)])
    both = {
        **arguments,
        "encoder_hidden_states": torch.cat([arguments["encoder_hidden_states"], other], dim=1),
        "pooled_projections": torch.cat([arguments["pooled_projections"]] * 2, dim=1),
        "txt_ids": ids,
    }
    first, second = blocks_of(model).split({k: v for k, v in both.items() if k in _TEXT}, 2)
    assert torch.equal(second["encoder_hidden_states"], other)
    assert torch.equal(first["txt_ids"], ids[:7])
    assert torch.equal(second["txt_ids"], ids[7:])
    shared = blocks_of(model).split({**{k: both[k] for k in _TEXT}, "txt_ids": ids[:7]}, 2)
    assert all(torch.equal(own["txt_ids"], ids[:7]) for own in shared)
    assert other.shape[0] == BATCH


_TEXT = ("encoder_hidden_states", "pooled_projections", "txt_ids", "img_ids")
