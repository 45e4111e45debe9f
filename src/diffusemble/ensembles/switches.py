"""What pipelines and their users call on a denoiser beside its ``forward``: on an ensemble it reaches every expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import ModelMixin

from diffusemble.experts.every_expert import EveryExpert

_ONE_MODEL = {
    **dict.fromkeys(
        ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks"),
        "what reads or patches whole blocks of one model (DeepCache, self-attention guidance, FreeNoise) would reach "
        "the first expert only, and an ensemble calls the layers inside. (set_ip_adapter_scale works on pipelines that "
        "ensemble.pipeline(cls) made.)",
    ),
    "t_scale": "a ControlNet of Z-Image shares it with one model, which ensemble.pipeline(cls, controlnet=...) sees to",
}
_EACH = "it belongs to one model"


def _on_every_expert(name: str) -> Callable[..., None]:
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        for without in (denoiser for denoiser in self.members if not hasattr(denoiser, name)):
            raise AttributeError(
                f"{name} is asked of every expert, and {type(without).__name__} does not have it. Leave it out, or use "
                f"it on the experts one by one: `ensemble.denoisers[0].{name}(...)`."
            )
        for denoiser in self.members:
            getattr(denoiser, name)(*args, **kwargs)

    call.__name__ = name
    call.__doc__ = f"``{name}`` of diffusers' models, on every expert."
    return call


class Switches(ModelMixin):
    """Base of an ensemble: diffusers' own switches, LoRA and IP-Adapter management, on every expert at once.

    Diffusers' model class is its base because pipelines ask for that class before they change a LoRA. What one model
    has and an ensemble cannot have raises an ``AttributeError`` that names the way that works.
    """

    denoisers: Any

    @property
    def members(self) -> tuple[Any, ...]:
        """Every denoiser once, in order: one may stand for several experts."""
        return tuple({id(denoiser): denoiser for denoiser in self.denoisers}.values())

    # -- the same call on every expert -----------------------------------------------------------------------------

    enable_gradient_checkpointing = _on_every_expert("enable_gradient_checkpointing")
    disable_gradient_checkpointing = _on_every_expert("disable_gradient_checkpointing")
    enable_freeu = _on_every_expert("enable_freeu")
    disable_freeu = _on_every_expert("disable_freeu")
    fuse_qkv_projections = _on_every_expert("fuse_qkv_projections")
    unfuse_qkv_projections = _on_every_expert("unfuse_qkv_projections")
    set_attention_slice = _on_every_expert("set_attention_slice")
    set_default_attn_processor = _on_every_expert("set_default_attn_processor")
    set_attention_backend = _on_every_expert("set_attention_backend")
    reset_attention_backend = _on_every_expert("reset_attention_backend")
    enable_layerwise_casting = _on_every_expert("enable_layerwise_casting")
    enable_cache = _on_every_expert("enable_cache")
    disable_cache = _on_every_expert("disable_cache")
    compile_repeated_blocks = _on_every_expert("compile_repeated_blocks")
    _load_ip_adapter_weights = _on_every_expert("_load_ip_adapter_weights")
    set_adapters = _on_every_expert("set_adapters")
    delete_adapters = _on_every_expert("delete_adapters")
    fuse_lora = _on_every_expert("fuse_lora")
    unfuse_lora = _on_every_expert("unfuse_lora")
    unload_lora = _on_every_expert("unload_lora")
    enable_lora = _on_every_expert("enable_lora")
    disable_lora = _on_every_expert("disable_lora")
    enable_lora_hotswap = _on_every_expert("enable_lora_hotswap")

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        # Pipelines ask for this name, and call it after a picture.
        for denoiser in self.members:
            if hasattr(denoiser, "_reset_stateful_cache"):
                denoiser._reset_stateful_cache(recurse)

    # -- attention processors --------------------------------------------------------------------------------------

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Attention processors of all experts by name.

        The first expert's have their own names, the others' the number of the expert before the attention:
        ``mid_block.attentions.0.transformer_blocks.0.expert_2.attn1.processor``. So what code reads off a name's
        beginning and end holds for all.
        """
        found = {}
        for number, denoiser in enumerate(self.members, start=1):
            for name, processor in denoiser.attn_processors.items():
                found[_named(name, number)] = processor
        return found

    def set_attn_processor(self, processor: Any) -> None:
        """Set the attention processors of the experts; the aggregator keeps its own.

        Args:
            processor: one for all; or a dictionary with the names of one expert, for each of them; or a dictionary with
                the names of ``attn_processors``.

        Raises:
            ValueError: a dictionary with other names.
        """
        for number, denoiser in enumerate(self.members, start=1):
            denoiser.set_attn_processor(self._own(processor, number) if isinstance(processor, dict) else processor)

    def _own(self, processors: Mapping[str, Any], number: int) -> dict[str, Any]:
        names = list(self.members[number - 1].attn_processors)
        of_all = set(self.attn_processors)
        if set(processors) not in (set(names), of_all):
            strange = sorted(set(processors) - of_all) or sorted(of_all - set(processors))
            raise ValueError(
                f"set_attn_processor needs a dictionary with the names of one expert's attentions or with those of "
                f"ensemble.attn_processors; got {len(processors)} names, where these do not match: "
                f"{', '.join(strange[:3])}. Read the names from ensemble.attn_processors."
            )
        return {name: processors.get(_named(name, number), processors.get(name)) for name in names}

    # -- image prompts ---------------------------------------------------------------------------------------------

    @property
    def encoder_hid_proj(self) -> Any:
        """Image-prompt projection of the first expert; pipelines read its presence and the number of adapters."""
        return self.denoisers[0].encoder_hid_proj

    @encoder_hid_proj.setter
    def encoder_hid_proj(self, projection: None) -> None:
        # Pipelines unload IP-Adapters by setting this to None, and only the first expert's configuration beside it.
        for denoiser in self.members:
            denoiser.encoder_hid_proj = projection
            denoiser.config.encoder_hid_dim_type = None

    @property
    def image_proj(self) -> Any:
        """Image-prompt projection of the first expert (SD3)."""
        return self.denoisers[0].image_proj

    @image_proj.setter
    def image_proj(self, projection: None) -> None:
        for denoiser in self.members:  # as above
            denoiser.image_proj = projection

    def _load_ip_adapter_loras(self, weights: Any) -> Any:
        return self.denoisers[0]._load_ip_adapter_loras(weights)

    # -- LoRAs -----------------------------------------------------------------------------------------------------

    @property
    def peft_config(self) -> dict[str, Any]:
        """LoRAs by name, of all experts; absent where none has any."""
        found = {name: one for denoiser in self.members for name, one in getattr(denoiser, "peft_config", {}).items()}
        if not found:
            raise AttributeError("No expert of this ensemble has a LoRA.")
        return found

    def load_lora_adapter(self, weights: Any, *args: Any, adapter_name: str | None = None, **options: Any) -> None:
        """Load one LoRA into every expert's denoiser; what ``pipe.load_lora_weights`` calls.

        Args:
            weights: file, hub id or tensors by name.
            args: ``prefix`` and ``hotswap``, as in diffusers.
            adapter_name: its name; ``default_0``, ``default_1``, ... by default.
            options: as in diffusers.

        Raises:
            ValueError: it also changes text encoders, and the pipeline was not made by ``ensemble.pipeline``.
        """
        _refuse_text_loras(weights, options.get("_pipeline"))
        name = adapter_name or f"default_{len(getattr(self, 'peft_config', ()))}"
        for denoiser in self.members:
            own = dict(weights) if isinstance(weights, dict) else weights
            denoiser.load_lora_adapter(own, *args, adapter_name=name, **options)

    def active_adapters(self) -> list[str]:
        """Names of the LoRAs in use, of the first expert that has any."""
        owners = [denoiser for denoiser in self.members if getattr(denoiser, "peft_config", None)]
        return owners[0].active_adapters() if owners else []

    # -- memory ----------------------------------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or convert the ensemble, as every module does."""
        return torch.nn.Module.to(self, *args, **kwargs)

    def enable_group_offload(self, onload_device: torch.device, **options: Any) -> None:
        """Keep weights elsewhere until a layer needs them; ``offload_type="leaf_level"``, as in diffusers.

        Raises:
            ValueError: ``"block_level"``, diffusers' default.
        """
        if options.get("offload_type", "block_level") != "leaf_level":
            raise ValueError(
                "Group offloading by blocks waits for calls of whole blocks, and an ensemble calls the layers inside. "
                'Use offload_type="leaf_level".'
            )
        super().enable_group_offload(onload_device, **options)

    # -- everything else -------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            first = next(iter(self.__dict__.get("_modules", {}).get("denoisers", ())), None)
            own = (*getattr(first, "__dict__", ()), *getattr(first, "_modules", ()))
            if name.startswith("__") or not (hasattr(type(first), name) or name in own):
                raise
            raise AttributeError(
                f"An ensemble has no {name!r}: {_ONE_MODEL.get(name, _EACH)}. Use it on the experts one by one: "
                f"`for denoiser in ensemble.denoisers: denoiser.{name}`."
            ) from error


def _refuse_text_loras(weights: Any, pipeline: Any) -> None:
    if pipeline is None or not isinstance(weights, dict) or not any(key.startswith("text_encoder") for key in weights):
        return
    readers = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    if not (isinstance(pipeline, EveryExpert) and all(hasattr(one, "members") for one in readers if one is not None)):
        name = type(pipeline).__name__
        raise ValueError(
            f"This LoRA also changes text encoders, and this {name} does not know those of all experts. Make the "
            f"pipeline with ensemble.pipeline({name}), not with from_pipe; at output level, add the LoRA to the "
            f"experts: load_experts(['a.safetensors+lora.safetensors:0.7', ...])."
        )


def _named(name: str, number: int) -> str:
    if number == 1:
        return name
    *path, attention, processor = name.split(".")
    return ".".join((*path, f"expert_{number}", attention, processor))
