"""LoRA and LyCORIS files: how their tensors are called, and which family they were made for."""

from __future__ import annotations

import re
from collections.abc import Container

from diffusemble.experts.formats.families import SHORT
from diffusemble.experts.formats.header import Header

FACTORS: dict[str, str] = {
    # LoRA: kohya's names, peft's, those of older versions of diffusers
    r"\.lora_up\.weight": "up",
    r"\.lora_down\.weight": "down",
    r"\.lora_mid\.weight": "mid",
    r"\.lora_B(?:\.\w+)?\.weight": "up",
    r"\.lora_A(?:\.\w+)?\.weight": "down",
    r"[._]lora\.up\.weight": "up",
    r"[._]lora\.down\.weight": "down",
    r"\.lora_linear_layer\.up\.weight": "up",
    r"\.lora_linear_layer\.down\.weight": "down",
    r"\.dora_scale": "dora_scale",
    r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?": "magnitude",
    # LyCORIS: LoHa, LoKr, OFT and BOFT, (IA)³, GLoRA, whole differences, norms
    r"\.(hada_w[12]_[ab]|hada_t[12])": "",
    r"\.(lokr_w[12]|lokr_w[12]_[ab]|lokr_t2)": "",
    r"\.(oft_blocks(?:\.\d+)?|rescale|on_input)": "",
    r"\.([ab][12])\.weight": "",
    r"\.diff": "diff",
    r"\.diff_b": "bias",
    r"\.w_norm": "diff",
    r"\.b_norm": "bias",
    r"\.alpha": "alpha",
}
"""Ends of tensors' names, and what the tensor is in the formulas ("": what the group of the pattern says)."""
UNREADABLE = {
    r".*\.oft_(?:diag|R)": "an OFT of peft or of early LyCORIS, whose rotations follow from settings that it lacks",
    r".*\.boft_[RS]": "a BOFT of peft, whose rotations follow from settings that it lacks",
    r".*\.ia3_l": "an (IA)³ of peft, whose files do not tell outputs from inputs",
    r".*\.b[mn]\.weight": "a GLoRA with kernels between its factors",
    r".*\.processor\.(?:qkv_lora|proj_lora)\d": "a LoRA in the layout of XLabs",
    r".*\.lora_(?:ga|vera)|.*vera_lambda": "a VeRA, whose random matrices are not in the file",
}
"""Kinds of adapters that are refused, and why, by their tensors' names."""
BUNDLED = "bundle_emb."
"""How names of textual inversions begin that OneTrainer stores in a LoRA."""
_ENDS = [(re.compile(rf"{pattern}$"), factor) for pattern, factor in FACTORS.items()]
TEXT = {
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_", "text_encoders_clip_l_transformer_", "clip_l_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_", "text_encoders_clip_g_transformer_", "clip_g_"),
    "text_encoder_3": ("lora_te3_", "text_encoder_3_", "text_encoders_t5xxl_transformer_", "t5_"),
}
"""How names of a text encoder's modules begin, with underscores for dots."""
_LONGEST = 60  # characters of an end, with the name that peft gives an adapter
_WEIGHTS = re.compile(rf"(?:{'|'.join(end for end, factor in FACTORS.items() if factor != 'alpha')})$")
_REFUSED = re.compile("|".join(UNREADABLE))
_LYCORIS = re.compile(r".*\.(?:hada_|lokr_|diff|w_norm|b?oft_|on_input|ia3_l|[ab][12]\.weight)")
_READING = ("down", "hada_w1_b")  # factors as wide as what their module reads
_BY_NAMES = (
    (r"distilled_guidance_layer", SHORT["chroma"]),
    (r"img_mlp_net_|(?:img|txt)_mod_1", SHORT["qwen"]),
    (r"to_qkv_mlp_proj|double_stream_modulation", SHORT["flux2"]),
    (r"single_transformer_blocks|double_blocks|single_blocks|lora_te2_encoder_block", SHORT["flux"]),
    (r"joint_blocks", "SD 3 or 3.5"),
    (r"(?:^|_)layers_\d+_(?:attention|feed_forward|adaLN)", "Z-Image or Lumina 2"),
    (r"(?:^|_)blocks_\d+_(?:cross|self)_attn_[qkvo](?:$|_)", "Wan"),
    (r"lora_te2_|clip_g_|text_encoder_2|unet_(?:input|output)_blocks|label_emb|add_embedding", SHORT["sdxl"]),
)
"""By names whose dots are underscores: the first that fits."""
_BY_WIDTHS = (
    (r"attn2_to_[kv]$", {768: SHORT["sd1"], 1024: SHORT["sd2"], 2048: SHORT["sdxl"], 1280: SHORT["refiner"]}),
    (r"img_attn_qkv$", dict.fromkeys((4096, 6144), SHORT["flux2"])),
    (r"(?:img|txt)_mlp_2$", dict.fromkeys((9216, 18432), SHORT["flux2"])),
    (r"single_blocks_\d+_linear2$", dict.fromkeys((12288, 16384, 24576), SHORT["flux2"])),
    (r"(?:^|_)layers_\d+_attention_(?:to_[qkv]|qkv)$", {3840: SHORT["z-image"], 2304: "Lumina 2"}),
    (r"add_q_proj$", {1536: "SD 3 or 3.5", 2432: SHORT["sd35"]}),
)
"""By the width of what a module reads; it decides before the names."""
_BY_VERSION = {
    "sdxl": SHORT["sdxl"],
    "xl-v1": SHORT["sdxl"],
    "sd_v1": SHORT["sd1"],
    "diffusion-v1": SHORT["sd1"],
    "sd_v2": SHORT["sd2"],
    "diffusion-v2": SHORT["sd2"],
    "flux-2": SHORT["flux2"],
    "flux": SHORT["flux"],
    "sd3": SHORT["sd3"],
}
"""By what training programs write into the header."""


