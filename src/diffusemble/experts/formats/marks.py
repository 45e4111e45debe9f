"""What a header tells of how a file is stored and what it predicts; nothing here needs torch."""

from __future__ import annotations

import re
from typing import Any

from diffusemble.experts.formats.header import Header

FP8 = ("F8_E4M3", "F8_E5M2")
FLOATS = ("F64", "F32", "F16", "BF16", *FP8)
SCALES = (".scale_weight", ".weight_scale")
NOTES = (".scale_input", ".input_scale", ".comfy_quant")  # how to compute in fp8, which is not done here
MARKER = "scaled_fp8"
_QUANTISED = (
    (r".*\.quant_state\.bitsandbytes__nf4", "nf4 (bitsandbytes, 4 bits)"),
    (r".*\.quant_state\.bitsandbytes__fp4", "fp4 (bitsandbytes, 4 bits)"),
    (r".*\.SCB$", "int8 (bitsandbytes)"),
    (r".*\.(?:wscales|smooth_factor|smooth)$", "SVDQuant (4 bits)"),
    (r".*\.weight_scale_2$", "nvfp4 (4 bits)"),
    (r".*\.qzeros$", "GPTQ"),
    (r".*\.weight\._data$", "quanto"),
    (r".*\.absmax$", "a block-wise quantisation (bitsandbytes)"),
)
_TOLD = ("modelspec.predict_key", "modelspec.prediction_type")
"""Where ComfyUI and the programs of kohya write what a denoiser predicts."""
_PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}


def quantisation(header: Header) -> str | None:
    """How the weights of a file are quantised, if they are so that they cannot be read here."""
    for pattern, name in _QUANTISED:
        if any(re.match(pattern, key) for key in header.forms):
            return name
    odd = {form.dtype for key, form in header.forms.items() if key.endswith(".weight") and len(form.shape) > 1}
    odd -= {*FLOATS}
    return ", ".join(sorted(odd)) if odd else None


def is_scaled(header: Header) -> bool:
    """Whether fp8 weights come with scales that they have to be multiplied by."""
    return any(scaled(header, key) for key in header.forms)


def scaled(header: Header, key: str) -> bool:
    """Whether a tensor holds the scales of an fp8 weight."""
    for end in SCALES:
        weight = key.removesuffix(end) + ".weight"
        if key.endswith(end) and weight in header.forms:
            return header.forms[weight].dtype in FP8
    return False


def marked_schedule(header: Header) -> dict[str, Any]:
    """Entries of a scheduler's configuration that a file itself tells, by the marks that programs write."""
    told = "v" if "v_pred" in header.forms else next(filter(None, map(header.metadata.get, _TOLD)), "")
    marks: dict[str, Any] = {"prediction_type": _PREDICTIONS[told]} if told in _PREDICTIONS else {}
    if "ztsnr" in header.forms:
        marks["rescale_betas_zero_snr"] = True
    return marks
