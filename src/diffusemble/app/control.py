"""`diffusemble control`: differently controlled models draw one scene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusemble.app.flags import MemoryBudget, Settings
from diffusemble.app.terminal import hush_bars, out, progress_bar
from diffusemble.registry import COMBINES

if TYPE_CHECKING:
    from diffusemble.scene.config import SceneMadeWith
    from diffusemble.scene.draw import SavedScene

Scene = Annotated[str | None, typer.Argument(help="A YAML file, or a picture that was saved before.")]


def control(
    scene: Scene = None,
    settings: Settings = None,
    seed: Annotated[list[int] | None, typer.Option(help="One picture for each.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps (50).")] = None,
    combine: Annotated[str | None, typer.Option(help=f"How members meet: {', '.join(COMBINES)}.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also a sheet: each member, all, layout.")] = False,
    memory_budget: MemoryBudget = None,
    output: Annotated[str | None, typer.Option("--out", "-o", help="Folder (outputs), or a name.png.")] = None,
) -> None:
    """Draw a scene of things in boxes with several controlled models at once.

    Every picture carries its scene: `diffusemble control picture.png` draws it again.
    """
    from diffusemble.pictures.files import check_out
    from diffusemble.scene.config import SceneConfig
    from diffusemble.settings import load_config

    if scene is None:
        raise ValueError("There is no scene to draw. Give its file: diffusemble control examples/scene.yaml.")
    flags: dict[str, Any] = {"seeds": seed or None, "steps": steps, "compare": compare or None}
    flags |= {"combine": None if combine is None else {"name": combine}, "memory_budget": memory_budget}
    given = {name: value for name, value in flags.items() if value is not None}
    if given or settings:
        given["made_with"] = None  # another picture; there is nothing to compare it with
    run = load_config(SceneConfig, scene, settings or (), **given, **({} if output is None else {"out": output}))
    check_out(run.out)
    with progress_bar("starting") as tell:
        from diffusemble.scene.draw import draw_scene

        hush_bars()
        pictures = draw_scene(run, tell)
    made = pictures.config.made_with
    out().print(_summary(pictures.save(), made) if made else "", markup=False)
    if pictures.memory is not None:
        out().print(f"memory    {pictures.memory}", markup=False)


def _summary(saved: SavedScene, made: SceneMadeWith) -> str:
    rows = [("picture", str(file)) for file in saved.pictures] + [("layout", str(file)) for file in saved.layouts]
    rows += [("settings", str(saved.settings))] + ([("sheet", str(saved.sheet))] if saved.sheet else [])
    calls = ", ".join(f"{name} {count}" for name, count in made.calls.items())
    rows.append(("took", f"{sum(made.calls.values())} denoiser calls ({calls}), {made.seconds:.1f} s"))
    return "\n".join(f"{what:<9} {text}" for what, text in rows)
