"""The block schedule equals ``UNet2DConditionModel.forward`` bit for bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from diffusemble import EnsembleDenoiser
from diffusemble.blocks.base import run_through
from diffusemble.blocks.unet import UNetBlocks
from tiny import tiny_unet
from unet_cases import ARCHITECTURES, CASES, GIVEN, Case, sd1
from unet_inputs import adapter, free_u, load_lora, packed, plain_inputs, randn, strength

# diffusers announces the end of the older way to pass a T2I-adapter.
LEGACY = pytest.mark.filterwarnings("ignore:Passing intrablock residual:FutureWarning")
SD15_POINTS = (
    "conv_in",
    *("down.0.layer0", "down.0.layer1", "down.0.downsample"),
    *("down.1.layer0", "down.1.layer1", "down.1.downsample"),
    *("down.2.layer0", "down.2.layer1", "down.2.downsample"),
    *("down.3.layer0", "down.3.layer1"),
    "mid",
    *("up.0.layer0", "up.0.layer1", "up.0.layer2"),
    *("up.1.layer0", "up.1.layer1", "up.1.layer2"),
    *("up.2.layer0", "up.2.layer1", "up.2.layer2"),
    *("up.3.layer0", "up.3.layer1", "up.3.layer2"),
)


@LEGACY
@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_forward_and_so_does_a_pair_of_one_expert(name: str):
    case = CASES[name]
    unet = case.unet()
    pair = EnsembleDenoiser([unet, unet])  # before anything is drawn, because it freezes the weights
    blocks, sample, inputs = UNetBlocks(unet), case.sample(unet), case.inputs(unet)
    with torch.no_grad():
        ours = run_through(blocks, sample, case.timestep, inputs)
        if name in GIVEN:  # an input without effect would prove nothing
            assert (ours - run_through(blocks, sample, case.timestep, _without(unet, inputs))).abs().max() > 1e-3
        # Halves add up without rounding: what is applied twice, or to one expert only, shows in every bit.
        both = pair(sample, case.timestep, **packed(inputs, 2)).sample
        theirs = unet(sample, case.timestep, **inputs).sample  # last, because it empties lists
    assert torch.equal(ours, theirs)
    assert torch.equal(both, theirs)
    assert torch.isfinite(ours).all()
    assert ours.dtype == case.dtype


def _without(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> dict[str, Any]:
    plain = plain_inputs(unet)
    images = inputs.get("added_cond_kwargs", {}).get("image_embeds")
    if images is None:
        return plain
    added = {**plain.get("added_cond_kwargs", {}), "image_embeds": [torch.zeros_like(image) for image in images]}
    return {**plain, "added_cond_kwargs": added}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_gradients_equal_those_of_forward(architecture: str, checkpointing: bool):
    case = CASES[f"{architecture}-plain"]
    unet = case.unet()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    ours = _gradients(unet, case, lambda *args: run_through(UNetBlocks(unet), *args))
    theirs = _gradients(unet, case, lambda sample, timestep, inputs: unet(sample, timestep, **inputs).sample)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["sample"].abs().max() > 0


def _gradients(unet: UNet2DConditionModel, case: Case, call: Callable[..., Tensor]) -> dict[str, Tensor]:
    unet.zero_grad()
    sample = case.sample(unet).requires_grad_()
    call(sample, case.timestep, case.inputs(unet)).square().mean().backward()
    return {"sample": sample.grad, **{name: parameter.grad.clone() for name, parameter in unet.named_parameters()}}


def test_checkpointing_runs_resnets_again_in_the_backward_pass():
    unet = tiny_unet()
    unet.enable_gradient_checkpointing()
    runs = []
    unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: runs.append(1))
    run_through(UNetBlocks(unet), randn(2, 4, 8, 8).requires_grad_(), 7, plain_inputs(unet)).sum().backward()
    assert len(runs) == 2


def test_running_a_block_leaves_its_inputs_alone():
    unet = tiny_unet()
    free_u(unet)
    blocks, inputs = UNetBlocks(unet), {**plain_inputs(unet), **adapter(unet, randn(2, 4, 8, 8))}
    with torch.no_grad():
        flow = blocks.open(randn(2, 4, 8, 8), 7, inputs)
        for name in blocks.names:
            before = [flow.hidden.clone(), *(skip.clone() for skip in flow.skips)]
            output = blocks.run(name, flow)
            for kept, now in zip(before, [flow.hidden, *flow.skips], strict=True):
                assert torch.equal(kept, now), name
            flow = blocks.join(name, flow, output)
    assert len(inputs["down_intrablock_additional_residuals"]) == 4


@pytest.mark.parametrize("again", [copy.deepcopy, lambda blocks: pickle.loads(pickle.dumps(blocks))])
def test_a_copied_schedule_runs_the_copied_unet(again: Callable[[UNetBlocks], UNetBlocks]):
    case = CASES["sd1-plain"]
    unet = case.unet()
    twin = again(UNetBlocks(unet))
    with torch.no_grad():
        expected = unet(case.sample(unet), 7, **case.inputs(unet)).sample
        for parameter in unet.parameters():
            parameter.zero_()
        assert torch.equal(run_through(twin, case.sample(unet), 7, case.inputs(unet)), expected)


def _lora_scales(unet: UNet2DConditionModel) -> list[float]:
    return [module.scaling["default"] for module in unet.modules() if isinstance(module, BaseTunerLayer)]


@pytest.mark.parametrize("scale", [0.6, 0.0])
def test_lora_scale_holds_during_the_pass_only(scale: float):
    unet = Case(sd1, prepare=load_lora).unet()
    before, blocks, inputs = _lora_scales(unet), UNetBlocks(unet), {**plain_inputs(unet), **strength(scale)(unet, None)}
    assert len(before) > 30
    with blocks.active(inputs):
        assert _lora_scales(unet) == pytest.approx([scale * value for value in before])
    assert _lora_scales(unet) == pytest.approx(before)
    with pytest.raises(RuntimeError, match="expected input"):
        run_through(blocks, randn(2, 5, 8, 8), 7, inputs)
    assert _lora_scales(unet) == pytest.approx(before)


def test_names_and_channels_are_those_of_the_paper():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    blocks = UNetBlocks(unet)
    assert blocks.names == SD15_POINTS
    assert blocks.sizes.channels == (320,) * 4 + (640,) * 3 + (1280,) * 12 + (640,) * 3 + (320,) * 2 + (4,)
    assert (blocks.sizes.time, blocks.sizes.text) == (1280, 768)


def test_outputs_have_the_sizes_that_the_schedule_announces():
    for case in (CASES["sd1-plain"], CASES["sd1-labels-concat"], CASES["sdxl-plain"], CASES["sd1-text-projection"]):
        unet = case.unet()
        blocks, seen = UNetBlocks(unet), []
        with torch.no_grad():
            flow = blocks.open(case.sample(unet), 7, case.inputs(unet))
            assert (blocks.sizes.time, blocks.sizes.text) == (flow.time.shape[1], flow.text.shape[2])
            for name in blocks.names:
                flow = blocks.join(name, flow, blocks.run(name, flow))
                seen.append(flow.hidden.shape[1])
            assert (*seen[:-1], blocks.close(flow).shape[1]) == blocks.sizes.channels
