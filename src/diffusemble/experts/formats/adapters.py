"""LoRA and LyCORIS files: how their tensors are called, and which family they were made for."""

from __future__ import annotations

import re

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
    # LyCORIS: LoHa, LoKr, whole differences, norms
    r"\.(hada_w[12]_[ab]|hada_t[12])": "",
    r"\.(lokr_w[12]|lokr_w[12]_[ab]|lokr_t2)": "",
    r"\.diff": "diff",
    r"\.diff_b": "bias",
    r"\.w_norm": "diff",
    r"\.b_norm": "bias",
    r"\.alpha": "alpha",
}
"""Ends of tensors' names, and what the tensor is in the formulas ("": what the group of the pattern says)."""
UNREADABLE = {
    r".*\.oft_(?:blocks|diag|R)": "OFT",
    r".*\.on_input": "IA3",
    r".*\.[ab][12]\.weight|.*\.b[mn]\.weight": "GLoRA",
    r".*\.processor\.(?:qkv_lora|proj_lora)\d": "a LoRA in the layout of XLabs",
    r".*\.lora_(?:ga|vera)|.*vera_lambda": "VeRA",
}
"""Kinds of adapters that are refused, by their tensors' names."""
_MARKS = re.compile(
    r".*(?:lora[._](?:up|down|A|B|mid|linear_layer)|\.hada_w\d|\.lokr_w\d|\.oft_|\.on_input|_lora\d?\.(?:up|down)|"
    r"\.dora_scale|lora_magnitude)|(?:lora|lycoris)_\w+\.(?:diff|w_norm|alpha)"
)
_ENDS = [(re.compile(rf"{pattern}$"), factor) for pattern, factor in FACTORS.items()]
_LONGEST = 60  # characters of an end, with the name that peft gives an adapter
_LYCORIS = re.compile(r".*\.(?:hada_|lokr_|diff|w_norm|oft_|on_input|[ab][12]\.weight)")
_SDXL = re.compile(r"lora_te2_|text_encoder_2|unet_(?:input|output)_blocks|label_emb|add_embedding")


def is_adapter(header: Header) -> bool:
    """Whether a file holds differences for another model's weights, not weights."""
    return any(_MARKS.match(key) for key in header.forms)


def adapter_kind(header: Header) -> tuple[str, str | None]:
    """``"LoRA"`` or ``"LyCORIS"``, and the family it was made for as far as names and widths tell."""
    lycoris = any(_LYCORIS.match(key) for key in header.forms)
    return "LyCORIS" if lycoris else "LoRA", _family(header)


def split_name(key: str) -> tuple[str, str] | None:
    """Module and factor of a tensor of an adapter: ``("lora_unet_mid", "up")``; None for another tensor."""
    for pattern, factor in _ENDS:
        found = pattern.search(key, max(0, len(key) - _LONGEST))
        if found is not None:
            return key[: found.start()], factor or found[1]
    return None


def _family(header: Header) -> str | None:
    names = [key.replace(".", "_") for key in header.forms]
    if any(re.search(r"single_transformer_blocks|double_blocks|single_blocks", name) for name in names):
        return SHORT["flux"]
    if any(re.search(r"joint_blocks|(?<!single_)transformer_blocks_\d+_attn_add_q_proj", name) for name in names):
        return "SD 3 or 3.5"
    if any(_SDXL.search(name) for name in names):
        return SHORT["sdxl"]
    widths = {
        form.shape[-1] if form.shape else 0
        for key, form in header.forms.items()
        if re.search(r"attn2[._](?:processor[._])?to_[kv]", key) and (split_name(key) or ("", ""))[1] == "down"
    }
    known = {768: SHORT["sd1"], 1024: SHORT["sd2"], 2048: SHORT["sdxl"], 1280: SHORT["refiner"]}
    if widths:
        return known.get(max(widths))
    version = header.metadata.get("ss_base_model_version", "") or header.metadata.get("modelspec.architecture", "")
    return next((family for mark, family in _VERSIONS.items() if mark in version), None)


_VERSIONS = {
    "sdxl": SHORT["sdxl"],
    "xl-v1": SHORT["sdxl"],
    "sd_v1": SHORT["sd1"],
    "diffusion-v1": SHORT["sd1"],
    "sd_v2": SHORT["sd2"],
    "diffusion-v2": SHORT["sd2"],
    "flux": SHORT["flux"],
    "sd3": SHORT["sd3"],
}
