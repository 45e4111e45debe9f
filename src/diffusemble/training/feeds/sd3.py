"""Stable Diffusion 3 and 3.5: two CLIP encoders, and T5 where it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffusemble.training.feeds.base import Choices, Framing, Text, denoiser_of, encode_halves, patches, refuse_choices


class SD3Feed:
    """Joint text of three encoders and the pooled text of two; without T5 its tokens are zero.

    Args:
        pipeline: of the denoiser.
        denoiser: an ``SD3Transformer2DModel``.
        choices: choices of the run.
    """

    def __init__(self, pipeline: Any, denoiser: Any, choices: Choices) -> None:
        refuse_choices(choices, guidance=False, text_tokens=True)
        self._patch = denoiser.config.patch_size
        self._length = {} if choices.text_tokens is None else {"max_sequence_length": choices.text_tokens}
        self.text_settings = f"tokens {choices.text_tokens} T5 {pipeline.text_encoder_3 is not None}"

    def encode(self, pipeline: Any, prompts: Sequence[str], empty: bool = False) -> dict[str, Tensor]:
        """``encoder_hidden_states`` and ``pooled_projections``."""
        names = ("encoder_hidden_states", "pooled_projections")
        given = {"prompt": list(prompts), "prompt_2": None, "prompt_3": None, **self._length}
        text = encode_halves(pipeline, names, empty, **given)
        sort = getattr(denoiser_of(pipeline), "by_expert", dict)  # pipelines pack encoder by encoder
        return {name: tensor.contiguous() for name, tensor in sort(text).items()}

    def inputs(self, text: Text, framing: Framing) -> dict[str, Any]:
        """The text alone."""
        return dict(text)

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The denoiser's output."""
        prediction: Tensor = denoiser(hidden_states=noisy, timestep=times, **inputs, return_dict=False)[0]
        return prediction

    def image_tokens(self, height: int, width: int) -> int:
        """One for every patch.

        Raises:
            ValueError: patches do not cover the latents.
        """
        return patches(height, width, self._patch)
