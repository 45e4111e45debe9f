"""A diffusers pipeline around several experts: one denoiser, one VAE, everybody's text encoders."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from diffusemble.blocks.packing import PartwiseText, TextLayout, WideText
from diffusemble.experts.controlnet import reading_first
from diffusemble.experts.every_expert import reaching_every_expert
from diffusemble.experts.expert import Expert
from diffusemble.experts.text import LayeredTextEncoder, PackedTextEncoder, WideTextEncoder

_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}

_SPARED = ("text_encoder_3", "tokenizer_3")  # SD3 without T5, which its constructor asks for all the same

_WIDE = {
    "ChromaTransformer2DModel": WideTextEncoder,
    "Flux2Transformer2DModel": LayeredTextEncoder,
    "QwenImageTransformer2DModel": WideTextEncoder,
    "ZImageTransformer2DModel": WideTextEncoder,
}  # whose pipelines count the tokens of the prompt, to build a mask, to cut it or to number them

_ONE_READER = ("StableDiffusionGLIGENPipeline", "StableDiffusionGLIGENTextImagePipeline")


def build_pipeline(denoiser: Any, experts: Sequence[Expert], cls: type | None, components: Mapping[str, Any]) -> Any:
    """Pipeline ``cls`` with ``denoiser``, an ensemble, where the U-Net or transformer stands, and the experts' other
    parts around it.

    VAE, scheduler and tokenizers are the first expert's; ``components`` adds or replaces parts. A ControlNet reads the
    text of the first expert.

    Raises:
        ValueError: a part is missing, ``components`` names one that ``cls`` does not have, or ``cls`` has room for one
            text encoder only.
    """
    first = experts[0]
    cls = cls or first.pipeline_class
    if cls is None or not all(expert.components for expert in experts):
        raise ValueError(
            "A pipeline needs text encoders and a VAE, but these experts are bare denoisers. Load them with "
            "load_experts([...])."
        )
    if cls.__name__ in _ONE_READER and len(denoiser.experts) > 1:
        raise ValueError(
            f"{cls.__name__} reads the phrases of its boxes with one text encoder, and these {len(denoiser.experts)} "
            f"experts have one each. Draw with ensemble.pipeline() and the control of this library, "
            f"diffusemble.controls.pipeline_with(pipe, [Gligen.from_pretrained(...)])."
        )
    if cls.__name__.startswith("ZImage") and type(getattr(denoiser, "aggregator", None)).__name__ == "MagicFusion":
        raise ValueError(
            f"MagicFusion reads what guidance puts into one call, without the prompt and then with it, and "
            f"{cls.__name__} puts them the other way round. Choose another aggregator, such as sabw or mean."
        )
    if cls.__name__ == "Flux2Pipeline":
        raise ValueError(
            "Flux2Pipeline (FLUX.2 dev) reads prompts with Mistral through a processor, which ensembles do not know "
            "yet. Draw with FLUX.2 klein (Flux2KleinPipeline), or call the ensemble itself with the experts' texts, "
            "packed by pack_text([...]), and guidance."
        )
    parameters = inspect.signature(cls).parameters
    place = "unet" if "unet" in parameters else "transformer"
    for name in components:
        if name not in parameters or name == place:
            raise ValueError(
                f"{cls.__name__} does not take the part {name!r}. Its parts, beside the ensemble in the place of the "
                f"{place}, are: {', '.join(key for key in parameters if key != place)}."
            )
    # FLUX.2 klein has no guidance where it is distilled; a base model beside it needs some.
    distilled = {"is_distilled": all(expert.components.get("is_distilled", False) for expert in experts)}
    parts = {**first.components, **_text_encoders(experts), **distilled, **components}
    parts[place] = first.denoiser  # for the constructor: Z-Image's ControlNets share weights with one model
    layout = _layout(first, parts, cls) if len(experts) > 1 else None
    if parts.get("controlnet") is not None and len(experts) > 1:
        parts["controlnet"] = reading_first(parts["controlnet"], len(experts), layout)
    if "requires_safety_checker" in parameters:
        parts["requires_safety_checker"] = parts.get("safety_checker") is not None
    for name in (*getattr(cls, "_optional_components", ()), *_SPARED):
        parts.setdefault(name, None)
    for name, parameter in parameters.items():
        if name not in parts and parameter.default is parameter.empty:
            raise ValueError(f"{cls.__name__} also needs {name!r}: pass it as pipeline({cls.__name__}, {name}=...).")
    pipeline = reaching_every_expert(cls)(**{name: part for name, part in parts.items() if name in parameters})
    pipeline.register_modules(**{place: denoiser.reading(layout) if layout else denoiser})
    return pipeline


def _text_encoders(experts: Sequence[Expert]) -> dict[str, nn.Module]:
    packed: dict[str, nn.Module] = {}
    for part, tokens in _ENCODERS.items():
        encoders = [expert.components[part] for expert in experts if expert.components.get(part) is not None]
        if 0 < len(encoders) < len(experts):
            without = next(expert.name for expert in experts if expert.components.get(part) is None)
            raise ValueError(
                f"Expert {without!r} has no {part}, but others have one. Every expert reads the prompt by itself: load "
                f"all of them with it, or all without."
            )
        if encoders and _kind(experts[0]) in _WIDE:
            packed[part] = _WIDE[_kind(experts[0])](encoders)
        elif encoders:
            tokenizer = experts[0].components[tokens]
            fixed = hasattr(encoders[0].config, "max_position_embeddings")  # CLIP; T5 takes any length
            length = tokenizer.model_max_length if fixed else None
            packed[part] = PackedTextEncoder(encoders, length, tokenizer.eos_token_id)
    return packed


def _kind(expert: Expert) -> str:
    return type(expert.denoiser).__name__


def _layout(first: Expert, parts: Mapping[str, Any], cls: type[Any]) -> TextLayout | None:
    """How the pipeline packs: SD3's takes the tokens of all experts' CLIP encoders, then those of their T5 encoders."""
    if _kind(first) in _WIDE:
        denoiser: Any = first.denoiser
        width = denoiser.config.get("joint_attention_dim")  # Z-Image's schedule reads the experts side by side itself
        read = inspect.signature(cls.__call__).parameters.get("text_encoder_out_layers")
        return None if width is None else WideText(width, 1 if read is None else len(read.default))
    if "text_encoder_3" not in inspect.signature(cls).parameters:
        return None
    pooled = tuple(first.components[name].config.projection_dim for name in ("text_encoder", "text_encoder_2"))
    return PartwiseText(parts["tokenizer"].model_max_length, pooled, parts.get("text_encoder_3") is not None)
