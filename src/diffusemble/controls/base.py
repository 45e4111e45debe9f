"""A denoiser with controls: one U-Net for many members, each with its own adapters for the time of its call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

TIMESTEPS = 1000  # of the noise schedule that all Stable Diffusion 1.x models were trained with


class Control(nn.Module):
    """Trained weights beside a U-Net, that make it obey a condition.

    Attributes:
        key: under which name its condition comes in ``cross_attention_kwargs``.
    """

    key: ClassVar[str]

    @abstractmethod
    def attached(self, unet: nn.Module, condition: Any, call: Call) -> AbstractContextManager[Mapping[str, Any]]:
        """The U-Net with this control, until the context ends; the U-Net is then as it was before.

        Args:
            unet: ``UNet2DConditionModel``; may have other controls attached.
            condition: what the control is to do: one for all pictures of the batch, or a list with one for each (or
                for each prompt), in which None asks for nothing; without guidance halves.
            call: what the U-Net is called with.

        Returns:
            A context that gives further arguments for the U-Net: entries of ``cross_attention_kwargs`` and
            ``added_cond_kwargs`` under these names.
        """


class Call:
    """What a control may have to know of the call that it is attached for.

    Attributes:
        sample: latents ``[b c h w]``; with guidance the first half of the rows is the unconditional one.
        text: text embedding ``[b s d]`` in the same rows.
        progress: how far the schedule is: 0 at pure noise, 1 at the picture.
        guided: whether the rows are two halves.
    """

    def __init__(self, sample: Tensor, timestep: Any, text: Tensor, guided: bool) -> None:
        self.sample, self.text, self.guided = sample, text, guided
        first = float(torch.as_tensor(timestep).reshape(-1)[0])
        self.progress = 1 - (first + 1) / TIMESTEPS


class ControlledUNet(nn.Module):
    """A U-Net that obeys controls; stands where ``pipe.unet`` stands and takes the same call.

    Conditions come in ``cross_attention_kwargs`` under the controls' keys, beside the U-Net's own entries:
    ``pipe(prompt, cross_attention_kwargs={"interaction": condition})``. A control without a condition is not
    attached. Several of these may share one U-Net, as long as only one of them runs at a time.

    Args:
        unet: ``UNet2DConditionModel`` of Stable Diffusion 1.x shape.
        controls: with different keys.
        guided: whether the rows of a call are an unconditional and a conditional half; may be overridden by the entry
            ``guided`` of ``cross_attention_kwargs``.

    Raises:
        ValueError: two controls have the same key.
    """

    unet: Any
    controls: Any

    def __init__(self, unet: nn.Module, controls: Sequence[Control], guided: bool = True) -> None:
        super().__init__()
        keys = [control.key for control in controls]
        if len(set(keys)) != len(keys):
            raise ValueError(
                f"The controls of one U-Net need different keys; got {', '.join(keys)}. Give a scene's members one "
                f"control of a kind each."
            )
        self.unet, self.controls, self.guided = unet, nn.ModuleList(controls), guided

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict what the U-Net predicts under its controls.

        Raises:
            ValueError: guidance halves are expected, and the batch does not hold the same latents twice.
        """
        own = dict(cross_attention_kwargs or {})
        guided = own.pop("guided", self.guided)
        if guided:
            check_halves(sample)
        call = Call(sample, timestep, encoder_hidden_states, guided)
        added = dict(added_cond_kwargs or {})
        conditions = [own.pop(control.key, None) for control in self.controls]
        with ExitStack() as stack:
            for control, condition in zip(self.controls, conditions, strict=True):
                if condition is not None:
                    more = stack.enter_context(control.attached(self.unet, condition, call))
                    own.update(more.get("cross_attention_kwargs", {}))
                    added.update(more.get("added_cond_kwargs", {}))
            return self.unet(
                sample,
                timestep,
                encoder_hidden_states,
                cross_attention_kwargs=own or None,
                added_cond_kwargs=added or None,
                **inputs,
            )

    def __getattr__(self, name: str) -> Any:
        """What pipelines ask of a U-Net beside calling it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("unet"), name)

    @property
    def config(self) -> Any:
        """Configuration of the U-Net, as pipelines read it."""
        return self.unet.config

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the U-Net."""
        return next(self.unet.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the U-Net."""
        return next(self.unet.parameters()).device


def check_halves(sample: Tensor) -> None:
    """Make sure that a batch is an unconditional and a conditional half: the same latents twice.

    Raises:
        ValueError: it is not.
    """
    half, odd = divmod(len(sample), 2)
    if odd or not torch.equal(sample[:half], sample[half:]):
        raise ValueError(
            f"A guided call denoises the same latents twice, without and with the prompt; got {len(sample)} rows that "
            f'are not two equal halves. Draw with a guidance scale above 1, or pass cross_attention_kwargs={{"guided": '
            f"False}}."
        )
