"""A diffusers pipeline around several experts: one denoiser, one VAE, everybody's text encoders."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from diffusemble.blocks.packing import unpack_text
from diffusemble.experts.expert import Expert
from diffusemble.experts.text import PackedTextEncoder

_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def build_pipeline(
    denoiser: nn.Module, experts: Sequence[Expert], cls: type | None, components: Mapping[str, Any]
) -> Any:
    """Pipeline ``cls`` with ``denoiser`` where the U-Net stands, and the experts' other parts around it.

    VAE, scheduler and tokenizers are the first expert's; ``components`` adds or replaces parts. A ControlNet reads the
    text of the first expert.

    Raises:
        ValueError: a part is missing, or ``components`` names one that ``cls`` does not have.
    """
    first = experts[0]
    cls = cls or first.pipeline_class
    if cls is None or not all(expert.components for expert in experts):
        raise ValueError(
            "A pipeline needs text encoders and a VAE, but these experts are bare denoisers. Load them with "
            "load_experts([...])."
        )
    parameters = inspect.signature(cls).parameters
    for name in components:
        if name not in parameters or name == "unet":
            raise ValueError(
                f"{cls.__name__} does not take the part {name!r}. Its parts, beside the ensemble in the place of the "
                f"U-Net, are: {', '.join(key for key in parameters if key != 'unet')}."
            )
    parts = {**first.components, **_text_encoders(experts), **components, "unet": denoiser}
    if parts.get("controlnet") is not None and len(experts) > 1:
        parts["controlnet"] = _reading_first(parts["controlnet"], len(experts))
    if "requires_safety_checker" in parameters:
        parts["requires_safety_checker"] = parts.get("safety_checker") is not None
    for name in getattr(cls, "_optional_components", ()):
        parts.setdefault(name, None)
    for name, parameter in parameters.items():
        if name not in parts and parameter.default is parameter.empty:
            raise ValueError(f"{cls.__name__} also needs {name!r}: pass it as pipeline({cls.__name__}, {name}=...).")
    return cls(**{name: part for name, part in parts.items() if name in parameters})


def _text_encoders(experts: Sequence[Expert]) -> dict[str, nn.Module]:
    packed: dict[str, nn.Module] = {}
    for part, tokens in _ENCODERS.items():
        encoders = [expert.components[part] for expert in experts if expert.components.get(part) is not None]
        if len(encoders) == len(experts):
            tokenizer = experts[0].components[tokens]
            packed[part] = PackedTextEncoder(encoders, tokenizer.model_max_length, tokenizer.eos_token_id)
    return packed


def _reading_first(controlnet: Any, n: int) -> Any:
    """``controlnet``, reading only the first of n packed texts; the weights are shared with the one given.

    Pipelines hand a ControlNet the denoiser's text. It was trained on one text encoder's output, so it gets one. It
    stays an object of its own class, because pipelines ask for the class.
    """
    if isinstance(controlnet, (list, tuple)):
        return [_reading_first(one, n) for one in controlnet]

    def unpack(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = {**given, "encoder_hidden_states": unpack_text(given["encoder_hidden_states"], n)[0]}
        added = given.get("added_cond_kwargs") or {}
        if added.get("text_embeds") is not None:
            given["added_cond_kwargs"] = {**added, "text_embeds": unpack_text(added["text_embeds"], n)[0]}
        return args, given

    twin = copy.copy(controlnet)
    # The copy shares its tables with the original; a hook of its own must not appear there.
    twin._forward_pre_hooks = OrderedDict(controlnet._forward_pre_hooks)
    twin._forward_pre_hooks_with_kwargs = OrderedDict(controlnet._forward_pre_hooks_with_kwargs)
    twin.register_forward_pre_hook(unpack, with_kwargs=True)
    return twin
