"""`diffusemble distill`: an ensemble that draws in few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffusemble.app.terminal import hush_bars, out, progress_bar

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys on top of the file.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file.")]


def distill(settings: Settings = None, config: Config = None) -> None:
    """Distil an ensemble to few steps; the same command again goes on where it stopped."""
    from diffusemble.settings import load_config
    from diffusemble.training.config import DistillConfig

    run = load_config(DistillConfig, config, settings or ())
    with progress_bar("starting") as tell:
        from diffusemble.training.distillation import distill as learn
        from diffusemble.training.run import Progress

        hush_bars()

        def show(now: Progress) -> None:
            loss = "" if now.loss is None else f", loss {now.loss:.4f}"
            tell(now.done / now.total if now.total else 0.0, f"{now.stage} {now.done}{loss}")

        folder = learn(run, progress=show)
    draw = f'diffusemble generate "a prompt" --ensemble {folder} --scheduler lcm --steps 4 --guidance 1'
    out().print(f"ensemble  {folder}\ndraw:     {draw}", markup=False)
