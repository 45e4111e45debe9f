"""Whose slots a model has: its family, told by the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffusemble.experts.formats.families import DENOISER, SHORT, family_of_denoiser
from diffusemble.experts.formats.header import Form, Header
from diffusemble.merging.blockwise import has_slots


def family_of(keys: Iterable[str]) -> str:
    """Family of a denoiser or a whole checkpoint, for ``slots`` (``sd1`` for SD 2.x, which has the same slots).

    Raises:
        ValueError: it is of a family without slots, or has other blocks than its family; the message names it.
    """
    names = tuple(keys)
    for family in ("sdxl", "sd1"):
        if has_slots(names, family):
            return family
    known = family_of_denoiser(Header(Path(), 0, dict.fromkeys(names, Form("", ()))))  # where shapes change nothing
    if known is None:
        found = f"among {len(names)} tensors ({', '.join(sorted(names)[:2])}, ...) there is none"
        raise ValueError(f"{_NEEDED}; {found}. Give a whole checkpoint of one of these.")
    if known[0] == SHORT["flux"] and has_slots(names, "flux"):
        return "flux"
    slotted = known[0] == SHORT["flux"] or DENOISER.get(known[0]) == "unet"
    found = f"is {known[0]} with other blocks" if slotted else f"is {known[0]}, whose blocks have no slots"
    raise ValueError(f"{_NEEDED}; this {found}. Merge it without blocks, in one share for the whole denoiser.")


_NEEDED = "Block weights need a whole denoiser with the blocks of SD 1.x, SD 2.x, SDXL or FLUX.1"
