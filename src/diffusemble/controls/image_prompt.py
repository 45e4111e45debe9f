"""IP-Adapter: a picture as a prompt (arXiv 2308.06721), through diffusers' own attention processors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.embeddings import ImageProjection
from torch import Tensor, nn

from diffusemble.controls.attachment import cross_attentions, per_picture, replaced
from diffusemble.controls.base import Call, Control
from diffusemble.controls.reference_picture import ImagePromptCondition, image_prompt_condition
from diffusemble.controls.storage import fill, read_control, write_control

__all__ = ["ImagePrompt", "ImagePromptCondition", "image_prompt_condition"]

TOKENS = 4
PLAIN = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)  # they all reckon the same
_PROJECTION = {
    "proj.weight": "image_embeds.weight",
    "proj.bias": "image_embeds.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_LAYER = re.compile(r"ip_adapter\.(\d+)\.(to_k_ip|to_v_ip)\.weight")


class ImagePrompt(Control):
    """IP-Adapter's projection of image embeddings to tokens, and keys and values for them at every cross-attention.

    Without guidance halves all rows see the picture. The unconditional half sees the tokens of a zero embedding, as in
    diffusers' pipelines.

    Args:
        channels: width of every cross-attention, in the order in which a U-Net registers them (down, up, middle).
        width: of the text embedding that the U-Net reads.
        image_width: of the image embedding.
        tokens: how many stand for a picture.
    """

    key: ClassVar[str] = "image_prompt"
    layers: Any

    def __init__(self, channels: tuple[int, ...], width: int, image_width: int, tokens: int = TOKENS) -> None:
        super().__init__()
        self.projection = ImageProjection(image_width, width, tokens)
        self.layers = nn.ModuleList(IPAdapterAttnProcessor2_0(wide, width, (tokens,)) for wide in channels)

    @classmethod
    def from_unet(cls, unet: nn.Module, image_width: int, tokens: int = TOKENS) -> ImagePrompt:
        """New weights for a U-Net, set to begin training with: keys and values for pictures are those for texts.

        Args:
            unet: ``UNet2DConditionModel`` of any width.
            image_width: of the image embedding.
            tokens: how many stand for a picture.
        """
        attentions: list[Any] = [unet.get_submodule(name) for name in registered(unet)]
        channels = tuple(attention.to_q.in_features for attention in attentions)
        made = cls(channels, attentions[0].to_k.in_features, image_width, tokens)
        with torch.no_grad():
            for layer, attention in zip(made.layers, attentions, strict=True):
                layer.to_k_ip[0].weight.copy_(attention.to_k.weight)
                layer.to_v_ip[0].weight.copy_(attention.to_v.weight)
        return made

    @classmethod
    def from_pretrained(cls, file: str | Path) -> ImagePrompt:
        """Weights in the published layout (``ip-adapter_sd15.safetensors``), which ``save_pretrained`` writes too.

        Raises:
            ValueError: the file is pickled or damaged, or holds another kind of IP-Adapter or something else.
        """
        weights, _ = read_control(file)
        _refuse_others(weights, file)
        numbers = sorted({int(found[1]) for key in weights if (found := _LAYER.fullmatch(key))})
        own = {}
        for key, tensor in weights.items():
            if found := _LAYER.fullmatch(key):
                own[f"layers.{numbers.index(int(found[1]))}.{found[2]}.0.weight"] = tensor
            else:
                part = key.removeprefix("image_proj.")
                own[f"projection.{_PROJECTION.get(part, part)}"] = tensor
        rows, image_width = weights["image_proj.proj.weight"].shape
        width = len(weights["image_proj.norm.weight"])
        channels = tuple(len(weights[f"ip_adapter.{number}.to_k_ip.weight"]) for number in numbers)
        made = cls(channels, width, image_width, rows // width)
        fill(made, own, file)
        return made.eval()

    def save_pretrained(self, file: str | Path) -> None:
        """Write one ``.safetensors`` file in the published layout, which diffusers' ``load_ip_adapter`` reads."""
        state = self.state_dict()
        weights = {f"image_proj.{theirs}": state[f"projection.{ours}"] for theirs, ours in _PROJECTION.items()}
        for index in range(len(self.layers)):
            for part in ("to_k_ip", "to_v_ip"):
                # The published number counts all attentions; every second one, from 1 on, reads the text.
                weights[f"ip_adapter.{2 * index + 1}.{part}.weight"] = state[f"layers.{index}.{part}.0.weight"]
        write_control(weights, file, {"control": self.key})

    def attached(self, unet: nn.Module, condition: Any, call: Call) -> AbstractContextManager[Mapping[str, Any]]:
        """The U-Net that sees a picture; it may be gated, and have its gated layers in use.

        Args:
            unet: the U-Net that the weights fit.
            condition: an ``ImagePromptCondition`` for all pictures, or one for every prompt.
            call: what the U-Net is called with.

        Raises:
            ValueError: weights, U-Net and conditions do not fit each other.
        """
        attentions = {name: unet.get_submodule(name) for name in registered(unet)}
        self._check(attentions)
        tokens, scale = self._tokens(per_picture(condition, ImagePromptCondition, call), call)
        for layer in self.layers:
            layer.scale = [scale]
        processors = {
            name: PicturedProcessor(layer, tokens) for name, layer in zip(attentions, self.layers, strict=True)
        }
        return replaced(unet, processors)

    def _tokens(self, conditions: list[ImagePromptCondition | None], call: Call) -> tuple[Tensor, float]:
        weight = self.projection.image_embeds.weight
        if weight.dtype != call.sample.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise ValueError(
                f"An image prompt computes in the U-Net's number type, {call.sample.dtype}, and its weights are "
                f"{weight.dtype}. Convert them: control.to({call.sample.dtype})."
            )
        told = [one for one in conditions if one is not None]
        kinds = {(len(one.embeds), one.scale) for one in told}
        if len(told) < len(conditions) or len(kinds) > 1:
            raise ValueError(
                f"All pictures of one call have image prompts with as many images and of one scale; got (images, "
                f"scale) of {sorted(kinds)} for {len(told)} of {len(conditions)}. Draw the others by themselves."
            )
        embeds = torch.stack([one.embeds for one in told]).to(weight)
        if embeds.shape[-1] != self.projection.image_embeds.in_features:
            raise ValueError(
                f"This IP-Adapter reads image embeddings of width {self.projection.image_embeds.in_features}, and one "
                f"of {embeds.shape[-1]} came. Use the image encoder that it was trained with."
            )
        if call.guided:
            embeds = torch.cat((torch.zeros_like(embeds), embeds))
        tokens = self.projection(embeds.flatten(0, 1)).unflatten(0, embeds.shape[:2])  # [b k tokens width]
        return tokens.to(call.sample), told[0].scale

    def _check(self, attentions: Mapping[str, Any]) -> None:
        have = [(attention.to_q.in_features, attention.to_k.in_features) for attention in attentions.values()]
        want = [(layer.hidden_size, layer.cross_attention_dim) for layer in self.layers]
        if have != want:
            raise ValueError(
                f"These weights are for {len(want)} cross-attentions of the widths {_widths(want)}, and the U-Net has "
                f"{len(have)} of {_widths(have)}. Use the kind of U-Net that they were trained for."
            )
        for name, attention in attentions.items():
            if not isinstance(attention.processor, PLAIN):
                raise ValueError(
                    f"{name} has the processor {type(attention.processor).__name__}, which an image prompt would "
                    f"replace. List image_prompt before other controls of cross-attentions (such as migc), and unload "
                    f"IP-Adapters of the pipeline's own."
                )


