"""Systems draw scenes: from a scene of the zoo to what ``diffusemble.scene`` draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusemble.evaluation.scenes.conditions import prompt_for
from diffusemble.evaluation.scenes.config import ScenesConfig
from diffusemble.evaluation.scenes.held import reference_files
from diffusemble.evaluation.scenes.scene import Scene
from diffusemble.evaluation.scenes.systems import SceneSystem
from diffusemble.latent.aggregate import aggregate
from diffusemble.scene.cast import Cast, load_cast
from diffusemble.scene.config import InstanceConfig, RelationConfig, SceneConfig
from diffusemble.scene.member_config import CONTROLS, MemberConfig

SEEDS = 1_000_000  # between runs; more than there are scenes


@dataclass(frozen=True)
class Drawn:
    """Pictures ``[b 3 h w]`` in [0, 1], denoiser calls by member, and seconds."""

    images: Tensor
    calls: dict[str, int]
    seconds: float


def as_config(scene: Scene, number: int, system: SceneSystem, config: ScenesConfig) -> SceneConfig:
    """A scene of the zoo as a scene to draw; its number chooses the reference picture of its style."""
    names = [f"{place} {thing.name}" for place, thing in enumerate(scene.things)]
    references = reference_files(scene.style)
    return SceneConfig(
        prompt=scene.caption(),
        base=config.base,
        instances=tuple(
            InstanceConfig(name=name, phrase=thing.name, box=thing.box, attribute=thing.colour or "")
            for name, thing in zip(names, scene.things, strict=True)
        ),
        relations=(RelationConfig(subject=names[0], action=scene.relation, object=names[1]),),
        reference=str(references[number % len(references)]),
        members=tuple(_told(member, scene, system) for member in system.members),
        combine=system.combine,
        shared_noise=system.shared_noise,
        steps=config.steps,
        guidance=config.guidance,
        scheduler=config.scheduler,
        device=config.device,
        dtype=config.dtype,
    )


def _told(member: MemberConfig, scene: Scene, system: SceneSystem) -> MemberConfig:
    if system.prompts == "whole" or member.kind not in CONTROLS or member.prompt is not None:
        return member
    # A GLIGEN control is told of boxes and colours, as MIGC is.
    control = {"image-prompt": "image_prompt", "gligen": "migc"}.get(member.kind, member.kind)
    return member.model_copy(update={"prompt": prompt_for(control, scene)})


class SystemAtWork:
    """A system, loaded; draws scenes with the noise that their numbers give.

    Args:
        system: what draws.
        scenes: all scenes of the run, with the system's members.
        seed: of the run.
    """

    def __init__(self, system: SceneSystem, scenes: Sequence[SceneConfig], seed: int) -> None:
        self.system, self.scenes, self.seed = system, list(scenes), seed
        self.cast: Cast = load_cast(self.scenes[0])

    @property
    def made_of(self) -> dict[str, Any]:
        """Everything that the pictures depend on, beside scenes and settings of the run."""
        # The reference picture is each scene's own.
        files = {record.name: dict(record.files) for record in self.cast.records if record.name != "reference"}
        chosen = self.system.model_dump(mode="json", exclude={"name", "title"})
        return {"files": files, "device": self.cast.placed, **chosen}

    def draw(self, part: slice) -> Drawn:
        """Pictures of some scenes."""
        numbers = range(len(self.scenes))[part]
        members = self.cast.members(self.scenes[part], output_type="pt")
        found = aggregate(
            members,
            self.system.combine.name,
            self.system.combine.options,
            seed=[SEEDS * self.seed + number for number in numbers],
            shared_noise=self.system.shared_noise,
        )
        return Drawn(found.images.float().cpu(), dict(found.calls), found.seconds)
