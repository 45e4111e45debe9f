"""The closed, typed schema of a scene: what is where, and who draws it. ``settings.load_config`` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from diffusemble.config.generate import MadeWith
from diffusemble.config.memory import MemoryConfig
from diffusemble.config.schema import Scheduler, Schema, Seed, Side, Text, listed, nearest
from diffusemble.config.units import MemorySize
from diffusemble.scene.boxes import check_box
from diffusemble.scene.member_config import CombineConfig, MemberConfig


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class InstanceConfig(Schema):
    """One thing of a scene.

    Attributes:
        name: by which relations call it; unique.
        box: x1, y1, x2, y2 as shares of the picture's width and height.
        phrase: what is to be seen there, such as "a cat"; the name by default.
        attribute: how it is to look, such as "red".
    """

    name: Text
    box: tuple[float, ...]
    phrase: str = ""
    attribute: str = ""

    @model_validator(mode="before")
    @classmethod
    def _boxed(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("box") is None:
            what = value.get("phrase") or value.get("name") or "an instance"
            raise ValueError(
                f"a phrase needs its place; {what!r} has no box. Give box: [x1, y1, x2, y2] in shares of the picture, "
                f"or say it in the prompt alone"
            )
        if isinstance(value, Mapping) and value.get("phrase") and not value.get("name"):
            return {**value, "name": value["phrase"]}
        return value

    @model_validator(mode="after")
    def _in_the_picture(self) -> InstanceConfig:
        check_box(self.box, repr(self.name))
        return self

    @property
    def plain(self) -> str:
        """The phrase without its attribute."""
        return self.phrase or self.name

    @property
    def described(self) -> str:
        """The phrase with its attribute, behind an article if it has one: "a red cat"."""
        if not self.attribute:
            return self.plain
        found = re.fullmatch(r"(an?|the)\s+(.+)", self.plain, re.IGNORECASE)
        if found is None:
            return f"{self.attribute} {self.plain}"
        article = found[1] if found[1].lower() == "the" else "an" if self.attribute[0].lower() in "aeiou" else "a"
        return f"{article} {self.attribute} {found[2]}"


class RelationConfig(Schema):
    """``subject`` does ``action`` to ``object``; subject and object are names of instances."""

    subject: Text
    action: Text
    object: Text


class SceneMadeWith(MadeWith):
    """What a scene was drawn with, and what it took: denoiser calls by member, and seconds, for all its pictures."""

    calls: Mapping[str, int] = {}
    seconds: float = 0.0


class SceneConfig(Schema):
    """A run of ``control``: a scene, and who draws it how.

    Attributes:
        prompt: of the whole picture, for every member without one of its own.
        negative: what not to draw.
        base: diffusers folder, hub id or ``zoo:<name>`` of the model that controls are attached to.
        instances: things in boxes.
        relations: what they do to each other.
        reference: file of a picture to be like, for image prompts.
        members: who draws, the base first, whose picture is kept; without them, a control for each thing that the scene
            has: relations (interaction), attributes or boxes alone (migc), a reference (image-prompt).
        combine: how members meet, a name in ``registry.COMBINES`` with its options.
        shared_noise: whether all members begin with the same noise; see ``latent.aggregate``.
        seeds: one picture for each.
        steps, guidance, scheduler: of drawing.
        height, width: pixels, multiples of 8; the base's own size by default.
        batch: pictures drawn at a time.
        compare: also draw what every member draws alone, on one sheet.
        memory_budget: most memory to use on the device, such as ``"6GB"``; a plan is chosen that keeps to it.
        memory: what that plan may do: how many members stay (``resident``), where text encoders and VAE are
            (``parts``), and how the VAE decodes (``vae``).
        out: a folder for numbered pictures, or a file name that ends with ``.png``.
        dtype: number type of the models; float32 on a CPU and float16 elsewhere by default.
        device: ``"cpu"``, ``"cuda:1"``, ``"mps"``; the fastest one there is by default.
        made_with: written by ``control``; compared when the scene is drawn again.
    """

    drawn_by: ClassVar[str] = "control"

    prompt: str = ""
    negative: str = ""
    base: Text = "zoo:scenes"
    instances: tuple[InstanceConfig, ...] = ()
    relations: tuple[RelationConfig, ...] = ()
    reference: Text | None = None
    members: Annotated[tuple[MemberConfig, ...], BeforeValidator(listed)] = ()
    combine: Annotated[CombineConfig, BeforeValidator(_named)] = CombineConfig()
    shared_noise: bool | None = None
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(listed), Field(min_length=1)] = (0,)
    steps: int = Field(default=50, ge=1)
    guidance: float = Field(default=7.5, ge=0)
    scheduler: Scheduler = "ddim"
    height: Side | None = None
    width: Side | None = None
    batch: int = Field(default=4, ge=1)
    compare: bool = False
    memory_budget: MemorySize | None = None
    memory: MemoryConfig | None = None
    out: Text = "outputs"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"
    made_with: SceneMadeWith | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SceneConfig:
        names = [instance.name for instance in self.instances]
        _unique(names, "instances")
        for number, relation in enumerate(self.relations):
            for role in ("subject", "object"):
                name = getattr(relation, role)
                if name not in names:
                    raise ValueError(
                        f"relations.{number}: its {role} {name!r} is no instance{nearest(name, names)}. The instances "
                        f"are: {', '.join(names) or 'none'}"
                    )
        _unique([member.name for member in self.cast], "members")
        for member in self.cast:
            missing = self._missing(member)
            if missing:
                raise ValueError(
                    f"the member {member.name!r} has nothing to do: the scene has no {missing}. Give some, or leave "
                    f"the member out"
                )
        return self

    @model_validator(mode="after")
    def _members_run_whole(self) -> SceneConfig:
        for key in ("storage", "controls", "attention_slicing") if self.memory is not None else ():
            if getattr(self.memory, key) != MemoryConfig.model_fields[key].default:
                raise ValueError(
                    f"memory.{key}: the members of a scene run whole, controls and all, as they are. Leave it out; "
                    f"resident, parts and vae say what a plan may do"
                )
        return self

    @property
    def cast(self) -> tuple[MemberConfig, ...]:
        """The members, or those that the scene asks for by what it has."""
        if self.members:
            return self.members
        described = any(instance.attribute for instance in self.instances)
        kinds = ["interaction"] if self.relations else []
        kinds += ["migc"] if described or (self.instances and not self.relations) else []
        kinds += ["image-prompt"] if self.reference else []
        return tuple(MemberConfig(kind=kind, name=kind) for kind in kinds or ["plain"])

    @property
    def words(self) -> str:
        """The prompt, or the things of a scene that has none."""
        return self.prompt or ", ".join(instance.described for instance in self.instances)

    def _missing(self, member: MemberConfig) -> str | None:
        if member.kind == "image-prompt" and not self.reference:
            return "reference"
        if member.kind in ("migc", "gligen", "interaction") and not self.instances:
            return "instances"
        return None


def _unique(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two {what} are called {name!r}; give each its own name")
