"""Pipeline classes around an ensemble: where diffusers' own class would write into one model, every expert gets it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any


class EveryExpert:
    """Stands before a pipeline class in the classes that ``reaching_every_expert`` makes.

    Each method runs the pipeline's own method once per expert, on an object that has what it reads and writes. Drawing
    itself stays the pipeline's own.
    """

    @classmethod
    def load_lora_into_text_encoder(
        cls, state_dict: Any, network_alphas: Any, text_encoder: Any, **options: Any
    ) -> None:
        """Load one LoRA into the text encoder of every expert."""
        stock: Any = super()
        name = options.pop("adapter_name", None) or f"default_{len(getattr(text_encoder, 'peft_config', ()))}"
        for encoder in getattr(text_encoder, "members", (text_encoder,)):
            stock.load_lora_into_text_encoder(dict(state_dict), network_alphas, encoder, adapter_name=name, **options)

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """Set the scale of every expert's IP-Adapters, as in diffusers: numbers, or dictionaries by block."""
        stock: Any = super()
        for one in self._one_by_one():
            stock.set_ip_adapter_scale.__func__(one, scale)

    def _set_pag_attn_processor(self, pag_applied_layers: list[str], do_classifier_free_guidance: bool) -> None:
        # Not on the whole ensemble: the aggregator's own attentions may match a layer's name.
        stock: Any = super()
        for one in self._one_by_one():
            one._pag_attn_processors = getattr(self, "_pag_attn_processors", None)
            stock._set_pag_attn_processor.__func__(one, pag_applied_layers, do_classifier_free_guidance)

    def _one_by_one(self) -> Iterator[Any]:
        """What the methods above read of a pipeline, with one expert's denoiser in the place of the ensemble."""
        place = "unet" if hasattr(self, "unet") else "transformer"
        denoiser = getattr(self, place)
        for one in getattr(denoiser, "members", (denoiser,)):
            yield SimpleNamespace(**{place: one})


@cache
def reaching_every_expert(cls: type) -> type:
    """Pipeline class ``cls`` for an ensemble: the same class to everyone who asks, under the same name."""
    return type(cls.__name__, (EveryExpert, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
