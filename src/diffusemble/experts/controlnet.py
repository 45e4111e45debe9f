"""ControlNets beside an ensemble: they read the text of its first expert."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from typing import Any

from torch import nn

from diffusemble.blocks.packing import TextLayout, unpack_text


def reading_first(controlnet: Any, n: int, layout: TextLayout | None = None) -> Any:
    """``controlnet``, reading only the first of n packed texts; the weights are shared with the one given.

    Pipelines hand a ControlNet the denoiser's text. It was trained on one text encoder's output, so it gets one. It
    stays an object of its own class, because pipelines ask for the class.

    Args:
        controlnet: one, or several.
        n: number of experts.
        layout: how the pipeline packs, if not expert by expert.
    """
    if isinstance(controlnet, (list, tuple)):
        return [reading_first(one, n, layout) for one in controlnet]

    names = tuple(inspect.signature(type(controlnet).forward).parameters)[1:]

    def unpack(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = dict(zip(names, args, strict=False)) | given  # Z-Image's pipelines name nothing
        return (), _of_first(named if layout is None else layout.sorted(named, n), n)

    twin = copy.copy(controlnet)
    # The copy shares its tables with the original; a hook of its own must not appear there.
    twin._forward_pre_hooks = OrderedDict(controlnet._forward_pre_hooks)
    twin._forward_pre_hooks_with_kwargs = OrderedDict(controlnet._forward_pre_hooks_with_kwargs)
    twin.register_forward_pre_hook(unpack, with_kwargs=True)
    return twin


def _of_first(given: dict[str, Any], n: int) -> dict[str, Any]:
    own = dict(given)
    for name in ("encoder_hidden_states", "pooled_projections"):
        if own.get(name) is not None:
            own[name] = unpack_text(own[name], n)[0]
    if own.get("cap_feats") is not None:
        own["cap_feats"] = [caption.chunk(n, dim=1)[0].contiguous() for caption in own["cap_feats"]]
    if own.get("txt_ids") is not None:
        ids = own["txt_ids"]
        own["txt_ids"] = ids[..., : own["encoder_hidden_states"].shape[1], :]
    added = own.get("added_cond_kwargs") or {}
    if added.get("text_embeds") is not None:
        own["added_cond_kwargs"] = {**added, "text_embeds": unpack_text(added["text_embeds"], n)[0]}
    return own
