"""What a safetensors file holds, as far as names and shapes of its tensors tell."""

from __future__ import annotations

import re
from dataclasses import dataclass

from diffusemble.experts.formats.adapters import adapter_kind, is_adapter
from diffusemble.experts.formats.families import DENOISER, SHORT, family_of_denoiser
from diffusemble.experts.formats.header import Header

CHECKPOINT, EMBEDDING, VAE = "checkpoint", "textual inversion", "VAE"
ADAPTERS = ("LoRA", "LyCORIS")

VAE_STARTS = ("first_stage_model.", "vae.")
_FIRST_OPEN_CLIP = "conditioner.embedders.0.model."
TEXT_STARTS = {
    "text_encoder": (
        "cond_stage_model.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.",
        "text_encoders.qwen3_4b.",
        "text_encoder.",
    ),
    "text_encoder_2": (
        "conditioner.embedders.1.",
        _FIRST_OPEN_CLIP,
        "text_encoders.clip_g.",
        "text_encoder_2.",
    ),
    "text_encoder_3": ("text_encoders.t5xxl.", "text_encoder_3."),
}
T5_PARTS = {SHORT["flux"]: "text_encoder_2", SHORT["chroma"]: "text_encoder"}
"""Which text encoder T5 is, where it is not the third one."""
VECTORS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "t5", "t5xxl": "t5"}
"""Tensors of a textual inversion for several text encoders, and which one each is for; T5's place differs by family."""
_OWN = {
    "diffusemble.aggregator": "aggregator of diffusemble",
    "diffusemble.control": "control of diffusemble",
    "diffusemble.lora_rank": "LoRA of a distilled ensemble of diffusemble",
}
_VAE_ALONE = ("encoder.conv_in.", "decoder.conv_in.", "encoder.down_blocks.", "decoder.up_blocks.")
_CONTROLNETS = (
    *("control_model.", "controlnet_cond_embedding.", "controlnet_blocks.", "controlnet_x_embedder."),
    *("input_hint_block.", "lllite_", "lora_controlnet", "control_layers."),
)
_OTHERS = (
    (r"image_proj\.|ip_adapter\.", "IP-Adapter"),
    (r"adapter\.body\.|body\.\d+\.(?:block|resnets|in_conv)", "T2I-Adapter"),
    (r".*motion_modules\.", "motion module (AnimateDiff)"),
    (
        r"(?:(?:en|de)coder\.layers\.)?\d+\.conv\.\d\.weight|decoder\.layers\.\d+\.weight",
        "tiny VAE for previews (TAESD)",
    ),
    (
        r"(?:text_model\.|encoder\.layers\.|transformer\.resblocks\.|encoder\.block\.\d+\.layer|embeddings\.token|"
        r"model\.layers\.\d+\.self_attn)",
        "text encoder",
    ),
    (r"(?:params_ema\.)?(?:conv_first|body\.\d+\.rdb|model\.\d+\.sub|RRDB_trunk)", "upscaler (ESRGAN)"),
    (r"vision_model\.|visual\.", "image encoder (CLIP vision)"),
)


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        kind: ``"checkpoint"``, ``"LoRA"``, ``"LyCORIS"``, ``"textual inversion"``, ``"VAE"``, ``"ControlNet"``, ...
        family: of a checkpoint or of what is made for one: ``"SD 1.x"``, ``"SDXL"``, ``"FLUX.1"``, ...; None where
            names and shapes do not tell.
        parts: of a checkpoint, by the names diffusers gives them.
        layout: of a checkpoint's denoiser: ``"original"`` or ``"diffusers"``.
    """

    kind: str
    family: str | None = None
    parts: tuple[str, ...] = ()
    layout: str | None = None

    def __str__(self) -> str:
        """As a sentence calls it: ``an SDXL checkpoint``, ``a LoRA for FLUX.1``."""
        if self.kind == CHECKPOINT:
            name = f"{self.family or ''} checkpoint".strip()
        else:
            name = f"{self.kind} for {self.family}" if self.family else self.kind
        # Letters that are spelled with a vowel at their beginning: an SD 1.x checkpoint, an IP-Adapter, an upscaler.
        return f"{'an' if re.match('SD|[aeioAEIO]|u[np]', name) else 'a'} {name}"


def contents_of(header: Header) -> Contents:
    """What a file holds; ``kind`` is ``"unknown"`` where nothing fits."""
    for key, what in _OWN.items():
        if key in header.metadata:
            return Contents(what)
    if is_adapter(header):
        return Contents(*adapter_kind(header))
    if header.has(*_CONTROLNETS):
        return Contents("ControlNet", _of_controlnet(header))
    embedding = _embedding(header)
    if embedding is not None:
        return embedding
    found = family_of_denoiser(header)
    if found is not None:
        family, layout = found
        return Contents(CHECKPOINT, family, _parts(header, family), layout)
    if header.has(*_VAE_ALONE) or header.has(*VAE_STARTS):
        return Contents(VAE)
    for pattern, what in _OTHERS:
        if any(re.match(pattern, key) for key in header.forms):
            return Contents(what)
    return Contents("unknown")


def text_starts(part: str, family: str | None) -> tuple[str, ...]:
    """How names of a text encoder's tensors begin in files of a family."""
    if family == SHORT["sd2"]:  # its only one is an OpenCLIP, also where it lies as the refiner's does
        return (*TEXT_STARTS[part], _FIRST_OPEN_CLIP) if part == "text_encoder" else ()
    if part == T5_PARTS.get(family or ""):
        return (*TEXT_STARTS[part], *TEXT_STARTS["text_encoder_3"])
    return TEXT_STARTS[part] if part != "text_encoder_3" or family not in T5_PARTS else ()


