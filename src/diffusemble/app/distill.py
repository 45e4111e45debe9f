"""`diffusemble distill`: an ensemble that draws in few steps."""

from __future__ import annotations

from diffusemble.app.flags import Config, Settings
from diffusemble.app.terminal import hush_bars, out, progress_bar, training_line


def distill(settings: Settings = None, config: Config = None) -> None:
    """Distil an ensemble to few steps; the same command again goes on where it stopped."""
    from diffusemble.settings import load_config
    from diffusemble.training.config import DistillConfig

    run = load_config(DistillConfig, config, settings or ())
    with progress_bar("starting") as tell:
        from diffusemble.training.distillation import distill as learn

        hush_bars()
        folder = learn(run, progress=lambda now: tell(*training_line(now)))
    draw = f'diffusemble generate "a prompt" --ensemble {folder} --scheduler lcm --steps 4 --guidance 1'
    out().print(f"ensemble  {folder}\ndraw:     {draw}", markup=False)
