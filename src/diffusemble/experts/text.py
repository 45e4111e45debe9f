"""Every expert reads the prompt with its own text encoder; a pipeline sees one tensor.

The experts' embeddings are packed along the token axis (``blocks.packing``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from diffusemble.blocks.packing import pack_text, unpack_text
from diffusemble.experts.packed_model import PackedModel


class PackedTextEncoder(PackedModel):
    """Stands where ``pipe.text_encoder`` stands and returns the packed embeddings of n CLIP or T5 text encoders.

    The encoders must share their vocabulary, because the pipeline tokenizes once.

    Args:
        encoders: one ``CLIPTextModel``, ``CLIPTextModelWithProjection`` or ``T5EncoderModel`` per expert.
        keep_tokens: the prompt's length in tokens (77 in Stable Diffusion); None for encoders that take any length.
        end_token: the tokenizer's end-of-text token.
    """

    def __init__(self, encoders: Sequence[nn.Module], keep_tokens: int | None, end_token: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.keep_tokens = keep_tokens
        self.end_token = end_token

    @property
    def config(self) -> Any:
        """Configuration of the first expert's encoder, with the pooled text of all."""
        config = copy.copy(self.encoders[0].config)
        if hasattr(config, "projection_dim"):
            config.projection_dim *= len(self.encoders)
        return config

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the first expert's encoder."""
        return next(self.encoders[0].parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the first expert's encoder."""
        return next(self.encoders[0].parameters()).device

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Any:
        """Encode ``input_ids [b s]`` with every encoder; every output tensor is packed along its axis 1."""
        ids = self._shorten(input_ids)
        mask = None if attention_mask is None else attention_mask[:, : ids.shape[1]]
        outputs = self._read(ids, attention_mask=mask, output_hidden_states=output_hidden_states)
        hidden = (
            tuple(pack_text(layers) for layers in zip(*(out.hidden_states for out in outputs), strict=True))
            if output_hidden_states
            else None
        )
        last = pack_text([out.last_hidden_state for out in outputs])
        if hasattr(outputs[0], "text_embeds"):
            # SDXL's second encoder: its pooled embedding comes first, as in the transformers class.
            pooled = pack_text([out.text_embeds for out in outputs])
            return CLIPTextModelOutput(text_embeds=pooled, last_hidden_state=last, hidden_states=hidden)
        if not hasattr(outputs[0], "pooler_output"):  # T5
            return BaseModelOutput(last_hidden_state=last, hidden_states=hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=pack_text([out.pooler_output for out in outputs]),
            hidden_states=hidden,
        )

    def _read(self, ids: Tensor, **given: Any) -> list[Any]:
        done: dict[int, Any] = {}  # an encoder shared by several experts runs once
        for encoder in self.encoders:
            if id(encoder) not in done:
                done[id(encoder)] = encoder(ids, **given)
        return [done[id(encoder)] for encoder in self.encoders]

    @property
    def text_model(self) -> PackedTextEncoder:
        """Where pipelines look for ``final_layer_norm`` when they skip CLIP layers."""
        return self

    def final_layer_norm(self, packed: Tensor) -> Tensor:
        """Every expert's own final norm on its part of ``packed [b n·s d]``."""
        parts = unpack_text(packed, len(self.encoders))
        inner: list[Any] = [getattr(encoder, "text_model", encoder) for encoder in self.encoders]
        return pack_text([model.final_layer_norm(part) for model, part in zip(inner, parts, strict=True)])

    def _shorten(self, ids: Tensor) -> Tensor:
        # Pipelines tokenize the negative prompt to the length of the packed embedding. Cutting it back to one prompt's
        # length, with the end token in the last place where the text was cut, is what tokenizing to that length gives.
        if self.keep_tokens is None or ids.shape[1] <= self.keep_tokens:
            return ids
        short = ids[:, : self.keep_tokens].clone()
        complete = (short == self.end_token).any(dim=1)
        short[:, -1] = short[:, -1].where(complete, torch.full_like(short[:, -1], self.end_token))
        return short


class WideTextEncoder(PackedTextEncoder):
    """The same for pipelines that count tokens (``WideText``): the experts' embeddings lie side by side,
    ``[b s n·d]``.
    """

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__(encoders, None, -1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> Any:
        """Encode ``input_ids [b s]`` with every encoder."""
        outputs = self._read(input_ids, attention_mask=attention_mask, output_hidden_states=output_hidden_states)
        if not output_hidden_states:
            return BaseModelOutput(last_hidden_state=torch.cat([out.last_hidden_state for out in outputs], dim=2))
        return _layers(outputs)


class LayeredTextEncoder(WideTextEncoder):
    """The same for language models, of which pipelines read several layers and nothing else (FLUX.2)."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = True,
        use_cache: bool = False,
    ) -> Any:
        """Encode ``input_ids [b s]`` with every encoder."""
        asked = {"output_hidden_states": True, "use_cache": use_cache, "logits_to_keep": 1}  # which nobody reads
        outputs = self._read(input_ids, attention_mask=attention_mask, **asked)
        return _layers(outputs)


def _layers(outputs: Sequence[Any]) -> BaseModelOutput:
    """Every layer's output of all encoders, side by side."""
    layers = zip(*(out.hidden_states for out in outputs), strict=True)
    return BaseModelOutput(hidden_states=tuple(torch.cat(layer, dim=2) for layer in layers))
