"""One expert, called whole: the prompt as it reads it, and the arguments of its denoiser."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from diffusemble.blocks.base import Call
from diffusemble.experts.expert import Expert, latent_space

Conditions = Mapping[str, Tensor]
"""What an expert reads beside latents and time, by names of its family: tensors whose first axis is the batch."""


class Family:
    """How experts of one architecture are called; one object per expert, subclasses for the architectures.

    Attributes:
        sample: name of the latents among the denoiser's arguments.
        record: what the denoiser's ``forward`` returns.
        time_unit, time_origin: its time, times the one plus the other, is in its scheduler's unit.
        texts: arguments that hold what it reads of the prompt: the pipeline's are replaced, see ``own``.
        shared: further arguments that pipelines give and that other experts can do without.

    Args:
        expert: with the parts of its pipeline.
    """

    sample: ClassVar[str] = "hidden_states"
    record: ClassVar[type] = Transformer2DModelOutput
    time_unit: ClassVar[float] = 1.0
    time_origin: ClassVar[float] = 0.0
    shared: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, expert: Expert) -> None:
        self.expert = expert
        self.denoiser: Any = expert.denoiser
        self.parts = expert.components
        self.shapes = self.describe()

    # -- the prompt ------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the conditions of one sample."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str], device: torch.device) -> Conditions:
        """Conditions of the prompts, as the expert's own pipeline computes them; an empty prompt is no prompt.

        Raises:
            ValueError: the text encoders give other sizes than the denoiser takes.
        """
        given, empty = self.read_prompts(list(prompts), device, guided="" in prompts)
        found = {}
        for name, shape in self.shapes.items():
            rows = [(empty if prompt == "" else given)[name][row] for row, prompt in enumerate(prompts)]
            found[name] = torch.stack(rows)
            if found[name].shape[1:] != shape:
                raise ValueError(
                    f"Expert {self.expert.name!r}: its denoiser takes {name} of shape {list(shape)} per prompt, but "
                    f"its text encoders give {list(found[name].shape[1:])}. Load it with the text encoders it was made "
                    f"with."
                )
        return found

    def read_prompts(
        self, prompts: list[str], device: torch.device, guided: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the pipeline's ``encode_prompt`` gives for the prompts, and (if ``guided``) for no prompt, by name."""
        raise NotImplementedError

    def join(self, rows: Sequence[Conditions]) -> Conditions:
        """One set of conditions of those of ``prompt``, ``prompt_2``, ..., for pipelines that take several."""
        return rows[0]

    def pooled(self, conditions: Conditions, slot: int) -> Tensor | None:
        """What text encoder number ``slot`` (from 0) gives as pooled text, where pipelines ask it for that."""
        return None

    @cached_property
    def pipeline(self) -> Any:
        """The expert's own diffusers pipeline, to read prompts with."""
        cls: Any = self.expert.pipeline_class
        taken = inspect.signature(cls).parameters
        parts = {**dict.fromkeys(taken), **self.parts}
        parts["unet" if "unet" in taken else "transformer"] = self.denoiser
        parts["requires_safety_checker"] = parts.get("safety_checker") is not None
        given = {name for name in taken if parts[name] is not None or taken[name].default is inspect.Parameter.empty}
        return cls(**{name: parts[name] for name in given})

    # -- the denoiser ----------------------------------------------------------------------------------------------

    @property
    def channels(self) -> int:
        """Channels of the latents it denoises."""
        channels: int = self.denoiser.config.in_channels
        return channels

    def read(self, arguments: dict[str, Any]) -> Call:
        """A call of the denoiser by a pipeline."""
        return Call(arguments.pop(self.sample), arguments.pop("timestep"), arguments)

    def own(self, inputs: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        """Arguments of the expert in whose pipeline the ensemble stands: the pipeline's, with the expert's own text."""
        return {**inputs, "encoder_hidden_states": conditions["encoder_hidden_states"]}

    def arguments(self, sample: Tensor, conditions: Conditions, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of an expert in somebody else's pipeline.

        Args:
            sample: its latents ``[b c h w]``.
            conditions: of its text.
            inputs: what the other's pipeline gives; empty where there is none.
        """
        return dict(conditions)

    def predict(self, sample: Tensor, timestep: Any, arguments: Mapping[str, Any]) -> Tensor:
        """The denoiser's output ``[b c h w]``; more than the latents' channels where it also learned its variance."""
        latents = {self.sample: sample, "timestep": timestep}
        output: Tensor = self.denoiser(**latents, **arguments, return_dict=False)[0]
        return output

    def example(self, denoiser: Any, sample: Tensor) -> Tensor:
        """What a twin ``denoiser`` says of latents ``[b c h w]`` and conditions of zeros: to count what that takes."""
        own = copy.copy(self)
        own.denoiser = denoiser
        conditions = {name: sample.new_zeros(len(sample), *shape) for name, shape in self.shapes.items()}
        return own.predict(sample, sample.new_zeros(len(sample)), own.arguments(sample, conditions, {}))

    def write(self, prediction: Tensor) -> Tensor:
        """A prediction as the pipeline expects it."""
        return prediction

    def pixels(self, sample: Tensor) -> tuple[int, int]:
        """Height and width of the picture that latents become."""
        factor = latent_space(self.parts["vae"])["downsampling factor"]
        return sample.shape[-2] * factor, sample.shape[-1] * factor


def longest_prompt(pipeline: Any) -> int:
    """Tokens to which a pipeline class fills up every prompt for its T5."""
    tokens: int = inspect.signature(pipeline.encode_prompt).parameters["max_sequence_length"].default
    return tokens
