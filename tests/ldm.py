"""The inverse of diffusers' key conversion: a pipeline as one file in the layout of the original code (LDM)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Rules = Sequence[tuple[str, Any]]
NONE: Mapping[str, Tensor] = {}

RESNET: Rules = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
UNET_ENDS: Rules = (
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^add_embedding\.linear_1", "label_emb.0.0"),
    (r"^add_embedding\.linear_2", "label_emb.0.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
)
VAE: Rules = (
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.mid_block\.resnets\.(\d)", lambda m: f".mid.block_{int(m[1]) + 1}"),
    (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.down_blocks\.(\d)\.resnets", r".down.\1.block"),
    (r"\.down_blocks\.(\d)\.downsamplers\.0", r".down.\1.downsample"),
)
OPEN_CLIP: Rules = (
    (r"^text_model\.", ""),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^text_projection\.weight", "text_projection"),
    (r"^encoder\.layers", "transformer.resblocks"),
    (r"layer_norm([12])", r"ln_\1"),
    (r"\.fc1\.", ".c_fc."),
    (r"\.fc2\.", ".c_proj."),
    (r"\.self_attn\.", ".attn."),
)


def unet(model: Any) -> dict[str, Tensor]:
    """A U-Net's tensors by their LDM names (without the prefix)."""
    period = model.config.layers_per_block + 1

    def place(key: str) -> str:
        found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key)
        if found is None:
            return rename(key, UNET_ENDS)
        way, level, what, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        start = 1 + level * period if way == "down" else level * period
        if what == "downsamplers":
            return f"input_blocks.{start + period - 1}.0.{rest.replace('conv.', 'op.')}"
        if what == "upsamplers":
            behind = 2 if hasattr(model.up_blocks[level], "attentions") else 1
            return f"output_blocks.{start + period - 1}.{behind}.{rest}"
        side = "input_blocks" if way == "down" else "output_blocks"
        return f"{side}.{start + layer}.{int(what == 'attentions')}.{rest}"

    resnet = re.compile(r"resnets")
    return {
        (rename(place(key), RESNET) if resnet.search(key) else place(key)): tensor
        for key, tensor in model.state_dict().items()
    }


def vae(model: Any) -> dict[str, Tensor]:
    """A VAE's tensors by their LDM names; its attention is of 1x1 convolutions there."""
    top = len(model.config.up_block_types) - 1
    rules = (
        *VAE,
        (r"\.up_blocks\.(\d)\.resnets", lambda m: f".up.{top - int(m[1])}.block"),
        (r"\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f".up.{top - int(m[1])}.upsample"),
    )
    return {
        rename(key, rules): tensor[:, :, None, None] if "attentions" in key and tensor.ndim == 2 else tensor
        for key, tensor in model.state_dict().items()
    }


def clip(model: Any) -> dict[str, Tensor]:
    """A CLIP text encoder's tensors by their LDM names."""
    named = {"text_model." + key.removeprefix("text_model."): tensor for key, tensor in model.state_dict().items()}
    positions = torch.arange(model.config.max_position_embeddings)[None]
    return {**named, "text_model.embeddings.position_ids": positions}  # real files carry them


def open_clip(model: Any) -> dict[str, Tensor]:
    """A text encoder's tensors by OpenCLIP's names; queries, keys and values are one tensor there."""
    state: Mapping[str, Tensor] = model.state_dict()
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if ".q_proj." in key:
            joined = torch.cat([state[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
            named[rename(key, OPEN_CLIP).replace("q_proj.", "in_proj_")] = joined
        elif ".k_proj." not in key and ".v_proj." not in key:
            named[rename(key, OPEN_CLIP)] = tensor.T if key == "text_projection.weight" else tensor
    return named


def rename(key: str, rules: Rules) -> str:
    """``key`` after all substitutions, in order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


Layout = Mapping[str, tuple[str, Any]]


def layout(text: str, text_2: str = "") -> Layout:
    """Prefix and converter of every part, for text encoders under these names."""
    return {
        "unet": ("model.diffusion_model.", unet),
        "vae": ("first_stage_model.", vae),
        "text_encoder": (text, clip if text.endswith("transformer.") else open_clip),
        "text_encoder_2": (text_2, open_clip),
    }


SD1 = layout("cond_stage_model.transformer.")
SD2 = layout("cond_stage_model.model.")
SDXL = layout("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
REFINER = layout("", "conditioner.embedders.0.model.")


def save_ldm(
    pipeline: Any,
    file: Path,
    parts: Layout = SD1,
    *,
    without: Sequence[str] = (),
    extra: Mapping[str, Tensor] = NONE,
) -> Path:
    """Write ``pipeline`` to one safetensors file in LDM layout.

    ``without`` names parts to leave out, ``extra`` adds tensors.
    """
    tensors = {
        prefix + key: tensor.contiguous()
        for name, (prefix, convert) in parts.items()
        if name not in without and getattr(pipeline, name, None) is not None
        for key, tensor in convert(getattr(pipeline, name)).items()
    }
    save_file({**tensors, **extra, "betas": torch.zeros(3)}, file)
    return file
