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
        for encoder in _each(text_encoder):
            stock.load_lora_into_text_encoder(dict(state_dict), network_alphas, encoder, adapter_name=name, **options)

    @classmethod
    def _maybe_expand_transformer_param_shape_or_error_(cls, transformer: Any, *args: Any, **options: Any) -> bool:
        # A control LoRA of FLUX (Canny, Depth) widens the first layer, here that of every expert.
        stock: Any = super()
        widen = stock._maybe_expand_transformer_param_shape_or_error_
        widened = [widen(one, *args, **options) for one in _each(transformer)]
        return any(widened)

    @classmethod
    def _maybe_expand_lora_state_dict(cls, transformer: Any, lora_state_dict: Any) -> Any:
        # The experts are of one architecture, so that what fits the first fits all.
        stock: Any = super()
        return stock._maybe_expand_lora_state_dict(_each(transformer)[0], lora_state_dict)

    @classmethod
    def _load_norm_into_transformer(cls, state_dict: Any, transformer: Any, *args: Any, **options: Any) -> Any:
        stock: Any = super()
        replaced = [
            stock._load_norm_into_transformer(dict(state_dict), one, *args, **options) for one in _each(transformer)
        ]
        if not hasattr(transformer, "members"):
            return replaced[0]
        # By the names that they have in the ensemble, where unloading puts them back.
        numbers = [list(transformer.denoisers).index(one) for one in transformer.members]
        return {
            f"denoisers.{number}.{name}": weight
            for number, own in zip(numbers, replaced, strict=True)
            for name, weight in own.items()
        }

    def unload_lora_weights(self, reset_to_overwritten_params: bool = False) -> None:
        """Unload LoRAs from every expert.

        Raises:
            ValueError: ``reset_to_overwritten_params``, which only FLUX has, and only for one transformer.
        """
        if reset_to_overwritten_params:
            raise ValueError(
                "reset_to_overwritten_params narrows the first layer of one transformer, which a control LoRA has "
                "widened. Leave it out, and load the experts again to draw without control pictures."
            )
        stock: Any = super()
        stock.unload_lora_weights()

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
        for one in _each(getattr(self, place)):
            yield SimpleNamespace(**{place: one})


def _each(model: Any) -> tuple[Any, ...]:
    """The models of all experts that stand in the place of one; or the one."""
    members: tuple[Any, ...] = getattr(model, "members", (model,))
    return members


@cache
def reaching_every_expert(cls: type) -> type:
    """Pipeline class ``cls`` for an ensemble: the same class to everyone who asks, under the same name."""
    return type(cls.__name__, (EveryExpert, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
