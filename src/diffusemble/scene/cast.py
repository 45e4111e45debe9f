"""The members of a scene, loaded: one base, its controls attached for a call, other models beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusemble.config.generate import ExpertRecord
from diffusemble.controls.pipelines import pipeline_with
from diffusemble.drawing import placement
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.experts.expert import Expert
from diffusemble.experts.load import load_experts, share_parts
from diffusemble.experts.pipeline import build_pipeline
from diffusemble.experts.reference import load_ensemble
from diffusemble.latent.member import Member
from diffusemble.memory.keep import planned
from diffusemble.samplers import use_sampler
from diffusemble.scene.conditions import Stage, condition_of, relations_of
from diffusemble.scene.config import SceneConfig
from diffusemble.scene.control_files import image_encoder, load_control, record_of, shares_of
from diffusemble.scene.member_config import CONTROLS, MemberConfig
from diffusemble.zoo import trained_ensemble


@dataclass(frozen=True)
class Cast:
    """Pipelines of a scene's members.

    Attributes:
        parts: the members, the base first.
        pipelines: by member's name; those with controls share one base.
        controls: by member's name, of those that have one.
        stage: what their conditions are made with.
        records: files that the pictures depend on.
        placed: device and number type, in words.
    """

    parts: tuple[MemberConfig, ...]
    pipelines: Mapping[str, Any]
    controls: Mapping[str, Any]
    stage: Stage
    records: tuple[ExpertRecord, ...]
    placed: str

    def members(self, scenes: Sequence[SceneConfig], **call: Any) -> list[Member]:
        """Members that draw one picture of each scene at once, for ``aggregate``.

        Args:
            scenes: whose settings of drawing and members are those that the cast was loaded for; their instances,
                relations, references and prompts, members' own ones included, may differ.
            call: further arguments of the base's call.

        Raises:
            ValueError: a scene has more things than a control has slots, or a control cannot be told of it.
        """
        made = [self._member(number, scenes) for number in range(len(self.parts))]
        base = made[0]
        return [Member(**{**vars(base), "call": {**base.call, **call}}), *made[1:]]

    def _member(self, number: int, scenes: Sequence[SceneConfig]) -> Member:
        part, first = self.parts[number], scenes[0]
        negative = first.negative if part.negative is None else part.negative
        own = [scene.cast[number].prompt for scene in scenes]
        told = [scene.words if prompt is None else prompt for scene, prompt in zip(scenes, own, strict=True)]
        call: dict[str, Any] = {
            "prompt": told,
            "num_inference_steps": first.steps,
            "guidance_scale": first.guidance if part.guidance is None else part.guidance,
            "height": self.stage.height,
            "width": self.stage.width,
        }
        if negative:
            call["negative_prompt"] = [negative] * len(scenes)
        if part.name in self.controls:
            control = self.controls[part.name]
            for scene in scenes:
                check_room(part, control, scene)
            conditions = [condition_of(scene, part, self.stage) for scene in scenes]
            guided = call["guidance_scale"] > 1
            call["cross_attention_kwargs"] = {control.key: conditions, "guided": guided}
        return Member(part.name, self.pipelines[part.name], call, part.weight, part.length, part.window)


def check_room(part: MemberConfig, control: Any, scene: SceneConfig) -> None:
    """Make sure that a control has a slot for everything in the scene.

    Raises:
        ValueError: it has fewer.
    """
    if part.kind == "image-prompt":
        return
    needed = len(relations_of(scene)) if part.kind == "interaction" else len(scene.instances)
    if needed > control.capacity:
        what = "relations (instances in none count, too)" if part.kind == "interaction" else "instances"
        raise ValueError(
            f"The scene has {needed} {what}, and the weights of member {part.name!r} have {control.capacity} slots. "
            f"Leave some out, or give weights with more slots as source."
        )


def load_cast(scene: SceneConfig) -> Cast:
    """Load the base and everything that the scene's members need; with a memory plan, to where it rests.

    Raises:
        ValueError: something cannot be loaded, or does not go with the base.
    """
    device, dtype = placement(scene.device, scene.dtype)
    loader = _Loader(scene, torch.device("cpu") if planned(scene) else device, dtype)
    pipelines, controls = {}, {}
    for part in scene.cast:
        if part.kind in CONTROLS:
            controls[part.name] = loader.control(part)
            pipelines[part.name] = pipeline_with(loader.base, [controls[part.name]])
        else:
            pipelines[part.name] = loader.pipeline(part)
    return Cast(scene.cast, pipelines, controls, loader.stage(), tuple(loader.records), _words(device, dtype))


class _Loader:
    def __init__(self, scene: SceneConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.scene, self.device, self.dtype = scene, device, dtype
        self.records: list[ExpertRecord] = []
        self.parts: dict[str, nn.Module] = {}
        self.base = self._single(scene.base, "base")
        if not hasattr(self.base, "unet"):
            raise ValueError(
                f"The base of a scene is a model with a U-Net (Stable Diffusion), and {scene.base} is of "
                f"{type(self.base).__name__}. Give another base; diffusemble generate draws with this one."
            )

    def control(self, part: MemberConfig) -> Any:
        """A control on the device, and its files noted."""
        control, source = load_control(part, self.scene.base)
        self.records.append(record_of(part.name, source))
        return control.to(self.device, self.dtype)

    def pipeline(self, part: MemberConfig) -> Any:
        """The pipeline of a member without a control."""
        if part.kind == "plain":
            return self.base
        if part.kind == "model":
            return self._single(str(part.source), part.name)
        kind, _, group = str(part.source).partition(":")
        folder = trained_ensemble(group) if kind == "zoo" else Path(str(part.source))
        if folder is None:
            raise ValueError(f"The zoo has no trained ensemble {group!r}. Give the folder of a saved ensemble.")
        experts, aggregator = load_ensemble(folder, dtype=self.dtype, device=self.device)
        self._note(experts, part.name)
        return self._ready(EnsembleDenoiser(self._shared(experts), aggregator).eval().pipeline())

    def stage(self) -> Stage:
        """What conditions are made with."""
        own = self.base.unet.config.sample_size * self.base.vae_scale_factor
        parts = [part for part in self.scene.cast if part.kind == "image-prompt"]
        if len({part.encoder for part in parts}) > 1:
            raise ValueError("Image prompts of one scene share a picture encoder; give all of them the same encoder.")
        encoder = processor = None
        if parts:
            folder, encoder, processor = image_encoder(parts[0], self.scene.base)
            encoder = encoder.to(self.device, self.dtype)
            self.records.append(record_of("image encoder", folder))
            self.records.append(record_of("reference", Path(str(self.scene.reference))))
        height, width = self.scene.height or own, self.scene.width or own
        return Stage(self.base, height, width, shares_of(self.scene), encoder, processor)

    def _single(self, source: str, name: str) -> Any:
        experts = load_experts([source], dtype=self.dtype, device=self.device)
        if len(experts) > 1:
            raise ValueError(
                f"A member is one model, and {source} is a group of {len(experts)}. Give one of them, or "
                f"ensemble:{source} for what was trained for the group."
            )
        self._note(experts, name)
        (expert,) = self._shared(experts)
        own = {part: value for part, value in expert.components.items() if part.startswith("text_encoder")}
        return self._ready(build_pipeline(expert.denoiser, [expert], None, own))

    def _shared(self, experts: Sequence[Expert]) -> tuple[Expert, ...]:
        """Experts whose text encoders and VAE are those of the members before, where they are equal."""
        return tuple(replace(one, components=share_parts(one.components, self.parts)) for one in experts)

    def _ready(self, pipeline: Any) -> Any:
        use_sampler(pipeline, self.scene.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _note(self, experts: Sequence[Expert], name: str) -> None:
        for expert in experts:
            own = name if len(experts) == 1 else f"{name} {expert.name}"
            self.records.append(ExpertRecord(name=own, source=expert.source, files=dict(expert.files)))


def _words(device: torch.device, dtype: torch.dtype) -> str:
    return f"{device.type} {str(dtype).removeprefix('torch.')}"
