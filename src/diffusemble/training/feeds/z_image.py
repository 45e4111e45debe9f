"""Z-Image: captions of Qwen3 in lists, pictures in lists, and time and flow the other way round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diffusemble.blocks.packing import pack_text
from diffusemble.families.text import TOKENS, SpellingTokenizer
from diffusemble.training.feeds.base import Choices
from diffusemble.training.feeds.flux import TIME_UNIT
from diffusemble.training.feeds.qwen import MASK, TEXT, QwenFeed


class ZImageFeed(QwenFeed):
    """Squares of 2 x 2 latents are one token; every caption is as long as it is.

    Args:
        pipeline: of the denoiser.
        denoiser: a ``ZImageTransformer2DModel``.
        choices: choices of the run.
    """

    def __init__(self, pipeline: Any, denoiser: Any, choices: Choices) -> None:
        super().__init__(pipeline, denoiser, choices)
        self._width = denoiser.config.cap_feat_dim
        self._whole = isinstance(pipeline.tokenizer, SpellingTokenizer)  # at output level, one token holds all texts
        self._longest = TOKENS if self._whole else self._longest

    @torch.no_grad()
    def encode(self, pipeline: Any, prompts: Sequence[str], empty: bool = False) -> dict[str, Tensor]:
        """Text filled up with zeros to the longest prompt that there may be, and its mask ``[b s]``."""
        captions, _ = pipeline.encode_prompt(
            prompt=list(prompts),
            device=pipeline.vae.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._longest,
        )
        filled = torch.stack([functional.pad(one, (0, 0, 0, self._longest - len(one))) for one in captions])
        lengths = torch.tensor([len(one) for one in captions])
        # Pipelines pack the experts side by side.
        text = filled if self._whole else pack_text(filled.split(self._width, dim=2))
        return {TEXT: text.cpu().contiguous(), MASK: (torch.arange(self._longest) < lengths[:, None]).long()}

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The denoiser's output, which leads from noise to pictures, turned to lead from pictures to noise."""
        experts = inputs[TEXT].unflatten(1, (-1, inputs[MASK].shape[1]))
        lengths = inputs[MASK].sum(dim=1).tolist()
        predictions = denoiser(
            x=list(noisy[:, :, None].unbind()),
            t=(TIME_UNIT - times) / TIME_UNIT,
            cap_feats=[pack_text(own[:, :length].unbind()) for own, length in zip(experts, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(list(predictions))[:, :, 0]
