"""What pipelines do to one text encoder, done to the text encoders of all experts."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from diffusers import ModelMixin
from diffusers.loaders.lora_base import (
    disable_lora_for_text_encoder,
    enable_lora_for_text_encoder,
    fuse_text_encoder_lora,
    set_adapters_for_text_encoder,
    unfuse_text_encoder_lora,
)
from diffusers.utils import delete_adapter_layers, recurse_remove_peft_layers


class PackedModel(ModelMixin):
    """Base of packed text encoders: their LoRAs are switched together.

    Diffusers' model class is its base because pipelines ask for that class before they change a LoRA.
    """

    encoders: Any

    @property
    def members(self) -> tuple[Any, ...]:
        """Every encoder once, in order: several experts may share one."""
        return tuple({id(encoder): encoder for encoder in self.encoders}.values())

    @property
    def peft_config(self) -> dict[str, Any]:
        """LoRAs by name, of all encoders; absent where none has any."""
        found = {name: one for encoder in self.members for name, one in getattr(encoder, "peft_config", {}).items()}
        if not found:
            raise AttributeError("No text encoder of these experts has a LoRA.")
        return found

    def set_adapters(self, names: Any, weights: Any = None) -> None:
        """Use these LoRAs, with these weights."""
        for encoder in self.members:
            set_adapters_for_text_encoder(names, encoder, weights)

    def fuse_lora(self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: Any = None) -> None:
        """Add the LoRAs to the weights."""
        for encoder in self.members:
            fuse_text_encoder_lora(encoder, lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self) -> None:
        """Undo ``fuse_lora``."""
        for encoder in self.members:
            unfuse_text_encoder_lora(encoder)

    def enable_lora(self) -> None:
        """Undo ``disable_lora``."""
        for encoder in self.members:
            enable_lora_for_text_encoder(encoder)

    def disable_lora(self) -> None:
        """Read the prompt without LoRAs, and keep them."""
        for encoder in self.members:
            disable_lora_for_text_encoder(encoder)

    def delete_adapters(self, names: str | list[str]) -> None:
        """Remove these LoRAs."""
        for encoder in self.members:
            for name in [names] if isinstance(names, str) else names:
                delete_adapter_layers(encoder, name)

    def unload_lora(self) -> None:
        """Remove all LoRAs."""
        for encoder in self.members:
            recurse_remove_peft_layers(encoder)
            if getattr(encoder, "peft_config", None) is not None:
                del encoder.peft_config
                encoder._hf_peft_config_loaded = None

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or convert the encoders, as every module does."""
        return torch.nn.Module.to(self, *args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """A pipeline around an ensemble cannot be saved.

        Raises:
            ValueError: always; names the way that works.
        """
        raise ValueError(
            "A pipeline around an ensemble cannot be saved: its experts stay where they are. Save the ensemble, "
            "ensemble.save_pretrained(folder), and open it with EnsembleDenoiser.from_pretrained(folder).pipeline()."
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            first = next(iter(self.__dict__.get("_modules", {}).get("encoders", ())), None)
            if name.startswith("_") or not hasattr(type(first), name):
                raise
            raise AttributeError(
                f"The text encoders of all experts stand here, and {name!r} belongs to one. Load textual inversions "
                f"with the experts, load_experts(['a.safetensors+word.safetensors', ...]); for anything else: "
                f"`for encoder in pipe.text_encoder.encoders: encoder.{name}`."
            ) from error