def _parts(header: Header, family: str) -> tuple[str, ...]:
    # What is left of a text encoder that was taken out (its numbered positions) is none.
    real = [key for key in header.forms if not key.endswith(("position_ids", "logit_scale"))]
    text = [part for part in TEXT_STARTS if any(key.startswith(text_starts(part, family)) for key in real)]
    vae = ["vae"] if header.has(*VAE_STARTS) else []
    return (DENOISER.get(family, "denoiser"), *vae, *text)


def _embedding(header: Header) -> Contents | None:
    keys = set(header.forms)
    if keys & VECTORS.keys() and any(key.endswith("_out") for key in keys):
        return Contents("textual inversion with vectors behind its text encoders")
    if keys and keys <= VECTORS.keys():
        t5 = "t5" in {VECTORS[key] for key in keys}
        family = "SD 3.x" if t5 and "clip_g" in keys else SHORT["flux"] if t5 and "clip_l" in keys else None
        return Contents(EMBEDDING, family if t5 else SHORT["sdxl"])
    if keys == {"emb_params"} or (len(keys) == 1 and _looks_like_vectors(header, *keys)):
        return Contents(EMBEDDING, {768: SHORT["sd1"], 1024: SHORT["sd2"]}.get(header.width(next(iter(keys)))))
    return None


def _looks_like_vectors(header: Header, key: str) -> bool:
    named = key.endswith((".weight", ".bias")) or "." in key
    return not named and len(header.shape(key)) in (1, 2) and header.forms[key].dtype.startswith(("F", "BF"))


def _of_controlnet(header: Header) -> str | None:
    if header.has("control_layers."):
        return SHORT["z-image"]
    if header.has("control_model.label_emb.", "add_embedding."):
        return SHORT["sdxl"]
    if header.has("transformer_blocks.", "controlnet_x_embedder."):
        return SHORT["flux"] if header.has("single_transformer_blocks.", "controlnet_x_embedder.") else "SD 3.x"
    widths = {header.width(key) for key in header.forms if key.endswith("attn2.to_k.weight")}
    return {768: SHORT["sd1"], 1024: SHORT["sd2"]}.get(max(widths, default=0))
