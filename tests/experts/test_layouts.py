"""The layouts of original codes, against diffusers' own conversions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ChromaTransformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders import single_file_utils as theirs
from torch import Tensor

from diffusemble.experts.layouts.autoencoder import vae
from diffusemble.experts.layouts.flux import chroma, flux, flux2
from diffusemble.experts.layouts.origin import Layout
from diffusemble.experts.layouts.sd3 import sd3
from diffusemble.experts.layouts.unet import unet
from diffusemble.experts.layouts.z_image import z_image
from tiny import tiny_sdxl_unet, tiny_unet, tiny_vae
from tiny_dit import tiny_sd3
from tiny_flux2 import tiny_flux2
from tiny_z_image import tiny_z_image


def real_flux() -> Any:
    """Of the real widths (diffusers' conversion knows no others), without weights: one block of each kind."""
    with init_empty_weights():
        return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)


def real_chroma() -> Any:
    """As ``real_flux``."""
    with init_empty_weights():
        return ChromaTransformer2DModel(num_layers=1, num_single_layers=1, approximator_layers=2)


def real_sd3_medium() -> Any:
    """SD3.5 medium's kinds of blocks: with and without a second attention, the last without text."""
    with init_empty_weights():
        return SD3Transformer2DModel(
            num_layers=3, dual_attention_layers=(0, 1), qk_norm="rms_norm", pos_embed_max_size=4
        )


def cheap(shape: tuple[int, ...], number: int) -> Tensor:
    """A tensor whose rows are all different."""
    rows = torch.arange(shape[0], dtype=torch.float64) + 1e6 * number
    return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def narrow(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's tensors with all their rows, but few columns, so that real widths cost little."""
    state = model.state_dict()
    return {name: (*tensor.shape[:1], *(min(2, size) for size in tensor.shape[1:])) for name, tensor in state.items()}


def file_of(model: Any, layout: Layout) -> dict[str, Tensor]:
    """What the layout says a file of the original code looks like."""
    shapes = narrow(model)
    found = {}
    for number, (name, origin) in enumerate(layout(model, shapes).items()):
        rows = (sum(origin.rows),) if origin.rows else shapes[name][:1]
        found.setdefault(origin.key, cheap((*rows, *shapes[name][1:]), number))
    return found


CASES: dict[str, tuple[Callable[[], Any], Layout, Callable[..., Any], str]] = {
    "sd1": (tiny_unet, unet, theirs.convert_ldm_unet_checkpoint, "model.diffusion_model."),
    "sdxl": (tiny_sdxl_unet, unet, theirs.convert_ldm_unet_checkpoint, "model.diffusion_model."),
    "sd3": (tiny_sd3, sd3, theirs.convert_sd3_transformer_checkpoint_to_diffusers, ""),
    "sd35": (real_sd3_medium, sd3, theirs.convert_sd3_transformer_checkpoint_to_diffusers, "model.diffusion_model."),
    "flux": (real_flux, flux, theirs.convert_flux_transformer_checkpoint_to_diffusers, ""),
    "flux2": (
        lambda: tiny_flux2(guidance_embeds=True),
        flux2,
        theirs.convert_flux2_transformer_checkpoint_to_diffusers,
        "",
    ),
    "chroma": (real_chroma, chroma, theirs.convert_chroma_transformer_checkpoint_to_diffusers, ""),
    "z-image": (tiny_z_image, z_image, theirs.convert_z_image_transformer_checkpoint_to_diffusers, ""),
    "vae": (tiny_vae, vae, theirs.convert_ldm_vae_checkpoint, "first_stage_model."),
}


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers about its own Chroma
@pytest.mark.parametrize("case", CASES)
def test_a_layout_says_what_diffusers_conversion_does(case: str) -> None:
    build, layout, convert, prefix = CASES[case]
    model = build()
    file = file_of(model, layout)
    converted = convert(checkpoint={prefix + key: tensor for key, tensor in file.items()}, config=dict(model.config))
    shapes = narrow(model)
    assert converted.keys() == shapes.keys()
    for name, origin in layout(model, shapes).items():
        assert origin.fits(file[origin.key].shape, shapes[name])
        assert torch.equal(origin.take(file[origin.key], shapes[name]), converted[name].reshape(shapes[name])), name
    assert sum(math.prod(tensor.shape) for tensor in file.values()) == sum(map(math.prod, shapes.values()))


def test_an_origin_tells_shapes_that_do_not_fit() -> None:
    model = AutoencoderKL(block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    origin = vae(model, shapes)["encoder.mid_block.attentions.0.to_q.weight"]
    assert origin.key == "encoder.mid.attn_1.q.weight"
    assert origin.fits((32, 32, 1, 1), (32, 32))
    assert not origin.fits((32, 32, 3, 3), (32, 32))