class PicturedProcessor:
    """Diffusers' processor, with the tokens of every row's picture ``[b k tokens width]``."""

    def __init__(self, layer: nn.Module, tokens: Tensor) -> None:
        self.layer, self.tokens = layer, tokens

    def of_rows(self, rows: Tensor) -> PicturedProcessor:
        """The same for a batch made of ``rows`` of this one's."""
        return PicturedProcessor(self.layer, self.tokens[rows])

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention output ``[b l c]``."""
        seen = encoder_hidden_states, [self.tokens]
        output: Tensor = self.layer(attn, hidden_states, seen, attention_mask)
        return output


def _refuse_others(weights: Mapping[str, Tensor], file: str | Path) -> None:
    needed = {f"image_proj.{part}" for part in _PROJECTION}
    strange = [key for key in weights if not _LAYER.fullmatch(key) and key not in needed]
    if strange or not needed <= weights.keys() or len(weights) == len(needed):
        raise ValueError(
            f"{file} is no plain IP-Adapter: it needs image_proj.proj, image_proj.norm and ip_adapter.<n>.to_k_ip and "
            f"to_v_ip, and has {len(weights)} tensors, such as {min(strange or weights, default='none')}. Give "
            f"ip-adapter_sd15.safetensors or one like it; Plus, Full and FaceID adapters have other projections."
        )


def _widths(pairs: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{channels} (text {text})" for channels, text in dict.fromkeys(pairs))


def registered(unet: nn.Module) -> list[str]:
    """Cross-attentions with the text in the order in which published weights number them: down, up, middle."""
    return sorted(cross_attentions(unet), key=lambda name: name.startswith("mid_block"))
