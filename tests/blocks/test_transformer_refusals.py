"""What the block schedules of FLUX, Chroma and SD3 refuse, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusemble import EnsembleDenoiser
from tiny_dit import tiny_chroma, tiny_flux, tiny_sd3
from transformer_cases import ARCHITECTURES, CONTROL, Case, ours_for, residuals, sd30, skipped
from unet_inputs import randn


def _changed(name: str, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(arguments: dict[str, Any]) -> None:
        arguments[name] = change(arguments[name])

    return apply


def _with(**given: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(given)


def kontext(ids: Tensor) -> Tensor:
    """Positions of a picture and, in the last row, of another."""
    ids = ids.clone()
    ids[-7:, 0] = 1
    return ids


GRID = "img_ids is not the grid of one picture, row by row, .* [(]FLUX.2, FLUX Kontext[)] are not supported"
REFUSED: Mapping[str, tuple[Callable[[], Any], Callable[[dict[str, Any]], None], str]] = {
    "flux, no positions": (tiny_flux, _with(img_ids=None), r"FLUX needs img_ids, the place \[l 3\]"),
    "flux, few positions": (tiny_flux, _changed("img_ids", lambda ids: ids[1:]), "img_ids has 34 rows, but .* 35 tok"),
    "flux, half a grid": (tiny_flux, _changed("img_ids", lambda ids: ids.flip(0)[torch.randperm(35)]), GRID),
    "flux, columns first": (tiny_flux, _changed("img_ids", lambda ids: ids[:, [0, 2, 1]]), GRID),
    "flux, two pictures": (tiny_flux, _changed("img_ids", kontext), GRID),
    "flux, no text": (tiny_flux, _with(encoder_hidden_states=None), "FLUX needs encoder_hidden_states"),
    "flux, no pooled text": (tiny_flux, _with(pooled_projections=None), "FLUX needs pooled_projections"),
    "flux, no guidance": (tiny_flux, _with(guidance=None), r"has a guidance embedding: pass guidance \[b\]"),
    "schnell, guidance": (
        ARCHITECTURES["schnell"],
        _with(guidance=torch.ones(2)),
        "guidance was given, but .* no guidance embedding",
    ),
    "flux, many residuals": (
        tiny_flux,
        lambda arguments: arguments.update(residuals("controlnet_block_samples", 3)(tiny_flux(), 35)),
        "controlnet_block_samples has 3 tensors, but this transformer has 2 blocks",
    ),
    "flux, long residuals": (
        tiny_flux,
        lambda arguments: arguments.update(residuals("controlnet_single_block_samples", 1)(tiny_flux(), 36)),
        r"controlnet_single_block_samples has a tensor of shape \(2, 36, 24\), but the image has 35 tokens",
    ),
    "flux, image prompt": (
        tiny_flux,
        _with(joint_attention_kwargs={"ip_adapter_image_embeds": [randn(2, 1, 12)]}),
        "was given, but this FLUX transformer has no IP-Adapter. Load one first",
    ),
    "flux, unknown": (
        tiny_flux,
        _with(joint_attention_kwargs={"regions": 1}),
        r"joint_attention_kwargs\['regions'\] was given, but no attention of this transformer reads it",
    ),
    "chroma, guidance": (
        tiny_chroma,
        _with(guidance=torch.ones(2)),
        "does not support the argument 'guidance'",
    ),
    "chroma, no positions": (tiny_chroma, _with(txt_ids=None), "Chroma needs txt_ids"),
    "chroma, a mask for the attentions": (
        tiny_chroma,
        _with(joint_attention_kwargs={"attention_mask": torch.ones(2, 1, 42, 42)}),
        r"joint_attention_kwargs\['attention_mask'\] was given",
    ),
    "sd3, a mask that its attentions leave out": (
        tiny_sd3,
        _with(joint_attention_kwargs={"attention_mask": torch.ones(2, 1, 42, 42)}),
        r"joint_attention_kwargs\['attention_mask'\] was given, but no attention of this transformer reads it",
    ),
    "sd3, no text": (tiny_sd3, _with(encoder_hidden_states=None), "SD3 needs encoder_hidden_states"),
    "sd3, no residuals": (sd30, _with(**{CONTROL: []}), f"{CONTROL} has 0 tensors, .* give 1 to 4"),
    "sd3, skipped block": (
        sd30,
        lambda arguments: arguments.update(skipped(4)(None, 0)),
        "skip_layers names block 4, but this SD3 transformer has the blocks 0 to 3",
    ),
    "sd3, image prompt": (
        tiny_sd3,
        _with(joint_attention_kwargs={"ip_adapter_image_embeds": randn(2, 6, 12)}),
        "this SD3 transformer has no IP-Adapter",
    ),
    "sd3, unknown": (
        tiny_sd3,
        _with(joint_attention_kwargs={"regions": 1}),
        r"joint_attention_kwargs\['regions'\] was given",
    ),
    "sd3, other argument": (tiny_sd3, _with(img_ids=torch.ones(3)), "does not support the argument 'img_ids'. Leave"),
}


@pytest.mark.parametrize(("build", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_ignored_or_break_is_refused_by_name(build: Any, change: Any, message: str):
    model = build()
    arguments = Case(build).arguments(model)
    change(arguments)
    with pytest.raises(ValueError, match=message):
        ours_for(model, arguments)


@pytest.mark.parametrize("build", [tiny_flux, tiny_sd3])
def test_pooled_text_of_one_expert_is_refused_with_the_remedy(build: Callable[[], Any]):
    model = build()
    arguments = Case(build).arguments(model)
    arguments["encoder_hidden_states"] = torch.cat([arguments["encoder_hidden_states"]] * 2, dim=1)
    width = arguments["pooled_projections"].shape[1]
    message = rf"pooled_projections has shape \(2, {width}\), but for 2 experts its last axis must be {2 * width}. Pass"
    with pytest.raises(ValueError, match=message):
        EnsembleDenoiser([model, model])(**arguments)


def test_positions_for_neither_one_nor_all_are_refused():
    model = tiny_flux()
    arguments = Case(tiny_flux).arguments(model)
    for name in ("encoder_hidden_states", "pooled_projections"):
        arguments[name] = torch.cat([arguments[name]] * 2, dim=1)
    arguments["txt_ids"] = torch.zeros(10, 3)
    with pytest.raises(ValueError, match=r"txt_ids has 10 rows, but every one of the 2 experts reads 7 tokens. Give 7"):
        EnsembleDenoiser([model, model])(**arguments)
