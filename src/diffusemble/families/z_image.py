"""``ZImageTransformer2DModel`` called whole: Z-Image and Z-Image-Turbo, in the latent space of FLUX.1."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diffusemble.blocks.base import Call
from diffusemble.blocks.z_image import refuse_editing
from diffusemble.families.base import Conditions, Family, longest_prompt
from diffusemble.families.flux import refuse_own_guidance


class ZImageFamily(Family):
    """Captions as long as they are, in lists as the pictures; time and flow lead from noise to the picture."""

    time_unit, time_origin = -1000.0, 1000.0

    def describe(self) -> dict[str, tuple[int, ...]]:
        """``encoder_hidden_states [s d]``, filled up with zeros, and ``attention_mask [s]`` of what is none.

        Raises:
            ValueError: the transformer is one for editing, or has no patches of 2 x 2 latents.
        """
        refuse_editing(self.denoiser)
        tokens = longest_prompt(self.expert.pipeline_class)
        return {"encoder_hidden_states": (tokens, self.denoiser.config.cap_feat_dim), "attention_mask": (tokens,)}

    def read_prompts(
        self, prompts: list[str], device: torch.device, guided: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Captions and their masks; no prompt is the caption of the empty one."""
        captions, _ = self.pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        (tokens,) = self.shapes["attention_mask"]
        text = torch.stack([functional.pad(one, (0, 0, 0, tokens - len(one))) for one in captions])
        mask = torch.stack([functional.pad(one.new_ones(len(one)), (0, tokens - len(one))) for one in captions])
        found = {"encoder_hidden_states": text, "attention_mask": mask}
        return found, found

    def read(self, arguments: dict[str, Any]) -> Call:
        """A call with pictures ``[c 1 h w]`` and captions ``[1 f]`` as one tensor each."""
        sample, text = torch.stack(list(arguments.pop("x")))[:, :, 0], torch.stack(list(arguments.pop("cap_feats")))
        return Call(sample, arguments.pop("t"), {**arguments, "encoder_hidden_states": text})

    def own(self, inputs: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        """The pipeline's own arguments with the captions of this expert alone."""
        mine = {name: value for name, value in inputs.items() if name != "encoder_hidden_states"}
        return {**mine, "cap_feats": _captions(conditions)}

    def arguments(self, sample: Tensor, conditions: Conditions, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The captions.

        Raises:
            ValueError: the pipeline is FLUX's, and tells it to guide by itself.
        """
        refuse_own_guidance(self.expert.name, "Z-Image", inputs)
        return {"cap_feats": _captions(conditions)}

    def predict(self, sample: Tensor, timestep: Any, arguments: Mapping[str, Any]) -> Tensor:
        """The flow from the picture to noise, ``[b c h w]``."""
        pictures = list(sample[:, :, None].unbind())
        output = self.denoiser(x=pictures, t=timestep, **arguments, return_dict=False)[0]
        return -torch.stack(list(output))[:, :, 0]

    def example(self, denoiser: Any, sample: Tensor) -> Tensor:
        """As of every expert, with captions as long as they may be."""
        own = copy.copy(self)
        own.denoiser = denoiser
        captions = [sample.new_zeros(self.shapes["encoder_hidden_states"]) for _ in sample]
        return own.predict(sample, sample.new_zeros(len(sample)), {"cap_feats": captions})

    def write(self, prediction: Tensor) -> Any:
        """A list of flows ``[c 1 h w]`` from noise to the picture."""
        return list((-prediction)[:, :, None].unbind())


def _captions(conditions: Conditions) -> list[Tensor]:
    """Captions ``[s d]``, each as long as it is."""
    rows = zip(conditions["encoder_hidden_states"], conditions["attention_mask"], strict=True)
    return [text[seen > 0] for text, seen in rows]
