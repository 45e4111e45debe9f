"""SD3 and SD3.5 in the layout of their original code."""

from __future__ import annotations

from typing import Any

from diffusemble.experts.layouts.origin import Fused, Origin, Rule, Shapes, follow

_BLOCK = r"transformer_blocks\.\d+\."
_FUSED = (
    Fused(_BLOCK + r"attn\.", ("to_q", "to_k", "to_v"), "qkv"),
    Fused(_BLOCK + r"attn\.", ("add_q_proj", "add_k_proj", "add_v_proj"), "add_qkv"),
    Fused(_BLOCK + r"attn2\.", ("to_q", "to_k", "to_v"), "qkv"),
)
_RULES: tuple[Rule, ...] = (
    (r"^pos_embed\.pos_embed$", "pos_embed"),
    (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
    (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^transformer_blocks\.(\d+)\.", r"joint_blocks.\1.x_block."),
    (r"x_block\.norm1\.linear\.", "x_block.adaLN_modulation.1."),
    (r"x_block\.norm1_context\.linear\.", "context_block.adaLN_modulation.1."),
    (r"x_block\.attn\.add_qkv\.", "context_block.attn.qkv."),
    (r"x_block\.(attn2?)\.norm_([qk])\.", r"x_block.\1.ln_\2."),
    (r"x_block\.attn\.norm_added_([qk])\.", r"context_block.attn.ln_\1."),
    (r"x_block\.(attn2?)\.to_out\.0\.", r"x_block.\1.proj."),
    (r"x_block\.attn\.to_add_out\.", "context_block.attn.proj."),
    (r"x_block\.ff\.net\.0\.proj\.", "x_block.mlp.fc1."),
    (r"x_block\.ff\.net\.2\.", "x_block.mlp.fc2."),
    (r"x_block\.ff_context\.net\.0\.proj\.", "context_block.mlp.fc1."),
    (r"x_block\.ff_context\.net\.2\.", "context_block.mlp.fc2."),
)


def sd3(model: Any, shapes: Shapes) -> dict[str, Origin]:
    """Origins of an SD3 transformer's tensors; the last modulations have shift before scale in the file."""
    last = model.config.num_layers - 1
    return follow(shapes, _RULES, _FUSED, swapped=rf"norm_out\.linear\.|transformer_blocks\.{last}\.norm1_context\.")
