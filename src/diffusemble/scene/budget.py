"""The members of a scene within a memory budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusemble.memory.company import Company
from diffusemble.memory.keep import Drawing, Keeper, choose_plan, kept, planned
from diffusemble.scene.cast import Cast
from diffusemble.scene.config import SceneConfig


@contextmanager
def within_memory(scene: SceneConfig, cast: Cast) -> Iterator[Keeper | None]:
    """Place a scene's members as it asks; without a budget and a plan, do nothing.

    Args:
        scene: whose ``memory_budget`` and ``memory`` count.
        cast: loaded for it, on the CPU.

    Raises:
        ValueError: no plan fits; the message says what the least is.
    """
    if not planned(scene):
        yield None
        return
    pipelines, stage = [cast.pipelines[part.name] for part in cast.parts], cast.stage
    company = Company(pipelines, {} if stage.encoder is None else {"image_encoder": stage.encoder})
    guided = any((scene.guidance if part.guidance is None else part.guidance) > 1 for part in cast.parts)
    batch = min(scene.batch, len(scene.seeds))
    drawing = Drawing(stage.height, stage.width, batch, guided, len(scene.instances))
    plan = choose_plan(company, scene.memory_budget, drawing, scene.memory, pipelines)
    with kept(scene, [(company, pipelines)], [plan]) as keeper:
        yield keeper
