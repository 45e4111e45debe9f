"""FLUX.1, FLUX.2, and Chroma, which is made of the first, in the layout of their original code (Black Forest Labs)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from diffusemble.experts.layouts.origin import Fused, Layout, Origin, Rule, Shapes, follow

_DOUBLE, _SINGLE = r"transformer_blocks\.\d+\.attn\.", r"single_transformer_blocks\.\d+\."
_FUSED = (
    Fused(_DOUBLE, ("to_q", "to_k", "to_v"), "qkv"),
    Fused(_DOUBLE, ("add_q_proj", "add_k_proj", "add_v_proj"), "add_qkv"),
    Fused(_SINGLE, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1"),
)
_RULES: tuple[Rule, ...] = (
    (r"^time_text_embed\.timestep_embedder\.", "time_in."),
    (r"^time_text_embed\.text_embedder\.", "vector_in."),
    (r"^time_text_embed\.guidance_embedder\.", "guidance_in."),
    (r"_in\.linear_1\.", "_in.in_layer."),
    (r"_in\.linear_2\.", "_in.out_layer."),
    (r"^context_embedder\.", "txt_in."),
    (r"^x_embedder\.", "img_in."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"^(single_blocks\.\d+)\.norm\.linear\.", r"\1.modulation.lin."),
    (r"^(single_blocks\.\d+)\.attn\.norm_q\.weight", r"\1.norm.query_norm.scale"),
    (r"^(single_blocks\.\d+)\.attn\.norm_k\.weight", r"\1.norm.key_norm.scale"),
    (r"^(single_blocks\.\d+)\.proj_out\.", r"\1.linear2."),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"\.norm1\.linear\.", ".img_mod.lin."),
    (r"\.norm1_context\.linear\.", ".txt_mod.lin."),
    (r"\.attn\.qkv\.", ".img_attn.qkv."),
    (r"\.attn\.add_qkv\.", ".txt_attn.qkv."),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."),
    (r"\.ff\.net\.2\.", ".img_mlp.2."),
    (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."),
    (r"\.ff_context\.net\.2\.", ".txt_mlp.2."),
)


_CHROMA: tuple[Rule, ...] = (
    (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_1\.", r"\1.in_layer."),
    (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_2\.", r"\1.out_layer."),
    (r"^(distilled_guidance_layer\.norms\.\d+)\.weight", r"\1.scale"),
)
_FLUX2: tuple[Rule, ...] = (
    (r"^time_guidance_embed\.timestep_embedder\.", "time_in."),
    (r"^time_guidance_embed\.guidance_embedder\.", "guidance_in."),
    (r"^((?:double|single)_stream_modulation\w*)\.linear\.", r"\1.lin."),
    (r"^(single_transformer_blocks\.\d+)\.attn\.to_qkv_mlp_proj\.", r"\1.linear1."),
    (r"^(single_transformer_blocks\.\d+)\.attn\.to_out\.", r"\1.linear2."),
    (r"\.ff\.linear_in\.", ".img_mlp.0."),
    (r"\.ff\.linear_out\.", ".img_mlp.2."),
    (r"\.ff_context\.linear_in\.", ".txt_mlp.0."),
    (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
)


def flux(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a FLUX transformer's tensors; the last modulation has shift before scale in the file."""
    return follow(shapes, _RULES, _FUSED, swapped=r"norm_out\.linear\.")


def chroma(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a Chroma transformer's tensors: FLUX with one network for all modulations."""
    return follow(shapes, (*_RULES, *_CHROMA), _FUSED)


def flux2(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of a FLUX.2 transformer's tensors; its single blocks are fused in diffusers, too."""
    return follow(shapes, (*_FLUX2, *_RULES), _FUSED, swapped=r"norm_out\.linear\.")


def with_weights(layout: Layout, norms: str, model: Any, shapes: Shapes) -> dict[str, Origin]:
    """One of these layouts as newer programs save it: what scales some norms is called their weight.

    Args:
        layout: of the original code.
        norms: regular expression of the end of those norms' names.
        model: as for every layout.
        shapes: of its tensors.
    """
    origins = layout(model, shapes)
    return {
        name: replace(one, key=re.sub(rf"({norms})\.scale$", r"\1.weight", one.key)) for name, one in origins.items()
    }
