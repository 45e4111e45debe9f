"""Block-weighted merging (MBW): which slot a tensor belongs to, and how much of each expert a slot takes.

A slot is an aggregation point of AFA (``blocks/unet.py``): ``IN00`` the first convolution, one slot for every layer and
sampler of the down path, ``M00`` the middle, one slot for every layer of the up path. ``BASE`` is everything outside
the denoiser: text encoder and VAE.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from diffusemble.merging.presets import OUTSIDE, preset

BASE, MIDDLE = "BASE", "M00"
PER_LEVEL = 3  # slots of a level: two layers and a downsampler, or three layers
LEVELS = {"sd1": 4, "sd2": 4, "sdxl": 3}
DOUBLE, SINGLE = 19, 38  # transformer blocks of FLUX.1
FAMILIES = (*LEVELS, "flux")

_PREFIX = re.compile(r"^(model\.diffusion_model\.|unet[./]|transformer[./](?!resblocks))")
_UNET_INPUT = re.compile(
    r"(conv_in|time_proj|time_embedding|add_embedding|class_embedding|encoder_hid_proj|position_net"
    r"|time_embed|label_emb)\."
)
_UNET_OUTPUT = re.compile(r"(conv_norm_out\.|conv_out\.|out\.[02]\.)")
_UNET_MIDDLE = re.compile(r"(mid_block|middle_block)\.")
_DOWN = re.compile(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.")
_UP = re.compile(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.")
_LDM = re.compile(r"(input|output)_blocks\.(\d+)\.")
_FLUX_INPUT = re.compile(r"(x_embedder|context_embedder|time_text_embed|img_in|txt_in|time_in|vector_in|guidance_in)\.")
_FLUX_OUTPUT = re.compile(r"(norm_out|proj_out|final_layer)\.")
_FLUX_BLOCK = re.compile(r"(single_|double_)?(?:transformer_)?blocks\.(\d+)\.")
_T5 = re.compile(
    r"(text_encoder_2[./]|.*\bt5xxl\.|(encoder\.block\.\d+\.layer\.|encoder\.final_layer_norm\.|shared\.))"
)


def slots(family: str) -> tuple[str, ...]:
    """Names of a family's slots, ``BASE`` first.

    26 for ``sd1`` and ``sd2``, 20 for ``sdxl``, 61 for ``flux`` (FLUX.1), which has no middle: its double-stream blocks
    are ``D00`` to ``D18``, its single-stream blocks ``S00`` to ``S37``; its CLIP encoder belongs to ``BASE``, as in the
    other families, and its second text encoder is the slot ``T5``.

    Raises:
        ValueError: unknown family.
    """
    if family == "flux":
        double, single = (f"D{i:02d}" for i in range(DOUBLE)), (f"S{i:02d}" for i in range(SINGLE))
        return (BASE, "T5", "IN", *double, *single, "OUT")
    count = PER_LEVEL * _levels(family)
    return (BASE, *(f"IN{i:02d}" for i in range(count)), MIDDLE, *(f"OUT{i:02d}" for i in range(count)))


def slot_of(key: str, family: str) -> str:
    """The slot of a tensor.

    Args:
        key: its name in a diffusers denoiser, in a checkpoint of the original code (LDM, SGM, FLUX), or in another
            part of a pipeline; the denoiser's part may be in front (``unet.``, ``model.diffusion_model.``).
        family: ``"sd1"``, ``"sd2"``, ``"sdxl"`` or ``"flux"``.

    Returns:
        ``"BASE"`` for everything that is no tensor of a denoiser.

    Raises:
        ValueError: unknown family, or a denoiser's tensor that this family does not have.
    """
    slot = _slot(key, family)
    if slot is not None and slot not in slots(family):
        raise ValueError(
            f"The tensor {key!r} would be in slot {slot}, but {family!r} has only {_span(family)}. Merge it as another "
            f"family: {', '.join(one for one in FAMILIES if one != family)}."
        )
    return slot or BASE


def has_slots(keys: Iterable[str], family: str) -> bool:
    """Whether tensors of these names fill all slots of a family's denoiser, and no others; a FLUX.1 may lack blocks.

    Raises:
        ValueError: unknown family.
    """
    own = {slot for slot in slots(family) if slot not in OUTSIDE}
    found = {_slot(key, family) for key in keys} - {None, *OUTSIDE}
    return found <= own if family == "flux" else found == own


def block_ratios(weights: Sequence[Mapping[str, float]], slot: str) -> tuple[float, ...]:
    """Share of every expert in a slot, w_i / Σ_j w_j.

    Args:
        weights: one weight per slot for every expert (``parse_weights``).
        slot: one of ``slots(family)``.

    Raises:
        ValueError: an expert has no weight for the slot, or all have zero.
    """
    for number, own in enumerate(weights, start=1):
        if slot not in own:
            raise ValueError(f"Expert {number} has no weight for slot {slot!r}. Give every expert one for every slot.")
    found = [float(own[slot]) for own in weights]
    total = math.fsum(found)
    if total == 0:
        raise ValueError(f"The weights of slot {slot!r} are zero for all {len(found)} experts. Give one of them more.")
    return tuple(weight / total for weight in found)


def complement(weights: Mapping[str, float]) -> dict[str, float]:
    """1 - a for every slot: the first of two experts, where ``weights`` says how much of the second to take.

    Raises:
        ValueError: a weight above one, which leaves less than nothing.
    """
    for slot, weight in weights.items():
        if weight > 1:
            raise ValueError(
                f"Slot {slot!r} takes {weight:g} of the second expert, but shares are from 0 to 1. Write for example "
                f"0.5, or give each expert weights of its own."
            )
    return {slot: 1 - weight for slot, weight in weights.items()}


def parse_weights(value: Any, family: str) -> Mapping[str, float]:
    """One weight for every slot, in the slots' order.

    Args:
        value: name of a preset (``presets.PRESETS``); numbers in the slots' order, as a list or separated by commas;
            or a mapping from every slot to its number. Without a number for ``BASE``, it gets the mean of the others.
        family: as for ``slots``.

    Raises:
        ValueError: unknown preset or slot, a number too many or too few, or a weight that is no number from zero up.
    """
    names = slots(family)
    if isinstance(value, str):
        value = preset(value, names) if "," not in value else value.split(",")
    if isinstance(value, Mapping):
        pairs = dict(value)
        _refuse_unknown(pairs, family)
    elif isinstance(value, Iterable):
        numbers = list(value)
        if len(numbers) not in (len(names) - 1, len(names)):
            raise ValueError(
                f"Block weights for {family!r} are {len(names)} numbers ({_span(family)}), or {len(names) - 1} without "
                f"{BASE}; got {len(numbers)}. Give that many, a preset, or a mapping by slot."
            )
        pairs = dict(zip(names[-len(numbers) :], numbers, strict=True))
    else:
        raise ValueError(f"Block weights are a preset's name, numbers, or a mapping by slot; got {value!r:.60}.")
    found = {slot: _weight(pairs[slot], slot) for slot in names if slot in pairs}
    return found if BASE in found else {BASE: math.fsum(found.values()) / len(found), **found}


# -- parts of the above ------------------------------------------------------------------------------------------------


def _levels(family: str) -> int:
    if family not in LEVELS:
        raise ValueError(f"There is no family {family!r} with block weights. Choose one of: {', '.join(FAMILIES)}.")
    return LEVELS[family]


def _span(family: str) -> str:
    names = slots(family)
    return f"{names[0]}, {names[1]} to {names[-1]}"


def _slot(key: str, family: str) -> str | None:
    short = _PREFIX.sub("", key)
    return _flux_slot(short) if family == "flux" else _unet_slot(short, PER_LEVEL * _levels(family) - 1)


def _unet_slot(key: str, last: int) -> str | None:
    if _UNET_INPUT.match(key):
        return "IN00"
    if _UNET_OUTPUT.match(key):
        return f"OUT{last:02d}"
    if _UNET_MIDDLE.match(key):
        return MIDDLE
    if found := _LDM.match(key):
        return f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02d}"
    if found := _DOWN.match(key):
        layer = PER_LEVEL - 1 if found[2] == "downsamplers" else int(found[3])
        return f"IN{PER_LEVEL * int(found[1]) + layer + 1:02d}"
    if found := _UP.match(key):
        layer = PER_LEVEL - 1 if found[2] == "upsamplers" else int(found[3])
        return f"OUT{PER_LEVEL * int(found[1]) + layer:02d}"
    return None


def _flux_slot(key: str) -> str | None:
    if _T5.match(key):
        return "T5"
    if _FLUX_INPUT.match(key):
        return "IN"
    if _FLUX_OUTPUT.match(key):
        return "OUT"
    if found := _FLUX_BLOCK.match(key):
        return f"{'S' if found[1] == 'single_' else 'D'}{int(found[2]):02d}"
    return None


def _refuse_unknown(pairs: Mapping[Any, Any], family: str) -> None:
    names = slots(family)
    unknown = [str(slot) for slot in pairs if slot not in names]
    if unknown:
        raise ValueError(f"{family!r} has no slots {', '.join(unknown)}. Its slots: {', '.join(names)}.")
    missing = list(_missing(pairs, names))
    if missing:
        raise ValueError(f"There is no weight for {', '.join(missing)}. Give one for every slot of {family!r}.")


def _missing(pairs: Mapping[Any, Any], names: Sequence[str]) -> Iterator[str]:
    return (slot for slot in names if slot not in pairs and slot != BASE)


def _weight(value: Any, slot: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"The weight of slot {slot!r} is {value!r}, which is no number from zero up. Write 0.5.")
    return number