def is_adapter(header: Header) -> bool:
    """Whether a file holds differences for another model's weights, not weights."""
    return any(
        _WEIGHTS.search(key, max(0, len(key) - _LONGEST)) is not None or _REFUSED.match(key) is not None
        for key in header.forms
    )


def adapter_kind(header: Header) -> tuple[str, str | None]:
    """``"LoRA"`` or ``"LyCORIS"``, and the family it was made for as far as names and widths tell."""
    lycoris = any(_LYCORIS.match(key) for key in header.forms)
    return "LyCORIS" if lycoris else "LoRA", _family(header)


def split_name(key: str, beside: Container[str] = ()) -> tuple[str, str] | None:
    """Module and factor of a tensor of an adapter: ``("lora_unet_mid", "up")``; None for another tensor.

    Args:
        key: the tensor's name.
        beside: names of the file's tensors, which tell a scale of (IA)³ from a weight.
    """
    module = key.removesuffix(".weight")
    if f"{module}.on_input" in beside:
        return module, "scale"
    for pattern, factor in _ENDS:
        found = pattern.search(key, max(0, len(key) - _LONGEST))
        if found is not None:
            return key[: found.start()], factor or found[1]
    return None


def canonical(name: str) -> str:
    """One spelling of a module for all: dots and underscores are the same."""
    return name.replace(".processor.", ".").replace("_processor_", "_").replace(".", "_")


def _family(header: Header) -> str | None:
    modules = {key: split_name(key, header.forms) or (key, "") for key in header.forms}
    names = {key: canonical(name) for key, (name, _) in modules.items()}
    for pattern, families in _BY_WIDTHS:
        keys = [key for key, name in names.items() if modules[key][1] in _READING and re.search(pattern, name)]
        found = families.get(max((header.width(key) for key in keys), default=0))
        if found is not None:
            return found
    for pattern, family in _BY_NAMES:
        if any(re.search(pattern, name) for name in names.values()):
            return family
    version = header.metadata.get("ss_base_model_version", "") or header.metadata.get("modelspec.architecture", "")
    return next((family for mark, family in _BY_VERSION.items() if mark in version), None)
