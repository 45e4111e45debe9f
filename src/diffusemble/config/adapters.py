"""The schema of what is put on an ensemble: LoRAs, ControlNets, image prompts, FreeU, and when to guide."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from diffusemble.config.schema import Schema, Text, listed

Share = Annotated[float, Field(ge=0, le=1)]
"""A share of the steps."""


class NetConfig(Schema):
    """A net that reads a picture beside the experts.

    Attributes:
        model: folder or hub id of its weights.
        image: file of the picture, as the net reads it (edges, depth, pose, ...).
        weight: how strong.
        start, end: from which to which share of the steps: it acts in those that lie between them as a whole.
    """

    model: Text
    image: Text
    weight: float = Field(default=1.0, ge=0)
    start: Share = 0.0
    end: Share = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> NetConfig:
        if self.start >= self.end:
            raise ValueError(f"it acts from 'start' to a later 'end'; got {self.start:g} and {self.end:g}")
        return self

    def acts(self, step: int, steps: int) -> bool:
        """Whether it acts in ``step`` (from 0) of ``steps``, counted as diffusers counts for ControlNets."""
        return step / steps >= self.start and (step + 1) / steps <= self.end


class ControlNetConfig(NetConfig):
    """A ControlNet and the picture that it reads.

    Attributes:
        mode: which kind of picture it is, for a ControlNet that reads several kinds (a union): a number from 0.
    """

    mode: int | None = Field(default=None, ge=0)


class T2IAdapterConfig(NetConfig):
    """A T2I-adapter and the picture that it reads."""


class ImagePromptConfig(Schema):
    """An IP-Adapter and the picture that it reads.

    Attributes:
        weights: its ``.safetensors`` file.
        image: file of the picture to take after.
        encoder: folder or hub id of the image encoder (CLIP vision model with projection); ``image_encoder`` beside
            the weights by default.
        weight: how strong.
        mask: file of a picture that is white where it acts.
    """

    weights: Text
    image: Text
    encoder: Text | None = None
    weight: float = Field(default=1.0, ge=0)
    mask: Text | None = None

    @field_validator("weights")
    @classmethod
    def _safe(cls, file: str) -> str:
        if not file.endswith(".safetensors"):
            raise ValueError(f"an IP-Adapter is a .safetensors file, because pickles can run programs; got {file!r}")
        return file


class FreeUConfig(Schema):
    """FreeU (arXiv 2309.11497): factors of skip connections and of backbone features at the two lowest levels.

    With a factor of 0 diffusers takes all four for absent; 1 leaves a feature as it is.
    """

    s1: float = Field(gt=0)
    s2: float = Field(gt=0)
    b1: float = Field(gt=0)
    b2: float = Field(gt=0)


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, dict) else value


class AdapterConfig(Schema):
    """What is put on all experts of an ensemble.

    Attributes:
        loras: ``file.safetensors:0.7``, for every expert. For one expert alone: ``expert+file.safetensors:0.7``.
        controlnets: ControlNets with their pictures.
        t2i_adapters: T2I-adapters with their pictures.
        image_prompts: IP-Adapters with their pictures.
        freeu: FreeU's factors.
        guidance_rescale: phi of arXiv 2305.08891: how far guided predictions get the spread of unguided ones.
        guidance_interval: from which to which share of the steps there is guidance (arXiv 2404.07724).
    """

    loras: Annotated[tuple[Text, ...], BeforeValidator(listed)] = ()
    controlnets: Annotated[tuple[ControlNetConfig, ...], BeforeValidator(_several)] = ()
    t2i_adapters: Annotated[tuple[T2IAdapterConfig, ...], BeforeValidator(_several)] = ()
    image_prompts: Annotated[tuple[ImagePromptConfig, ...], BeforeValidator(_several)] = ()
    freeu: FreeUConfig | None = None
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    guidance_interval: tuple[Share, Share] | None = None

    @model_validator(mode="after")
    def _adapters_agree(self) -> AdapterConfig:
        if self.guidance_interval is not None and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(
                f"guidance_interval: the first share must be below the second; got {list(self.guidance_interval)}"
            )
        if self.t2i_adapters and (self.controlnets or self.image_prompts):
            raise ValueError("t2i_adapters: diffusers' pipelines for them take neither controlnets nor image_prompts")
        if len({one.encoder for one in self.image_prompts}) > 1:
            raise ValueError("image_prompts: a pipeline has one image encoder; give all of them the same 'encoder'")
        if any(one.mask for one in self.image_prompts) and not all(one.mask for one in self.image_prompts):
            raise ValueError("image_prompts: give a 'mask' to every one of them, or to none")
        return self
