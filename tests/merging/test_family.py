"""Which families have slots for block weights, and how the others are called."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel

from diffusemble.blocks.flux import FluxBlocks
from diffusemble.experts.layouts.flux import chroma, flux, flux2
from diffusemble.experts.layouts.sd3 import sd3
from diffusemble.experts.layouts.z_image import z_image
from diffusemble.merging.blockwise import slot_of, slots
from diffusemble.merging.export import slot_points
from diffusemble.merging.family import family_of
from tests import ldm
from tests.original import original
from tests.tiny import tiny_sdxl_unet, tiny_unet
from tests.tiny_dit import tiny_chroma, tiny_flux, tiny_sd3
from tests.tiny_flux2 import tiny_flux2
from tests.tiny_qwen import tiny_qwen
from tests.tiny_z_image import tiny_z_image

WITHOUT = {
    "SD 3": (lambda: tiny_sd3(qk_norm=None), sd3),
    "SD 3.5": (tiny_sd3, sd3),
    "FLUX.2": (tiny_flux2, flux2),
    "Chroma": (tiny_chroma, chroma),
    "Z-Image": (tiny_z_image, z_image),
    "Qwen-Image": (tiny_qwen, None),
}


def test_families_are_told_by_their_tensors():
    assert family_of(tiny_unet().state_dict()) == "sd1"
    assert family_of(tiny_sdxl_unet().state_dict()) == "sdxl"
    assert family_of("model.diffusion_model." + key for key in ldm.unet(tiny_sdxl_unet())) == "sdxl"
    model = tiny_flux()
    for keys in (model.state_dict(), original(model, flux), original(model, flux, "model.diffusion_model.")):
        assert family_of(keys) == "flux"
        assert family_of([*keys, "text_encoder.text_model.final_layer_norm.weight"]) == "flux"
    with pytest.raises(ValueError, match=r"SDXL or FLUX.1; among 1 tensors \(quant_conv.weight, ...\) there is none"):
        family_of(["quant_conv.weight"])


@pytest.mark.parametrize("name", WITHOUT)
def test_a_family_without_slots_is_refused_by_name_whatever_the_layout(name):
    make, layout = WITHOUT[name]
    model = make()
    folder = ["transformer." + key for key in model.state_dict()]
    for keys in (model.state_dict(), folder, *([] if layout is None else [original(model, layout)])):
        with pytest.raises(ValueError, match=f"; this is {name}, whose blocks have no slots. Merge it without blocks"):
            family_of(keys)


def test_a_denoiser_with_other_blocks_has_no_family():
    levels = {"block_out_channels": (16, 16)}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    for unet in (tiny_unet(**levels, **kinds), tiny_unet(layers_per_block=1)):
        with pytest.raises(ValueError, match=r"blocks of SD 1.*is SD 1.x with other bl"):
            family_of(unet.state_dict())
    with pytest.raises(ValueError, match=r"this is FLUX\.1 with other blocks"):
        family_of([*tiny_flux().state_dict(), "transformer_blocks.19.attn.to_q.weight"])


def test_a_slot_of_flux_is_at_the_point_behind_the_block_that_holds_it():
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    blocks = FluxBlocks(model)
    places = slot_points("flux", blocks.names)
    assert tuple(places) == slots("flux")
    assert [slot for slot, point in places.items() if point is None] == ["BASE", "T5"]
    names = {parameter: key for key, parameter in model.named_parameters()}
    for point, name in enumerate(blocks.names):
        held = {slot_of(names[one], "flux") for module in blocks.modules(name) for one in module.parameters()}
        assert {slot for slot, own in places.items() if own == point} - {"IN", "OUT"} == held
    assert (places["IN"], places["OUT"]) == (0, len(blocks.names) - 1)
