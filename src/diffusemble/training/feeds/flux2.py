"""FLUX.2: several layers of a language model, and squares of 2 x 2 latents that are one, which its VAE measures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from torch import Tensor

from diffusemble.training.feeds.base import Choices, denoiser_of
from diffusemble.training.feeds.flux import TIME_UNIT, FluxFeed


class Flux2Feed(FluxFeed):
    """A latent is one token; text tokens are numbered, and filled up to one length without a mask.

    FLUX.2 dev is told a guidance scale as FLUX.1 dev is (``FluxFeed``), klein is not.

    Args:
        pipeline: of the denoiser.
        denoiser: a ``Flux2Transformer2DModel``.
        choices: choices of the run.
    """

    def __init__(self, pipeline: Any, denoiser: Any, choices: Choices) -> None:
        super().__init__(pipeline, denoiser, choices)
        usual: int = inspect.signature(type(pipeline).__call__).parameters["max_sequence_length"].default
        self._tokens = choices.text_tokens or min(usual, pipeline.tokenizer.model_max_length)
        self.text_settings = f"tokens {self._tokens}"

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str], empty: bool = False) -> dict[str, Tensor]:
        """``encoder_hidden_states``; the empty prompt stands in a conversation, too."""
        text, _ = pipeline.encode_prompt(
            prompt=list(prompts), device=pipeline.vae.device, max_sequence_length=self._tokens
        )
        sort = getattr(denoiser_of(pipeline), "by_expert", dict)  # pipelines pack the experts side by side
        return {name: tensor.cpu().contiguous() for name, tensor in sort({"encoder_hidden_states": text}).items()}

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The denoiser's output, back on the grid."""
        text = inputs["encoder_hidden_states"]
        packed: Tensor = denoiser(
            hidden_states=Flux2KleinPipeline._pack_latents(noisy),
            timestep=times / TIME_UNIT,
            img_ids=Flux2KleinPipeline._prepare_latent_ids(noisy).to(noisy.device),
            txt_ids=Flux2KleinPipeline._prepare_text_ids(text[:1, : self._tokens]).to(noisy.device),
            **inputs,
            return_dict=False,
        )[0]
        return packed.mT.reshape(noisy.shape)

    def image_tokens(self, height: int, width: int) -> int:
        """One for every latent, which are squares already."""
        return height * width
